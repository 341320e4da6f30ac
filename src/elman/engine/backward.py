"""One direction of a layer on compiled kernels: backward."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.engine.arrangement import Group, arrangement
from elman.engine.form import Form, gates_width, widened
from elman.engine.kernel import Kind, chunks
from elman.engine.matrices import stored_gradient, weight_parameter
from elman.engine.packing import Packing
from elman.engine.written import Block, Written, clock_runs

_TURNED = 256  # columns of a wider weight up to which its gradient is sooner computed transposed


class Backward(Written):
    """The program of a backward run from what a forward run made.

    The jobs make gradients, `d.<name>` of what `Scene.names` says, and what `run` turns into such.

    Args:
        form: of the run; its names are those of the forward run.
        due: for a cell with a clock, the units that are due; see `due_of`.
    """

    def __init__(self, form: Form, due: "Due | None") -> None:
        super().__init__(form, form.plan.gradients)
        program, table = self.program, self.table
        self.arrangement = arrangement(self.plan)
        self.due = due
        self.sequences = {n: program.given(f"sequence.{n}") for n in self.widths}
        self.totals: list[str] = []  # vectors whose gradient is a total of each thread's
        self.fresh: list[str] = []  # states whose default at resets has such a gradient
        self.handed: dict[str, int] = {}  # carries of states that were given; behind the loop, what reached the start
        self.states(self.sequences)
        self.units()
        self.draws()
        self.side_inputs()
        self.saved = self.place_saved(program.given("saved")) if self.plan.saved_widths else {}
        self._flows()
        rows = self.gates_width + self.arrangement.rest
        stretches = self.stretches(rows * self.itemsize, backward=True)
        longest = max(entries.stop - entries.start for _, entries in stretches)
        over = form.over and self.plan.over
        self._gates: list[tuple[Block, int, bool]] = []  # where the gradients of gates are, and whether for all entries
        for block in self.blocks:
            kept = over and block.kept
            at = self.kept[block] if kept else program.numbers(longest, block.width)
            self._gates.append((block, at, kept))
            if self.arrangement.idle and not kept:
                program.fill(at, program.at_most(longest) * block.width)
        self._rest = program.numbers(longest, self.arrangement.rest)
        self._direct()
        self.prepare(backward=True)
        self.products = _Products(self, len(stretches) > 1)
        for steps, entries in stretches:
            self._place(entries.start)
            table.run(steps)
            self.products.take(steps, entries)
        self.products.finish()
        if form.reverse and not self.packing.is_dense:
            for n, carry in self.handed.items():
                width = self.widths[n]
                program.ends(True, width, carry, program.result(f"d.state.{n}", self.batch, width))

    def _flows(self) -> None:
        """Give the table the gradients that enter from outside, and memory for those handed from step to step."""
        table, program, wanted = self.table, self.program, self.form.wanted
        for k, (entry, width) in enumerate(self.layout.states):
            stride = self.form.gradients[k] if k < wanted else None
            if stride is not None:
                table.place(f"sequence.{entry.name}", program.given(f"gradient.{k}"), stride, Kind.STEP)
            if self.form.gradients[wanted + k] is not None and entry.dtype != "int64":
                table.place(f"final.{entry.name}", program.given(f"gradient.{wanted + k}"), width, Kind.BATCH)
            if f"carry.{entry.name}" in table:
                if f"state.{entry.name}" in self.form.names:
                    self.handed[entry.name] = carry = program.result(f"carry.{entry.name}", 2 * self.batch, width)
                else:
                    carry = program.numbers(2 * self.batch, width)
                table.place(f"carry.{entry.name}", carry, width, Kind.CARRY)
                table.place(f"handed.{entry.name}", carry, width, Kind.HANDED)

    def _direct(self) -> None:
        """Give the table memory for the gradients of side inputs, and for those that are totals over rows."""
        for entry, width in self.layout.states:
            if f"default.{entry.name}" in self.form.names and f"carry.{entry.name}" in self.table:
                self._total(f"fresh.{entry.name}", width)
                self.fresh.append(entry.name)
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                name = "d.input" if n == "d.raw" else n
                self.table.place(n, self.program.result(name, self.total, width), width, Kind.STEP)
            elif n.startswith("total."):
                self._total(n, width)
                self.totals.append(n[6:])

    def _total(self, name: str, width: int) -> None:
        # A page apart: at the end of its row a thread's processor fetches ahead what would be the other's, row for row.
        stride = width + 4096 // self.itemsize
        total = self.program.result(name, self.form.workers, stride)
        self.program.fill(total, self.form.workers * stride)
        self.table.place(name, total, stride, Kind.TOTALS)

    def _place(self, first: int) -> None:
        """Let the kernel write the gradients of a stretch that starts at an entry to the memory that is kept for it."""
        places = {f"d.x.{gate}": (True, columns.start) for gate, columns in self.layout.input_gates.items()}
        places |= {f"d.product.{index}": place for index, place in self.arrangement.places.items()}
        for name, (among_gates, start) in places.items():
            address, stride = self.columns(among_gates, start, first)
            self.table.place(name, address - first * stride * self.itemsize, stride, Kind.STEP)

    def columns(self, among_gates: bool, start: int, first: int) -> tuple[int, int]:
        """The address of a column of the gradients of gates, or of the other products, and their stride.

        Args:
            first: the first entry of the stretch of time whose gradients they are.
        """
        if not among_gates:
            return self._rest + start * self.itemsize, self.arrangement.rest
        block, at, kept = next(g for g in reversed(self._gates) if g[0].start <= start)
        before = first * block.width if kept else 0
        return at + (before + start - block.start) * self.itemsize, block.width

    def run(self, packing: Packing, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the inputs, by the names of `Scene.names`; those that are absent are zero."""
        made = self.program.make(packing)
        found = {n[2:]: v for n, v in made.items() if n.startswith("d.")}
        half = self.packing.steps & 1 if self.form.reverse else 1
        for n in self.handed:  # views, sooner made before the jobs; see `Forward.run`
            whole = made.get(f"d.state.{n}")
            found[f"state.{n}"] = made[f"carry.{n}"][half * self.batch :][: self.batch] if whole is None else whole
        self.program.run(packing, tensors, made)
        found |= {f"parameter.{n}": made[f"total.{n}"][:, : self.shapes[n][0]].sum(0) for n in self.totals}
        found |= {f"default.{n}": made[f"fresh.{n}"][:, : self.widths[n]].sum(0) for n in self.fresh}
        self.products.give(found, made)
        return found


