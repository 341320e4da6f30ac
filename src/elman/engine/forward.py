"""One direction of a layer on compiled kernels."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elman.cells.layout import Layout
from elman.compiler.plan import Plan
from elman.engine import memory, reference
from elman.engine.call import LayerCall
from elman.engine.kernel import Kind, Table, chunks
from elman.engine.matrices import dense, pattern
from elman.engine.products import Packed, multiply


@dataclass(frozen=True)
class Scene:
    """What a run knows beside its tensors."""

    call: LayerCall
    reverse: bool
    names: tuple[str, ...]
    wanted: int
    training: bool


@functools.lru_cache(maxsize=1024)
def parameter_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's parameters among a run's inputs."""
    return tuple(f"parameter.{p.name}" for p in layout.parameters)


@functools.lru_cache(maxsize=1024)
def state_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's states among a run's inputs."""
    return tuple(f"state.{e.name}" for e, _ in layout.states)


class Run:
    """What a forward and a backward run share."""

    def __init__(self, scene: Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        self.scene = scene
        self.plan = plan
        self.inputs = inputs
        call = scene.call
        self.layout = call.layout
        self.packing = call.packing
        self.dtype = call.input.dtype
        self.batch = call.packing.batch
        self.total = call.packing.total
        names = parameter_names(call.layout)
        self.parameters = {p.name: inputs[n] for p, n in zip(call.layout.parameters, names, strict=True)}
        self.constants = reference.constants(call.cell, call.layout.hidden_size, call.input)
        reset = call.reset
        if reset is not None and scene.reverse:
            reset = reference.reset_in_reverse(call, reset).index_select(0, call.packing.reversal)
        self.reset = None if reset is None else reset.to(torch.uint8).contiguous()
        self.widths = {e.name: w for e, w in call.layout.states}
        self.gate_widths = {g: r.stop - r.start for g, r in call.layout.input_gates.items()}

    def empty(self, rows: int, width: int) -> Tensor:
        """Memory for a kernel's rows."""
        return memory.empty(rows, width, dtype=self.dtype)

    def in_order(self, tensor: Tensor) -> Tensor:
        """[N, *] in the order of this direction's steps, or back."""
        return tensor.index_select(0, self.packing.reversal) if self.scene.reverse else tensor

    def matrices(self) -> dict[str, Tensor]:
        """All products' matrices, by the names of the graph's nodes."""
        names = {n.name for n in self.plan.products.values()}
        return {n: dense(self.layout, n, self.parameters, self.constants) for n in names}

    def patterns(self) -> dict[str, Tensor]:
        """Where structured matrices have weights."""
        return _patterns(self.plan)

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

    def states(self, table: Table, sequences: Mapping[str, Tensor]) -> None:
        """Give a table the states' sequences, and where they are read before a step."""
        for entry, width in self.layout.states:
            sequence = sequences[entry.name]
            table.set(f"previous.{entry.name}", sequence, Kind.PREVIOUS)
            table.set(f"next.{entry.name}", sequence, Kind.NEXT)
            if self.reset is None:
                table.set(f"state.{entry.name}", sequence, Kind.ENTERED)
            else:
                table.set(f"state.{entry.name}", self.empty(self.batch, width), Kind.ENTERED)
                default = torch.full((width,), entry.initial, dtype=self.dtype)
                table.set(f"default.{entry.name}", default, Kind.UNITS)

    def side_inputs(self, table: Table) -> None:
        """Give a table the inputs that are read as they are."""
        for n, v in self.inputs.items():
            kind = n.partition(".")[0]
            if kind in ("extra", "below") or n == "input":
                key = "raw" if n == "input" else n
                if key in table:
                    table.set(key, self.in_order(v).contiguous(), Kind.STEP)


@functools.lru_cache(maxsize=1024)
def patterns_of(layout: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Where the structured ones of these products have weights, by name."""
    found = {n: pattern(layout, n) for n in names}
    return {n: p for n, p in found.items() if p is not None}


def _patterns(plan: Plan) -> dict[str, Tensor]:
    return patterns_of(plan.layout, tuple(sorted({n.name for n in plan.products.values()})))


class Forward(Run):
    """A forward run.

    Attributes:
        sequences: for each state entry [B + N, width]: the initial state, then the packed sequence.
        saved: what backward reads and cannot compute again, [N, width] each, by `saved.<node>`.
    """

    def __init__(self, scene: Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        super().__init__(scene, plan, inputs)
        self.kernel = plan.training if scene.training else plan.inference
        self.sequences: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}

    def run(self) -> tuple[Tensor, ...]:
        """The wanted sequences, [N, width] each in the caller's order of time, then the final states, [B, width]."""
        table = Table(self.kernel, self.dtype, self.batch)
        x = self.in_order(self.inputs["input"])
        weight = self.parameters.get("weight_ih")
        bias = self.parameters["bias_ih"].contiguous() if self.layout.input_bias else None
        for entry, width in self.layout.states:
            sequence = self.empty(self.batch + self.total, width)
            sequence[: self.batch] = self.inputs[f"state.{entry.name}"]
            self.sequences[entry.name] = sequence
        self.states(table, self.sequences)
        self.units(table)
        self.side_inputs(table)
        for n, width in self.kernel.buffers.items():
            if n.startswith("saved."):
                self.saved[n] = self.empty(self.total, width)
                table.set(n, self.saved[n], Kind.STEP)
        run = table.prepare(self.matrices(), self.patterns(), self.packing, self.reset, False, tuple(self.widths))
        if weight is None:
            run()
            return self._results()
        stretches = chunks(self.packing, weight.shape[0] * weight.element_size())
        right = weight.T if len(stretches) == 1 else Packed(weight.T)
        longest = max(entries.stop - entries.start for _, entries in stretches)
        rows = memory.empty(longest, weight.shape[0], dtype=self.dtype)
        for steps, entries in stretches:
            multiply(x[entries], right, bias, out=rows[: entries.stop - entries.start])
            for gate, columns in self.layout.input_gates.items():
                table.set(f"x.{gate}", rows, Kind.STEP, columns.start)
                table.shift(f"x.{gate}", entries.start)
            table.steps(steps.start, steps.stop)
            run()
        return self._results()

    def _results(self) -> tuple[Tensor, ...]:
        sequences, finals = [], []
        for k, (entry, _) in enumerate(self.layout.states):
            whole = self.sequences[entry.name]
            if self.packing.is_dense:
                final = whole[-self.batch :].clone()
            else:
                final = whole.index_select(0, self.packing.last_steps + self.batch)
            sequence = self.in_order(whole[self.batch :]) if k < self.scene.wanted else None
            if entry.dtype == "int64":
                final, sequence = final.to(torch.int64), None if sequence is None else sequence.to(torch.int64)
            finals.append(final)
            if sequence is not None:
                sequences.append(sequence)
        return (*sequences, *finals)

    def kept(self) -> dict[str, Tensor]:
        """What backward needs beside the inputs."""
        return {**{f"sequence.{n}": v for n, v in self.sequences.items()}, **self.saved}
