"""One direction of a layer on compiled kernels."""

import ctypes
import functools
import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.cells.contract import StateEntry
from elman.cells.layout import Layout
from elman.compiler.emit import Kernel
from elman.compiler.plan import Plan
from elman.engine import memory, reference
from elman.engine.call import LayerCall
from elman.engine.draws import threshold
from elman.engine.kernel import Kind, Table, chunks
from elman.engine.matrices import located, pattern
from elman.engine.products import Matrix, matrix, tools


@dataclass(slots=True)
class Scene:
    """What a run knows beside its tensors."""

    call: LayerCall
    reverse: bool
    names: tuple[str, ...]
    wanted: int
    training: bool
    draws: Mapping[str, Tensor]


@functools.lru_cache(maxsize=1024)
def parameter_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's parameters among a run's inputs."""
    return tuple(f"parameter.{p.name}" for p in layout.parameters)


@functools.lru_cache(maxsize=1024)
def gates_width(layout: Layout) -> int:
    """Rows of `weight_ih`: of all input gates together."""
    return max((rows.stop for rows in layout.input_gates.values()), default=0)


@functools.lru_cache(maxsize=1024)
def state_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's states among a run's inputs."""
    return tuple(f"state.{e.name}" for e, _ in layout.states)


@functools.lru_cache(maxsize=1024)
def default_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's learned states at resets among a run's inputs."""
    return tuple(f"default.{e.name}" for e, _ in layout.states)


class Run:
    """What a forward and a backward run share."""

    kernel: Kernel

    def __init__(self, scene: Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        self.scene = scene
        self.plan = plan
        self.inputs = inputs
        call = scene.call
        self.layout = plan.layout
        self.packing = call.packing
        self.dtype = call.input.dtype
        self.batch = call.packing.batch
        self.total = call.packing.total
        names = parameter_names(call.layout)
        self.parameters = {p.name: inputs[n] for p, n in zip(call.layout.parameters, names, strict=True)}
        self.constants = reference.constants(call.cell, call.layout.hidden_size, call.input)
        reset = call.reset
        if reset is not None and scene.reverse:
            reset = reference.reset_in_reverse(call, reset)
        self.reset = None if reset is None else reset.to(torch.uint8).contiguous()
        self.widths = {e.name: w for e, w in call.layout.states}
        self.tools = tools(self.dtype)
        self.itemsize = self.dtype.itemsize
        self.gates_width = gates_width(plan.layout)
        self.clock = clock_runs(plan)
        self.held: list[Tensor] = []
        memory.scratch.begin()

    def take(self, *shape: int) -> int:
        """The address of scratch memory for so many numbers."""
        return memory.scratch.take(math.prod(shape) * self.itemsize)

    def prepare(self, table: Table, backward: bool) -> Callable[[], object]:
        """The kernel of a table, ready to run."""
        matrices, patterns, names = self.matrices(), self.patterns(), tuple(self.widths)
        take, clock = memory.scratch.take, self.clock
        direction = (backward, self.scene.reverse)
        return table.prepare(matrices, patterns, self.packing, self.reset, direction, names, take, clock=clock)

    def stretches(self, row_bytes: int, backward: bool) -> list[tuple[slice, slice]]:
        """Stretches of time, as steps and entries, in the order in which they run."""
        found = chunks(self.packing, row_bytes, self.kernel)
        return found[::-1] if backward != self.scene.reverse else found

    def outputs(self, sequence: Tensor) -> Tensor:
        """Of a state's sequence, with its initial state before or behind it, what follows the steps, [N, width]."""
        return sequence[: self.total] if self.scene.reverse else sequence[self.batch :]

    def matrices(self) -> dict[str, Matrix]:
        """All products' matrices, by the names of the graph's nodes."""
        names = self.plan.product_names
        return {n: located(self.layout, n, self.parameters, self.constants, self.held) for n in names}

    def patterns(self) -> dict[str, Tensor]:
        """Where structured matrices have weights."""
        return patterns_of(self.layout, self.plan.product_names)

    def units(self, table: Table) -> None:
        """Give a table the per-unit values: vectors, constants, biases, defaults."""
        for n in self.layout.vectors:
            table.set(f"vector.{n}", self.parameters[n].contiguous(), Kind.UNITS)
        for n, v in self.constants.items():
            if v.dim() == 1:
                table.set(f"constant.{n}", v.to(self.dtype).contiguous(), Kind.UNITS)
        for p in self.layout.products.values():
            if p.bias is not None:
                table.set(f"bias.{p.name}", self.parameters[p.bias][p.rows].contiguous(), Kind.UNITS)

    def place_saved(self, table: Table, saved: Tensor) -> None:
        """Give a table what a forward run saves, one node after the other."""
        address = saved.data_ptr()
        for n, width in self.plan.saved_widths.items():
            table.place(f"saved.{n}", address, width, Kind.STEP)
            address += self.total * width * self.itemsize

    def states(self, table: Table, sequences: Mapping[str, Tensor]) -> None:
        """Give a table the states' sequences, and where they are read before a step."""
        for entry, width in self.layout.states:
            sequence = sequences[entry.name]
            table.set(f"previous.{entry.name}", sequence, Kind.PREVIOUS)
            table.set(f"next.{entry.name}", sequence, Kind.NEXT)
            if self.reset is None and (self.packing.is_dense or not self.scene.reverse):
                table.set(f"state.{entry.name}", sequence, Kind.ENTERED)
            else:
                table.place(f"state.{entry.name}", self.take(self.batch, width), width, Kind.ENTERED)
            if self.reset is not None:
                default = self.inputs.get(f"default.{entry.name}")
                if default is None:
                    default = torch.full((width,), entry.initial, dtype=self.dtype)
                table.set(f"default.{entry.name}", default.contiguous(), Kind.UNITS)

    def draws(self, table: Table) -> None:
        """Tell a table how the random choices are made."""
        for declared, _ in self.layout.draws:
            rows, chance = self.scene.draws[declared.name], declared.probability
            table.draw(declared.name, rows, not declared.locked, threshold(chance))

    def side_inputs(self, table: Table) -> None:
        """Give a table the inputs that are read as they are."""
        for n, v in self.inputs.items():
            kind = n.partition(".")[0]
            if kind in ("extra", "below") or n == "input":
                key = "raw" if n == "input" else n
                if key in table:
                    table.set(key, v.contiguous(), Kind.STEP)


