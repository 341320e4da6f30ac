"""``elman cells``: the catalogue from the command line. It needs nothing beyond the core's torch and numpy."""

import argparse
import sys
from collections.abc import Sequence

from elman import cells
from elman.catalogue import cost
from elman.catalogue.facts import Facts, facts
from elman.catalogue.listing import listing, page
from elman.errors import Parser, UsageError

SECONDS = 0.4  # of each comparison


def run(arguments: Sequence[str]) -> None:
    """Carry out ``elman cells ARGUMENTS``. Raises UsageError."""
    options = _parser().parse_args(arguments)
    if options.names:
        print("\n".join(cells.names()))
        return
    if options.json and not options.cost:
        raise UsageError("--json prints measured costs: it needs --cost")
    try:
        chosen = [facts(options.name)] if options.name else [facts(name) for name in cells.names()]
    except ValueError as error:
        raise UsageError(str(error)) from None
    costs = _measured(chosen) if options.cost else cost.kept()
    if options.json:
        print(costs.to_json())
        return
    from elman.catalogue.sample import engine_of

    try:
        engines = {f.name: engine_of(f.cell) for f in chosen}
    except ValueError as error:  # ELMAN_ENGINE names none
        raise UsageError(str(error)) from None
    if options.name:
        (only,) = chosen
        print(page(only, engines[only.name], cost_in_words(only.name, costs)))
        return
    by_name = {f.name: f for f in chosen}
    families = {family: [by_name[name] for name in names] for family, names in cells.families().items()}
    print(listing(families, {name: _engine(*found) for name, found in engines.items()}, costs))


def cost_in_words(name: str, costs: cost.Costs) -> str:
    """A cell's cost with what it was measured on, or "" where it was not."""
    if name not in costs.relative:
        return ""
    return f"{costs.relative[name]:.2f} × lstm: {costs.step}; {costs.machine}, {costs.date}"


def _measured(chosen: list[Facts]) -> cost.Costs:
    return cost.measure([(f.name, f.cell) for f in chosen], SECONDS, lambda line: print(line, file=sys.stderr))


def _engine(name: str, refusals: dict[str, str]) -> str:
    if name in ("cpu", "torch"):
        return name
    return f"{name}: {refusals.get('cpu') or ', '.join(refusals.values())}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="elman cells",
        description="The recurrent cells: all of them, or one in full.",
        epilog="Costs are measured beforehand unless --cost asks for them here.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a cell's name, or MODULE:CLASS for a cell of your own")
    parser.add_argument("--cost", action="store_true", help="measure training steps here; a minute or two for all")
    parser.add_argument("--json", action="store_true", help="with --cost: print the measurement alone, as JSON")
    parser.add_argument("--names", action="store_true", help="the names alone, one a line")
    return parser