Strided = tuple[int, int, int, int]  # address, elements from row to row and from column to column, and columns
Due = dict[int, list[tuple[Tensor, int, int]]]


@dataclass(frozen=True)
class _Target:
    """Where the gradient of a group's weights, or of `weight_ih`, goes: some rows of something that a run makes."""

    name: str
    row: int
    address: int
    columns: int
    biases: int  # address; 0: none


class _Products:
    """The large products after the loop: a stretch of time at a time, added up."""

    def __init__(self, run: Backward, several: bool) -> None:
        self._run = run
        self._tools = run.tools
        self._program = run.program
        self._size = run.itemsize
        self._parameters: dict[str, int] = {}  # addresses of gradients
        self._targets: dict[int, _Target] = {}  # of the groups, by number; from -1 on down blocks of gates
        self._apart: list[int] = []  # groups that are not stored as they are
        # What is computed transposed: its columns, and whether it is added where it belongs.
        self._transposed: dict[int, tuple[int, int, bool]] = {}
        self._once: dict[str, bool] = {}
        self._begun: set[int] = set()
        self._through = 0
        form, columns, gates = run.form, run.layout.input_size, run.gates_width
        self._columns = columns
        if gates and form.through:
            self._right = [run.parameter("weight_ih", block.start) for block in run.blocks]
            self._packed = [0] * len(run.blocks)
            if several:
                rows = [(at, b.width, columns, columns) for at, b in zip(self._right, run.blocks, strict=True)]
                self._packed = [self._tools.packed_right(run.program, matrix, transposed=False) for matrix in rows]
            self._through = run.program.result("through", run.total, columns)

    def take(self, steps: slice, entries: slice) -> None:
        """Multiply the gradients of a stretch of time."""
        run, count = self._run, entries.stop - entries.start
        for number, group in enumerate(run.arrangement.groups):
            width, columns = sum(group.widths), run.plan.graph.nodes[group.operand].width
            target = self._target(number, group, width, columns)
            add = number in self._begun or (group.weight is not None and not self._once[group.weight])
            self._turn(number, width, columns, add)
            with self._program.within():
                operand = self._operand(group.operand, steps, entries)
                d = run.columns(group.among_gates, group.start, entries.start)
                if run.due is None:
                    self._add(number, d, (width, count), operand, target, add)
                else:
                    self._add_due(group, d, run.due[entries.start], operand, target, add)
                    self._begun.add(number)
        strides = run.form.strides
        start = self._program.given("input") + entries.start * strides[0] * self._size
        for k, block in enumerate(run.blocks):
            number, width = -1 - k, block.width
            target = self._target(number, None, width, self._columns, block.start)
            self._turn(number, width, self._columns, number in self._begun)
            d = run.columns(True, block.start, entries.start)
            self._add(number, d, (width, count), (start, *strides, self._columns), target, number in self._begun)
            if self._through:
                to = (self._through + entries.start * self._columns * self._size, self._columns)
                sizes, right = (count, self._columns, width), (self._right[k], self._columns, 1)
                self._tools.multiply(self._program, sizes, (*d, 1), right, to, add=k > 0, packed=self._packed[k])

    def _target(self, number: int, group: Group | None, width: int, columns: int, row: int = 0) -> _Target:
        """Where the gradients of a group's weights and biases go.

        Args:
            row: where it is none but some gates, the first of theirs.
        """
        if number not in self._targets:
            weight = "weight_ih" if group is None else group.weight
            if weight is None:
                self._apart.append(number)
                name = f"apart.{number}"
                biased = group is not None and group.biased
                biases = self._program.result(f"biases.{number}", width) if biased else 0
                address, row = self._program.result(name, width, columns), 0
            else:
                name, row = f"d.parameter.{weight}", row if group is None else group.rows.start or 0
                address, biases = self._gradient(weight, row), 0
                if group is None:
                    biases = self._gradient("bias_ih", row) if self._run.layout.input_bias else 0
                elif group.bias is not None and group.biased:
                    biases = self._gradient(group.bias, row)
            self._targets[number] = _Target(name, row, address, columns, biases)
        return self._targets[number]

    def _gradient(self, name: str, row: int) -> int:
        """The address of a row of a parameter's gradient, which is zero where no product writes it."""
        shape = self._run.shapes[name]
        if name not in self._parameters:
            self._once[name] = self._run.arrangement.once(name, shape[0])
            self._parameters[name] = self._program.result(f"d.parameter.{name}", *shape)
            if not self._once[name]:
                self._program.fill(self._parameters[name], math.prod(shape))
        return self._parameters[name] + row * math.prod(shape[1:]) * self._size

    def _turn(self, number: int, width: int, columns: int, add: bool) -> None:
        """Have memory for a gradient that is computed transposed; a tensor only where torch adds it somewhere."""
        if columns >= width or columns > _TURNED or number in self._transposed or self._run.due is not None:
            return
        name, program = f"transposed.{number}", self._program
        address = program.result(name, columns, width) if add else program.numbers(columns, width)
        self._transposed[number] = (address, width, add)

    def _add(
        self, number: int, d: tuple[int, int], sizes: tuple[int, int], right: Strided, target: _Target, add: bool
    ) -> None:
        """Write dᵀ right to a weight's gradient, and the sums of d's columns to a bias's, or add them to what is there.

        Args:
            number: of the group; -1 for the product with the input.
            d: address and stride of [count, width]. sizes: width and count. right: [count, columns].
        """
        (address, stride), (width, count), columns = d, sizes, right[3]
        sums = target.biases
        if number in self._transposed:
            to = (self._transposed[number][0], width)
            a, b = (right[0], right[2], right[1]), (address, stride, 1)
            turned, begun = (columns, width, count), number in self._begun
            self._tools.multiply(self._program, turned, a, b, to, add=begun, column_sums=sums, add_sums=add)
        else:
            a, b, to = (address, 1, stride), right[:3], (target.address, columns)
            self._tools.multiply(self._program, (width, columns, count), a, b, to, add=add, sums=sums, add_sums=add)
        self._begun.add(number)

    def _add_due(
        self,
        group: Group,
        d: tuple[int, int],
        due: list[tuple[Tensor, int, int]],
        operand: Strided,
        target: _Target,
        add: bool,
    ) -> None:
        """As `_add`, of a cell with a clock: each run of units takes only the rows in which it is due."""
        columns, size, (address, stride) = operand[3], self._size, d
        if not add:
            self._program.fill(target.address, sum(group.widths) * columns)
            if target.biases:
                self._program.fill(target.biases, sum(group.widths))
        for rows, first, end in due:
            chosen = self._program.constant(rows)
            for unit in accumulate(group.widths[:-1], initial=0):
                start = unit + first
                self._tools.multiply(
                    self._program,
                    (end - first, columns, len(rows)),
                    (address + start * size, 1, stride),
                    operand[:3],
                    (target.address + start * columns * size, columns),
                    add=True,
                    sums=target.biases + start * size if target.biases else 0,
                    add_sums=True,
                    chosen=chosen,
                )

    def finish(self) -> None:
        """Turn what was computed transposed and is not added to anything."""
        for number, (address, width, add) in self._transposed.items():
            if not add:
                target = self._targets[number]
                source = (address, target.columns, width, width)
                self._tools.transpose(self._program, source, target.address, target.columns)

    def give(self, found: dict[str, Tensor], made: Mapping[str, Tensor]) -> None:
        """Put the gradients of parameters and input, by name, beside those that are there."""
        for number, (_, width, add) in self._transposed.items():
            if add:
                target = self._targets[number]
                made[target.name][target.row : target.row + width].add_(made[f"transposed.{number}"].T)
        if self._through:
            through = made["through"]
            found["input"] = found["input"] + through if "input" in found else through
        for number in self._apart:
            group = self._run.arrangement.groups[number]
            self._give_apart(found, group, made[f"apart.{number}"], made.get(f"biases.{number}"))

    def _give_apart(self, found: dict[str, Tensor], group: Group, weight: Tensor, bias: Tensor | None) -> None:
        layout, widths = self._run.layout, list(group.widths)
        parts = [None] * len(widths) if bias is None else bias.split(widths)
        for name, w, b in zip(group.names, weight.split(widths), parts, strict=True):
            product = layout.products.get(name)
            if product is None or not product.fixed:
                parameter, rows = weight_parameter(layout, name)
                self._give(found, parameter, rows, stored_gradient(layout, name, w))
                self._give(found, product.bias if product else None, rows, b)

    def _give(self, found: dict[str, Tensor], parameter: str | None, rows: slice, gradient: Tensor | None) -> None:
        """Add to the gradient of some rows of a parameter."""
        if parameter is None or gradient is None:
            return
        name, shape = f"parameter.{parameter}", self._run.shapes[parameter]
        if name not in found and gradient.shape == shape:
            found[name] = gradient
            return
        if name not in found:
            found[name] = gradient.new_zeros(shape)
        found[name][rows] += gradient

    def _operand(self, index: int, steps: slice, entries: slice) -> Strided:
        """What a product read in a stretch of time."""
        run, program, size = self._run, self._program, self._size
        node = run.plan.graph.nodes[index]
        kind, _, rest = node.name.partition(".")
        width, first = node.width, entries.start
        if node.op == "leaf" and kind == "state" and (run.resets or not run.packing.is_dense):
            entry = next(e for e, _ in run.layout.states if e.name == rest)
            reset, otherwise = (program.given("reset"), run.default(entry, width)) if run.resets else (0, 0)
            sequence = run.sequences[rest]
            to = program.before(steps, entries.stop - first, run.form.reverse, width, sequence, reset, otherwise)
            return to, width, 1, width
        strides: tuple[int, ...] = (width, 1)
        if node.op != "leaf":
            entry_name = next((e for e, i in run.plan.graph.outputs.items() if i == index), None)
            start = run.saved[index] if entry_name is None else run.sequences[entry_name] + run.first_output(width)
        elif kind == "state":
            start = run.sequences[rest] + (run.batch * width * size if run.form.reverse else 0)
        elif kind == "raw":
            start, strides = program.given("input"), run.form.strides
        else:
            start = program.given(node.name)
        return start + first * strides[0] * size, strides[0], strides[1], width


