"""The catalogue on a terminal: a line for each cell, or a page for one."""

from collections.abc import Mapping, Sequence

from elman.catalogue.cost import Costs
from elman.catalogue.facts import Facts

HEAD = ("cell", "source", "states", "gates", "parameters", "cost", "engine")
LEGEND = """\
gates: those of the input / those of the state where they differ, + further products; parameters: of a layer, with the
default options; cost: of a training step, relative to lstm; engine: of that step here"""


def gates(facts: Facts) -> str:
    """The gates and products in a few words."""
    inputs, recurrent = " ".join(facts.input_gates) or "–", " ".join(facts.recurrent_gates) or "–"
    both = inputs if facts.input_gates == facts.recurrent_gates else f"{inputs} / {recurrent}"
    return f"{both} + {' '.join(facts.products)}" if facts.products else both


def listing(families: Mapping[str, list[Facts]], engines: Mapping[str, str], costs: Costs) -> str:
    """All cells as a table, by family."""
    rows: list[tuple[str, ...]] = [HEAD]
    titles: dict[int, str] = {}
    for family, members in families.items():
        titles[len(rows)] = family
        for facts in members:
            cost = costs.relative.get(facts.name)
            rows.append(
                (
                    facts.name,
                    facts.docstring.source,
                    " ".join(name for name, _ in facts.states),
                    gates(facts),
                    facts.parameter_count,
                    "" if cost is None else f"{cost:.2f}",
                    engines[facts.name],
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = []
    for k, row in enumerate(rows):
        if k in titles:
            lines += ["", titles[k]]
        lines.append("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join([*lines, "", LEGEND, f"measured: {costs.step}; {costs.machine}, {costs.date}"])


def page(facts: Facts, engine: tuple[str, Mapping[str, str]], cost: str) -> str:
    """All that is known of one cell."""
    parts = [f"{facts.name}: {facts.where}"]
    if facts.docstring.text:
        parts.append(facts.docstring.text)
    parts.append(_equations(facts))
    parts += [f"With {option}:\n\n{_indented(str(changed))}" for option, changed in facts.variants]
    states = [(name, f"[B, {width}]", "the output" if k == 0 else "") for k, (name, width) in enumerate(facts.states)]
    parts.append(_table("States", states))
    trained = [(name, shape, "" if trained else "not trained") for name, shape, trained in facts.parameters]
    parts.append(_table(f"Parameters of a layer, {facts.parameter_count}", trained))
    if facts.extras:
        parts.append(_table("Further inputs of each step", [(extra,) for extra in facts.extras]))
    parts.append(_table("Options", [(o.name, f"= {o.default}", o.type) for o in facts.options] or [("none",)]))
    name, refusals = engine
    why = "".join(f"\n  not {other}: {reason}" for other, reason in refusals.items())
    parts.append(f"Engine\n\n  {name}{why}")
    if cost:
        parts.append(f"Cost\n\n  {cost}")
    return "\n\n".join(parts)


def _equations(facts: Facts) -> str:
    if isinstance(facts.formulas, str):
        return f"Equations\n\n  not printed: {facts.formulas}"
    notes = "".join(f"\n  {note}" for note in facts.structures)
    return f"Equations, as computed\n\n{_indented(str(facts.formulas))}{notes}"


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, "", *(f"  {line}" for line in lines)])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
