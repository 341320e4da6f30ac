"""The catalogue as a document: `python -m elman.catalogue docs/cells.md`."""

import re
from collections.abc import Iterable, Mapping

from elman import cells
from elman.catalogue.cost import Costs, kept
from elman.catalogue.facts import Facts, facts

INTRODUCTION = """\
# Cells

<!-- Made from the registry by `make docs`; a test fails when it is out of date. -->

{count} cells, by family. The formulas are printed from the graphs that the kernels are made of, so they are what is
computed, with the default options; where an option changes them, the changed lines follow. `elman cells` prints this
list and `elman cells NAME` one cell, docstring and engine included. For a cell that is not here, see
[your-own-cell.md](your-own-cell.md).

- $W$ is `weight_ih` and $W_f$ its rows for gate $f$; $U$ is `weight_hh`; $V$ is the matrix `weight_<name>` of a further
  product; $A$ is antisymmetric; $b$ and $b'$ are biases. Other letters are values, vectors and states of the cell.
- $\\circ$ multiplies unit by unit, $\\sigma$ is the logistic function, LN is layer normalisation over all its arguments
  together.
- *Gates* are row blocks of `weight_ih` / of `weight_hh`. *Parameters* are those of one layer with I inputs and H units.
- *Cost* is the time of {step}, relative to `lstm` in the same run; {machine}, {date};
  `elman cells --cost` measures it anywhere.
"""


def document() -> str:
    """The whole document."""
    costs = kept()
    parts = [
        INTRODUCTION.format(count=len(cells.names()), step=costs.step, machine=costs.machine, date=costs.date).rstrip()
    ]
    families = {family: [facts(name) for name in names] for family, names in cells.families().items()}
    for family, members in families.items():
        parts += [f"## {family}", _table(members, costs)]
        parts += [section(member) for member in members]
    return "\n\n".join(parts) + "\n"


def _table(members: list[Facts], costs: Costs) -> str:
    lines = ["| cell | source | states | gates | products | parameters | cost |", "|---|---|---|---|---|---|---|"]
    for member in members:
        cost = costs.relative.get(member.name)
        columns = (
            f"[`{member.name}`](#{member.name})",
            member.docstring.source,
            _code(name for name, _ in member.states),
            _gates(member),
            _code(member.products),
            member.parameter_count,
            "" if cost is None else f"{cost:.2f}",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def section(facts: Facts) -> str:
    """One cell."""
    parts = [f"### `{facts.name}`", _prose(facts.docstring.summary)]
    if isinstance(facts.formulas, str):
        parts.append(f"The formulas cannot be printed: {facts.formulas}.")
    else:
        parts.append(facts.formulas.markdown())
    parts += [_prose(note) for note in (*facts.structures, *facts.docstring.notes)]
    for option, changed in facts.variants:
        parts += [f"With `{option}`:", changed.markdown()]
    parts.append("\n".join(f"- {title}: {text}" for title, text in _details(facts).items() if text))
    return "\n\n".join(parts)


def _details(facts: Facts) -> Mapping[str, str]:
    return {
        "Class": f"`{facts.where}`",
        "States": ", ".join(f"`{name}` [{width}]" for name, width in facts.states),
        "Parameters": ", ".join(
            f"`{name}` {shape}{'' if trained else ' (not trained)'}" for name, shape, trained in facts.parameters
        ),
        "Further inputs": ", ".join(facts.extras),
        "Options": ", ".join(f"`{o.name}: {o.type} = {o.default}`" for o in facts.options),
    }


def _gates(facts: Facts) -> str:
    inputs, recurrent = _code(facts.input_gates) or "–", _code(facts.recurrent_gates) or "–"
    return inputs if inputs == recurrent else f"{inputs} / {recurrent}"


def _code(names: Iterable[str]) -> str:
    joined = " ".join(names)
    return f"`{joined}`" if joined else ""


def _prose(text: str) -> str:
    """Text in which nothing but what stands in backticks is Markdown."""
    return "`".join(part if k % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for k, part in enumerate(text.split("`")))