def backward_of(form: Form, tensors: Mapping[str, Tensor]) -> Backward:
    """The program of a form; kept where another run may have the same.

    Args:
        tensors: what it is given.
    """
    runs = clock_runs(form.plan)
    if runs is not None:
        return Backward(form, due_of(form, tensors, np.asarray(runs).reshape(-1, 3)))
    form = widened(form, gates_width(form.plan.layout) + arrangement(form.plan).rest, form.plan.gradients)
    return _kept(form) if form.packing.kept else Backward(form, None)


@functools.lru_cache(maxsize=512)
def _kept(form: Form) -> Backward:
    return Backward(form, None)


def due_of(form: Form, tensors: Mapping[str, Tensor], runs: Any) -> Due:
    """By the first entry of each stretch of time, rows of it and neighbouring units that are due at their steps alone.

    Args:
        runs: [runs, 3]: first unit, end and period.

    Returns:
        Rows, counted from the stretch's first, and the first unit and the end.
    """
    plan, packing = form.plan, form.packing
    assert isinstance(packing, Packing)
    times = tensors["sequence.t"][:, 0]
    if "reset" in tensors or not packing.is_dense:
        times = times[packing.next_steps if form.reverse else packing.previous_steps]
        if "reset" in tensors:
            (initial,) = (e.initial for e, _ in plan.layout.states if e.name == "t")
            times = times.masked_fill(tensors["reset"].bool(), initial)
    else:
        times = times[packing.batch :] if form.reverse else times
    rows = gates_width(plan.layout) + arrangement(plan).rest
    found: Due = {}
    for _, entries in chunks(packing, rows * form.dtype.itemsize, plan.gradients):
        time = times[entries].numpy().astype(np.int32)
        sets = (time[:, None] % runs[:, 2].astype(np.int32) == 0) @ (1 << np.arange(len(runs)))
        found[entries.start] = []
        for chosen in torch.from_numpy(sets).unique().tolist():  # numpy's loads a package of its own first
            numbers = torch.from_numpy(np.flatnonzero(sets == chosen))
            edges = np.flatnonzero(np.diff([0, *(chosen >> k & 1 for k in range(len(runs))), 0]))
            found[entries.start] += [(numbers, int(runs[a, 0]), int(runs[b - 1, 1])) for a, b in edges.reshape(-1, 2)]
    return found