_RUNS = 64  # of units that a kernel can tell apart by their periods


@functools.lru_cache(maxsize=1024)
def clock_runs(plan: Plan) -> "array[int] | None":
    """First unit, end and period of each run of units with one period, of a plan with a clock; None: always due."""
    if plan.clock is None:
        return None
    periods = np.asarray(plan.cell.constants(plan.layout.hidden_size)[plan.clock], dtype=float)
    starts = [0, *(np.flatnonzero(np.diff(periods)) + 1)]
    chosen = periods[starts]
    if len(starts) > _RUNS or not ((chosen >= 1) & (chosen == np.floor(chosen)) & (chosen < 1 << 24)).all():
        return None
    ends = [*starts[1:], len(periods)]
    return array("q", [int(n) for run in zip(starts, ends, chosen, strict=True) for n in run])


@functools.lru_cache(maxsize=1024)
def patterns_of(layout: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Where the structured ones of these products have weights, by name."""
    found = {n: pattern(layout, n) for n in names}
    return {n: p for n, p in found.items() if p is not None}


class Forward(Run):
    """A forward run.

    Attributes:
        sequences: for each state entry [B + N, width]: the initial state, then the packed sequence.
        saved: what backward reads and cannot compute again: [N, width] of each node, one after the other; or None.
    """

    def __init__(self, scene: Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        super().__init__(scene, plan, inputs)
        self.kernel = plan.training if scene.training else plan.inference
        self.sequences: dict[str, Tensor] = {}
        self.saved: Tensor | None = None

    def run(self) -> tuple[Tensor, ...]:
        """The wanted sequences, [N, width] each, then the final states, [B, width]."""
        table = Table(self.kernel, self.dtype, self.batch)
        for entry, width in self.layout.states:
            sequence = memory.empty(self.batch + self.total, width, dtype=self.dtype)
            self._start(sequence, entry, width)
            self.sequences[entry.name] = sequence
        self.states(table, self.sequences)
        self.units(table)
        self.draws(table)
        self.side_inputs(table)
        if self.scene.training and self.plan.saved_widths:
            self.saved = memory.empty(self.total * sum(self.plan.saved_widths.values()), dtype=self.dtype)
            self.place_saved(table, self.saved)
        run = self.prepare(table, backward=False)
        if self.gates_width:
            self._stretches(table, run)
        else:
            run()
        return self._results()

    def _start(self, sequence: Tensor, entry: StateEntry, width: int) -> None:
        """Write the initial state."""
        start = self.total if self.scene.reverse else 0
        address = sequence.data_ptr() + start * width * self.itemsize
        given = self.inputs.get(f"state.{entry.name}")
        if given is None:
            if entry.initial == 0:
                ctypes.memset(address, 0, self.batch * width * self.itemsize)
            else:
                sequence[start : start + self.batch] = entry.initial
        elif given.is_contiguous() and given.dtype == self.dtype:
            ctypes.memmove(address, given.data_ptr(), self.batch * width * self.itemsize)
        else:
            sequence[start : start + self.batch] = given

    def _stretches(self, table: Table, run: Callable[[], object]) -> None:
        """Stretch by stretch of time, the products with the input, then the loop."""
        x = self.inputs["input"]
        weight, width, size = self.parameters["weight_ih"], self.gates_width, self.itemsize
        bias = self.parameters["bias_ih"].contiguous() if self.layout.input_bias else None
        stretches = self.stretches(width * size, backward=False)
        start, a = x.data_ptr(), x.stride()
        right = (weight.data_ptr(), weight.stride(1), weight.stride(0))
        several = len(stretches) > 1 and weight.stride(1) == 1
        packed = self.tools.packed_right(matrix(weight), transposed=True) if several else 0
        rows = self.take(max(entries.stop - entries.start for _, entries in stretches), width)
        for steps, entries in stretches:
            first = entries.start
            self.tools.multiply(
                (entries.stop - first, width, x.shape[1]),
                (start + first * a[0] * size, *a),
                right,
                (rows, width),
                0 if bias is None else bias.data_ptr(),
                packed=packed,
            )
            for gate, columns in self.layout.input_gates.items():
                table.place(f"x.{gate}", rows + (columns.start - first * width) * size, width, Kind.STEP)
            table.steps(steps.start, steps.stop)
            run()

    def _results(self) -> tuple[Tensor, ...]:
        sequences, finals = [], []
        for k, (entry, width) in enumerate(self.layout.states):
            whole = self.sequences[entry.name]
            if self.packing.is_dense or self.scene.reverse:
                final = torch.empty((self.batch, width), dtype=self.dtype)
                start = 0 if self.scene.reverse else self.total * width * self.itemsize
                ctypes.memmove(final.data_ptr(), whole.data_ptr() + start, self.batch * width * self.itemsize)
            else:
                final = whole.index_select(0, self.packing.last_steps + self.batch)
            sequence = self.outputs(whole) if k < self.scene.wanted else None
            if entry.dtype == "int64":
                final, sequence = final.to(torch.int64), None if sequence is None else sequence.to(torch.int64)
            finals.append(final)
            if sequence is not None:
                sequences.append(sequence)
        return (*sequences, *finals)

    def kept(self) -> dict[str, Tensor]:
        """What backward needs beside the inputs."""
        kept = {f"sequence.{n}": v for n, v in self.sequences.items()}
        return kept if self.saved is None else kept | {"saved": self.saved}
