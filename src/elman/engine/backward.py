"""One direction of a layer on compiled kernels: backward."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from elman.cells.layout import MatrixProduct
from elman.cells.structure import Dense
from elman.compiler.plan import Plan
from elman.engine import memory, threads
from elman.engine.forward import Run, Scene
from elman.engine.kernel import Kind, Table
from elman.engine.matrices import stored_gradient, weight_parameter
from elman.engine.products import matrix

_TURNED = 256  # columns of a wider weight up to which its gradient is sooner computed transposed


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


class Backward(Run):
    """A backward run from what forward kept.

    Args:
        kept: `Forward.kept()`.
        gradients: of the results of `Forward.run`, in their order; None for zero.
    """

    def __init__(
        self,
        scene: Scene,
        plan: Plan,
        inputs: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        super().__init__(scene, plan, inputs)
        self.kept = kept
        self.gradients = gradients
        self.kernel = plan.gradients
        self.arrangement = arrangement(plan)
        self.sequences = {n: kept[f"sequence.{n}"] for n in self.widths}
        self.found: dict[str, Tensor] = {}
        self.fresh: dict[str, Tensor] = {}  # gradients of the learned states at resets, for each thread

    def run(self) -> dict[str, Tensor]:
        """The gradients of the inputs, by the names of `Scene.names`; those that are absent are zero."""
        table = Table(self.kernel, self.dtype, self.batch)
        self.states(table, self.sequences)
        self.units(table)
        self.draws(table)
        self.side_inputs(table)
        if "saved" in self.kept:
            self.place_saved(table, self.kept["saved"])
        carries = self._flows(table)
        rows = self.gates_width + self.arrangement.rest
        stretches = self.stretches(rows * self.itemsize, backward=True)
        longest = max(entries.stop - entries.start for _, entries in stretches)
        self._gates = self._columns(longest)
        self._rest = self.take(longest, self.arrangement.rest) if self.arrangement.rest else 0
        side, totals = self._direct(table)
        run = self.prepare(table, backward=True)
        products = _Products(self, len(stretches) > 1)
        for steps, entries in stretches:
            self._place(table, entries.start)
            table.steps(steps.start, steps.stop)
            run()
            products.take(entries)

        for n, v in totals.items():
            self.found[f"parameter.{n}"] = v.sum(0)
        for n, v in self.fresh.items():
            self.found[n] = v.sum(0)
        for n, carry in carries.items():
            self.found[f"state.{n}"] = self._handed_last(carry)
        for n, v in side.items():
            self.found["input" if n == "raw" else n] = v
        products.give(self.found)
        return self.found

    def _flows(self, table: Table) -> dict[str, Tensor]:
        """Give a table the gradients that enter from outside; those that are handed from step to step, by state."""
        wanted = self.scene.wanted
        carries = {}
        for k, (entry, width) in enumerate(self.layout.states):
            given = self.gradients[k] if k < wanted else None
            if given is not None:
                rows = given if given.stride(1) == 1 else given.contiguous()
                table.set(f"sequence.{entry.name}", rows, Kind.STEP)
            final = self.gradients[wanted + k]
            if final is not None and entry.dtype != "int64":
                table.set(f"final.{entry.name}", final.contiguous(), Kind.BATCH)
            if f"carry.{entry.name}" in table:
                carry = memory.empty(2 * self.batch, width, dtype=self.dtype)
                table.set(f"carry.{entry.name}", carry, Kind.CARRY)
                table.set(f"handed.{entry.name}", carry, Kind.HANDED)
                carries[entry.name] = carry
        return carries

    def _handed_last(self, carry: Tensor) -> Tensor:
        """What each row's first step in the order of time has handed back, [B, width], of the two halves of a carry."""
        if not self.scene.reverse or self.packing.is_dense:
            half = self.packing.steps & 1 if self.scene.reverse else 1
            return carry[half * self.batch : (half + 1) * self.batch]
        return carry.index_select(0, self.packing.halves)

    def _columns(self, rows: int) -> int:
        """Memory for the gradients of the input gates, which are zero where a gate has none."""
        if not self.arrangement.idle:
            return self.take(rows, self.gates_width) if self.gates_width else 0
        zeros = torch.zeros(rows, self.gates_width, dtype=self.dtype)
        self.held.append(zeros)
        return zeros.data_ptr()

    def _direct(self, table: Table) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give a table memory for the gradients of side inputs, and for those of vectors, which are totals."""
        side: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        for n in self.inputs:
            if n.startswith("default.") and f"carry.{n[8:]}" in table:
                fresh = torch.zeros(threads.count(), self.widths[n[8:]], dtype=self.dtype)
                table.set(f"fresh.{n[8:]}", fresh, Kind.TOTALS)
                self.fresh[n] = fresh
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                side[n[2:]] = memory.empty(self.total, width, dtype=self.dtype)
                table.set(n, side[n[2:]], Kind.STEP)
            elif n.startswith("total."):
                totals[n[6:]] = torch.zeros(threads.count(), width, dtype=self.dtype)
                table.set(n, totals[n[6:]], Kind.TOTALS)
        return side, totals

    def _place(self, table: Table, first: int) -> None:
        """Let the kernel write the gradients of a stretch that starts at an entry to the memory that is kept for it."""
        width, size = self.gates_width, self.itemsize
        for gate, columns in self.layout.input_gates.items():
            table.place(f"d.x.{gate}", self._gates + (columns.start - first * width) * size, width, Kind.STEP)
        for index in self.arrangement.places:
            address, stride = self.columns(*self.arrangement.places[index])
            table.place(f"d.product.{index}", address - first * stride * size, stride, Kind.STEP)

    def columns(self, among_gates: bool, start: int) -> tuple[int, int]:
        """The address of a column of the gradients of gates, or of the other products, and their stride."""
        if among_gates:
            return self._gates + start * self.itemsize, self.gates_width
        return self._rest + start * self.itemsize, self.arrangement.rest


class _Products:
    """The large products after the loop: a stretch of time at a time, added up."""

    def __init__(self, run: Backward, several: bool) -> None:
        self._run = run
        self._tools = run.tools
        self._size = run.itemsize
        self._input = run.inputs["input"]
        self._parameters: dict[str, Tensor] = {}  # gradients
        self._apart: dict[int, tuple[Tensor, Tensor | None]] = {}  # of groups that are not stored as they are
        # What is computed transposed, where it belongs, and whether it is added there.
        self._transposed: dict[int, tuple[Tensor, Tensor, bool]] = {}
        self._once: dict[str, bool] = {}
        self._begun: set[int] = set()
        self._operands: dict[int, Tensor] = {}
        self._due_rows: dict[int, list[tuple[Tensor, int, int]]] = {}
        self._clock = next((i for i, n in enumerate(run.plan.graph.nodes) if n.name == "state.t"), 0)
        self._through: Tensor | None = None
        if run.gates_width and run.inputs["input"].requires_grad:
            weight = run.parameters["weight_ih"]
            self._right = (weight.data_ptr(), weight.stride(0), weight.stride(1))
            rows = (weight.data_ptr(), *weight.shape, weight.stride(0))
            self._packed = self._tools.packed_right(rows, transposed=False) if several and weight.stride(1) == 1 else 0
            self._through = memory.empty(run.total, weight.shape[1], dtype=weight.dtype)

    def take(self, entries: slice) -> None:
        """Multiply the gradients of a stretch."""
        run, count = self._run, entries.stop - entries.start
        for number, group in enumerate(run.arrangement.groups):
            operand = self._operand(group.operand, entries)
            width = sum(group.widths)
            weight, bias = self._targets(number, group, width, operand.shape[1])
            add = number in self._begun or (group.weight is not None and not self._once[group.weight])
            d = run.columns(group.among_gates, group.start)
            if run.clock is None:
                self._add(number, d, (width, count), operand, weight, bias, add)
            else:
                self._add_due(group, d, entries, operand, (weight, bias), add)
                self._begun.add(number)
        if not run.gates_width:
            return
        weight = self._gradient("weight_ih", slice(None))
        bias = self._gradient("bias_ih", slice(None)) if run.layout.input_bias else None
        d = run.columns(True, 0)
        self._add(-1, d, (run.gates_width, count), self._input[entries], weight, bias, -1 in self._begun)
        if self._through is not None:
            columns = self._through.shape[1]
            to = self._through.data_ptr() + entries.start * columns * self._size
            sizes = (count, columns, run.gates_width)
            self._tools.multiply(sizes, (*d, 1), self._right, (to, columns), packed=self._packed)

    def _targets(self, number: int, group: Group, width: int, columns: int) -> tuple[Tensor, Tensor | None]:
        """Where the gradients of a group's weights and biases go."""
        if group.weight is not None:
            bias = self._gradient(group.bias, group.rows) if group.bias is not None and group.biased else None
            return self._gradient(group.weight, group.rows), bias
        if number not in self._apart:
            like = self._run.dtype
            bias = memory.empty(width, dtype=like) if group.biased else None
            self._apart[number] = (memory.empty(width, columns, dtype=like), bias)
        return self._apart[number]

    def _gradient(self, name: str, rows: slice) -> Tensor:
        """Some rows of a parameter's gradient; the parameter's gradient is zero where no product writes it."""
        if name not in self._parameters:
            like = self._run.parameters[name]
            self._once[name] = self._run.arrangement.once(name, like.shape[0])
            self._parameters[name] = memory.empty(*like.shape, dtype=like.dtype)
            if not self._once[name]:
                self._parameters[name].zero_()
        whole = self._parameters[name]
        return whole if rows == slice(None) else whole[rows]

    def _add(
        self,
        number: int,
        d: tuple[int, int],
        sizes: tuple[int, int],
        right: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: bool,
    ) -> None:
        """Write dᵀ right to a weight's gradient, and the sums of d's columns to a bias's, or add them to what is there.

        Args:
            number: of the group; -1 for the product with the input.
            d: address and stride of [count, width]. sizes: width and count. right: [count, columns].
        """
        (address, stride), (width, count) = d, sizes
        columns = right.shape[1]
        sums = 0 if bias is None else bias.data_ptr()
        if columns < min(width, _TURNED):
            begun = number in self._begun
            if not begun:
                self._transposed[number] = (memory.empty(columns, width, dtype=weight.dtype), weight, add)
            to = (self._transposed[number][0].data_ptr(), width)
            a, b = (right.data_ptr(), right.stride(1), right.stride(0)), (address, stride, 1)
            self._tools.multiply((columns, width, count), a, b, to, add=begun, column_sums=sums, add_sums=add)
        else:
            b = (right.data_ptr(), right.stride(0), right.stride(1))
            to = (weight.data_ptr(), columns)
            a = (address, 1, stride)
            self._tools.multiply((width, columns, count), a, b, to, add=add, sums=sums, add_sums=add)
        self._begun.add(number)

    def _add_due(
        self,
        group: Group,
        d: tuple[int, int],
        entries: slice,
        operand: Tensor,
        targets: tuple[Tensor, Tensor | None],
        add: bool,
    ) -> None:
        """As `_add`, of a cell with a clock: each run of units takes only the rows in which it is due."""
        run, columns = self._run, operand.shape[1]
        (address, stride), (weight, bias) = d, targets
        if not add:
            weight.zero_()
            if bias is not None:
                bias.zero_()
        for rows, first, end in self._due(entries):
            for unit in accumulate(group.widths[:-1], initial=0):
                start = unit + first
                self._tools.multiply(
                    (end - first, columns, len(rows)),
                    (address + start * run.itemsize, 1, stride),
                    (operand.data_ptr(), operand.stride(0), operand.stride(1)),
                    (weight[start:].data_ptr(), columns),
                    add=True,
                    sums=0 if bias is None else bias[start:].data_ptr(),
                    add_sums=True,
                    chosen=rows.data_ptr(),
                )

    def _due(self, entries: slice) -> list[tuple[Tensor, int, int]]:
        """Rows of a stretch, and the first and last of the neighbouring units that are due at their steps alone."""
        if entries.start not in self._due_rows:
            run = self._run
            runs = np.asarray(run.clock).reshape(-1, 3)
            time = self._operand(self._clock, entries)[:, 0].numpy().astype(np.int32)
            sets = (time[:, None] % runs[:, 2].astype(np.int32) == 0) @ (1 << np.arange(len(runs)))
            found = []
            for chosen in np.unique(sets):
                rows = torch.from_numpy(np.flatnonzero(sets == chosen))
                edges = np.flatnonzero(np.diff([0, *(int(chosen) >> k & 1 for k in range(len(runs))), 0]))
                found += [(rows, int(runs[a, 0]), int(runs[b - 1, 1])) for a, b in edges.reshape(-1, 2)]
            self._due_rows[entries.start] = found
        return self._due_rows[entries.start]

    def give(self, found: dict[str, Tensor]) -> None:
        """Put the gradients of parameters and input, by name, beside those that are there."""
        for transposed, weight, add in self._transposed.values():
            if add:
                weight.add_(transposed.T)
            else:
                self._tools.transpose(matrix(transposed), weight.data_ptr(), weight.stride(0))
        for name, gradient in self._parameters.items():
            found[f"parameter.{name}"] = gradient
        if self._through is not None:
            found["input"] = found["input"] + self._through if "input" in found else self._through
        for number, (weight, bias) in self._apart.items():
            self._give_apart(found, self._run.arrangement.groups[number], weight, bias)

    def _give_apart(self, found: dict[str, Tensor], group: Group, weight: Tensor, bias: Tensor | None) -> None:
        layout, widths = self._run.layout, list(group.widths)
        parts = [None] * len(widths) if bias is None else bias.split(widths)
        for name, w, b in zip(group.names, weight.split(widths), parts, strict=True):
            product = layout.products.get(name)
            if product is None or not product.fixed:
                stored, rows = weight_parameter(layout, name)
                self._give(found, stored, rows, stored_gradient(layout, name, w))
                self._give(found, product.bias if product else None, rows, b)

    def _give(self, found: dict[str, Tensor], parameter: str | None, rows: slice, gradient: Tensor | None) -> None:
        """Add to the gradient of some rows of a parameter."""
        if parameter is None or gradient is None:
            return
        name, whole = f"parameter.{parameter}", self._run.parameters[parameter]
        if name not in found and gradient.shape == whole.shape:
            found[name] = gradient
            return
        if name not in found:
            found[name] = torch.zeros_like(whole)
        found[name][rows] += gradient

    def _operand(self, index: int, entries: slice) -> Tensor:
        """What a product read at some entries, [rows, width]."""
        run = self._run
        node = run.plan.graph.nodes[index]
        kind, _, rest = node.name.partition(".")
        if node.op == "leaf" and kind == "state" and not (run.packing.is_dense and run.reset is None):
            packing = run.packing
            before = packing.next_steps if run.scene.reverse else packing.previous_steps
            rows = run.sequences[rest].index_select(0, before[entries])
            if run.reset is not None:
                learned = run.inputs.get(f"default.{rest}")
                fixed = {e.name: e.initial for e, _ in run.layout.states}[rest]
                rows[run.reset[entries].bool()] = fixed if learned is None else learned
            return rows
        if index not in self._operands:
            self._operands[index] = self._whole_operand(index)
        return self._operands[index][entries]

    def _whole_operand(self, index: int) -> Tensor:
        run = self._run
        node = run.plan.graph.nodes[index]
        if node.op != "leaf":
            entry = next((e for e, i in run.plan.graph.outputs.items() if i == index), None)
            if entry is not None:
                return run.outputs(run.sequences[entry])
            start = 0
            for number, width in run.plan.saved_widths.items():
                if number == index:
                    break
                start += run.total * width
            return run.kept["saved"][start : start + run.total * node.width].view(run.total, node.width)
        kind, _, rest = node.name.partition(".")
        if kind == "state":
            return run.sequences[rest][run.batch :] if run.scene.reverse else run.sequences[rest]
        return run.inputs["input" if kind == "raw" else node.name]
