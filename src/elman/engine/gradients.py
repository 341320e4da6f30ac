"""The large products that follow a backward loop: gradients of weights, biases and the input."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor

from elman.engine.arrangement import Group
from elman.engine.matrices import stored_gradient, weight_parameter

if TYPE_CHECKING:
    from elman.engine.backward import Backward

_TURNED = 256  # columns of a wider weight up to which its gradient is sooner computed transposed

Strided = tuple[int, int, int, int]  # address, elements from row to row and from column to column, and columns


@dataclass(frozen=True)
class _Target:
    """Where the gradient of a group's weights, or of `weight_ih`, goes: some rows of something that a run makes."""

    name: str
    row: int
    address: int
    columns: int
    biases: int  # address; 0: none


class Products:
    """The large products after the loop: a stretch of time at a time, added up."""

    def __init__(self, run: "Backward", several: bool) -> None:
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
        # Places for results come before all else, so that all products have the same memory to work in.
        places = [self._place(number, group) for number, group in enumerate(run.arrangement.groups)]
        of_gates = [self._place_of_gates(-1 - k, block.width, block.start) for k, block in enumerate(run.blocks)]
        operands: dict[int, Strided] = {}  # several groups may have read the same
        with self._program.within():
            for (number, group), (target, add) in zip(enumerate(run.arrangement.groups), places, strict=True):
                if group.operand not in operands:
                    operands[group.operand] = self._operand(group.operand, steps, entries)
                operand, d = operands[group.operand], run.columns(group.among_gates, group.start, entries.start)
                if run.due is None:
                    self._add(number, d, (sum(group.widths), count), operand, target, add)
                else:
                    self._add_due(group, d, run.due[entries.start], operand, target, add)
                    self._begun.add(number)
        strides = run.input_strides
        start = run.input + entries.start * strides[0] * self._size
        for k, (block, target) in enumerate(zip(run.blocks, of_gates, strict=True)):
            number, width = -1 - k, block.width
            d = run.columns(True, block.start, entries.start)
            self._add(number, d, (width, count), (start, *strides, self._columns), target, number in self._begun)
            if self._through:
                to = (self._through + entries.start * self._columns * self._size, self._columns)
                sizes, right = (count, self._columns, width), (self._right[k], self._columns, 1)
                self._tools.multiply(self._program, sizes, (*d, 1), right, to, add=k > 0, packed=self._packed[k])

    def _place(self, number: int, group: Group) -> tuple[_Target, bool]:
        """Where a group's gradients go, and whether they are added to what is there."""
        width, columns = sum(group.widths), self._run.plan.graph.nodes[group.operand].width
        target = self._target(number, group, width, columns)
        add = number in self._begun or (group.weight is not None and not self._once[group.weight])
        self._turn(number, width, columns, add)
        return target, add

    def _place_of_gates(self, number: int, width: int, row: int) -> _Target:
        """Where the gradients of a block of gates go, from this row of the parameter on."""
        target = self._target(number, None, width, self._columns, row)
        self._turn(number, width, self._columns, number in self._begun)
        return target

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

    def computes(self, directly: bool) -> bool:
        """Whether `give` reads what the jobs have written.

        Args:
            directly: whether the loop has written a gradient of the input too.
        """
        added = any(add for _, _, add in self._transposed.values())
        return added or bool(self._apart) or (directly and bool(self._through))

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
            start, strides = run.input, run.input_strides
        else:
            start = program.given(node.name)
        return start + first * strides[0] * size, strides[0], strides[1], width
