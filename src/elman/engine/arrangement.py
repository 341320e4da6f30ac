"""Where the gradients of a cell's gates and products stand in a backward run, and which products follow the loop."""

import functools
from dataclasses import dataclass, field
from itertools import pairwise

from elman.cells.layout import MatrixProduct
from elman.cells.structure import Dense
from elman.compiler.plan import Plan


@dataclass(frozen=True)
class Group:
    """Products of one operand whose gradients lie side by side, so that one matrix product serves them.

    Attributes:
        operand: its node.
        among_gates: whether the gradients are among those of the input gates.
        start, widths: the first column there, and the columns of each product.
        biased: whether any product has a bias.
        names: of the products.
        weight, bias, rows: where all of it is stored as it is, the parameters and their rows; else None.
    """

    operand: int
    among_gates: bool
    start: int
    widths: tuple[int, ...]
    biased: bool
    names: tuple[str, ...]
    weight: str | None
    bias: str | None
    rows: slice


@dataclass
class Arrangement:
    """Where the gradients of gates and products stand while the loop runs: in rows, those of the input gates first.

    Attributes:
        idle: columns of input gates that have no gradient.
        rest: columns of the products that share none with an input gate.
        places: of each product node, whether it is among the gates, and its first column.
        groups: the matrix products that follow the loop, beside that with the input.
        written: rows of each parameter that the groups write as they are.
    """

    idle: list[slice] = field(default_factory=list)
    rest: int = 0
    places: dict[int, tuple[bool, int]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    written: dict[str, list[slice]] = field(default_factory=dict)

    def once(self, parameter: str, rows: int) -> bool:
        """Whether the groups write each of a parameter's rows exactly once."""
        if parameter not in self.written:
            return True
        parts = sorted(self.written[parameter], key=lambda part: part.start)
        ends = [0, *(part.stop for part in parts)]
        return [part.start for part in parts] == ends[:-1] and ends[-1] == rows


@functools.lru_cache(maxsize=1024)
def arrangement(plan: Plan) -> Arrangement:
    """The arrangement of a plan's gradients."""
    found = Arrangement()
    buffers = plan.gradients.buffers
    for gate, columns in plan.layout.input_gates.items():
        if gate in plan.shared:
            found.places[plan.shared[gate]] = (True, columns.start)
        elif f"d.x.{gate}" not in buffers:
            found.idle.append(columns)
    differentiated = [i for i in plan.products if f"d.product.{i}" in buffers]
    for index in dict.fromkeys((*plan.recurrent, *differentiated)):
        if index in differentiated and index not in found.places:
            found.places[index] = (False, found.rest)
            found.rest += plan.products[index].width
    for index, first in plan.repeated.items():
        if first in found.places:
            found.places[index] = found.places[first]
    for operand in dict.fromkeys(n.args[0] for n in plan.products.values()):
        members = [i for i, n in plan.products.items() if n.args[0] == operand and i in found.places]
        members.sort(key=lambda i: found.places[i])
        while members:
            run = [members.pop(0)]
            while members and found.places[members[0]] == _after(plan, found, run[-1]):
                run.append(members.pop(0))
            found.groups.append(_group(plan, found, operand, run))
    for group in found.groups:
        for parameter in (group.weight, group.bias):
            if parameter is not None:
                found.written.setdefault(parameter, []).append(group.rows)
    return found


def _after(plan: Plan, found: Arrangement, index: int) -> tuple[bool, int]:
    among, start = found.places[index]
    return among, start + plan.products[index].width


def _group(plan: Plan, found: Arrangement, operand: int, indices: list[int]) -> Group:
    names = tuple(plan.products[i].name for i in indices)
    among, start = found.places[indices[0]]
    declared = [plan.layout.products.get(n) for n in names]
    together = _stored_together(declared)
    first, last = declared[0], declared[-1]
    return Group(
        operand,
        among,
        start,
        tuple(plan.products[i].width for i in indices),
        any(n in plan.biased for n in names),
        names,
        first.weight if together and first else None,
        first.bias if together and first else None,
        slice(first.rows.start, last.rows.stop) if together and first and last else slice(0, 0),
    )


def _stored_together(products: list[MatrixProduct | None]) -> bool:
    """Whether products are dense and lie one after the other in one parameter."""
    pairs = pairwise(products)
    return all(p is not None and not p.fixed and isinstance(p.structure, Dense) for p in products) and all(
        a and b and a.weight == b.weight and a.bias == b.bias and a.rows.stop == b.rows.start for a, b in pairs
    )
