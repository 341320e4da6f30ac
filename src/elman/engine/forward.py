"""One direction of a layer on compiled kernels."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.compiler.plan import Plan
from elman.engine import memory, reference
from elman.engine.call import LayerCall
from elman.engine.kernel import Kind, Table, chunks, padded, vector_rows
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
        self.total = sum(call.packing.batch_sizes)
        self.parameters = {n.partition(".")[2]: v.detach() for n, v in inputs.items() if n.startswith("parameter.")}
        self.constants = reference.constants(call.cell, call.layout.hidden_size, call.input)
        reset = call.reset
        if reset is not None and scene.reverse:
            reset = reference.reset_in_reverse(call, reset).index_select(0, call.packing.reversal)
        self.reset = None if reset is None else reset.to(torch.uint8).contiguous()
        self.widths = {e.name: w for e, w in call.layout.states}
        self.gate_widths = {g: r.stop - r.start for g, r in call.layout.input_gates.items()}

    def empty(self, rows: int, width: int) -> Tensor:
        """Memory for a kernel's rows."""
        return memory.empty(rows, padded(width, self.dtype), dtype=self.dtype)

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

    def columns(self) -> dict[str, int]:
        """Where each input gate's padded columns start."""
        starts, start = {}, 0
        for gate, width in self.gate_widths.items():
            starts[gate] = start
            start += padded(width, self.dtype)
        return starts

    def input_weight(self) -> tuple[Tensor | None, Tensor | None]:
        """`weight_ih` and `bias_ih` with each gate's rows padded."""
        if not self.gate_widths:
            return None, None
        weight = self.parameters["weight_ih"]
        bias = self.parameters["bias_ih"] if self.layout.input_bias else None
        widths = set(self.gate_widths.values())
        if all(w == padded(w, self.dtype) for w in widths):
            return weight, bias
        if len(widths) == 1:
            (width,) = widths
            missing = padded(width, self.dtype) - width
            wide = F.pad(weight.reshape(-1, width, weight.shape[1]), (0, 0, 0, missing)).reshape(-1, weight.shape[1])
            return wide, None if bias is None else F.pad(bias.reshape(-1, width), (0, missing)).reshape(-1)
        rows = torch.tensor([start + k for g, start in self.columns().items() for k in range(self.gate_widths[g])])
        total = sum(padded(w, self.dtype) for w in self.gate_widths.values())
        wide = weight.new_zeros(total, weight.shape[1]).index_copy_(0, rows, weight)
        return wide, None if bias is None else bias.new_zeros(total).index_copy_(0, rows, bias)

    def units(self, table: Table) -> None:
        """Give a table the per-unit values: vectors, constants, biases, defaults."""
        for n in self.layout.vectors:
            table.set(f"vector.{n}", vector_rows(self.parameters[n]), Kind.UNITS)
        for n, v in self.constants.items():
            if v.dim() == 1:
                table.set(f"constant.{n}", vector_rows(v.to(self.dtype)), Kind.UNITS)
        for p in self.layout.products.values():
            if p.bias is not None:
                table.set(f"bias.{p.name}", vector_rows(self.parameters[p.bias][p.rows]), Kind.UNITS)

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
                default = torch.full((padded(width, self.dtype),), entry.initial, dtype=self.dtype)
                table.set(f"default.{entry.name}", default, Kind.UNITS)

    def side_inputs(self, table: Table) -> None:
        """Give a table the inputs that are read as they are."""
        for n, v in self.inputs.items():
            kind = n.partition(".")[0]
            if kind in ("extra", "below") or n == "input":
                key = "raw" if n == "input" else n
                if key in table:
                    table.set(key, vector_rows(self.in_order(v.detach())), Kind.STEP)


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
        sequences: for each state entry [B + N, padded width]: the initial state, then the packed sequence.
        saved: what backward reads and cannot compute again, [N, padded width] each, by `saved.<node>`.
    """

    def __init__(self, scene: Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        super().__init__(scene, plan, inputs)
        self.kernel = plan.training if scene.training else plan.inference
        self.sequences: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}

    def run(self) -> tuple[Tensor, ...]:
        """The wanted sequences, [N, width] each in the caller's order of time, then the final states, [B, width]."""
        table = Table(self.kernel, self.dtype, self.batch)
        x = self.in_order(self.inputs["input"].detach())
        weight, bias = self.input_weight()
        for entry, width in self.layout.states:
            sequence = self.empty(self.batch + self.total, width)
            sequence[: self.batch, :width] = self.inputs[f"state.{entry.name}"].detach()
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
            for gate, start in self.columns().items():
                table.set(f"x.{gate}", rows, Kind.STEP, start)
                table.shift(f"x.{gate}", entries.start)
            table.steps(steps.start, steps.stop)
            run()
        return self._results()

    def _results(self) -> tuple[Tensor, ...]:
        sequences, finals = [], []
        for k, (entry, width) in enumerate(self.layout.states):
            whole = self.sequences[entry.name][:, :width]
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
