"""One time step of a layer, prepared: matrices packed, buffers in place, the products with the input in the kernel."""

import functools
from array import array

import torch
from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.compiler.plan import Plan
from elman.engine import matrices, reference, threads
from elman.engine.kernel import TURN, Kind, Table
from elman.engine.packing import Packing
from elman.engine.products import matrix
from elman.engine.program import AtOnce, callable_at
from elman.engine.written import clock_runs, patterns_of

_SHARED_FROM = 1 << 19  # bytes of matrices from which a second thread repays its start


class LayerStep:
    """Steps of one layer for B rows; no gradients.

    Args:
        cell, layout: the layer.
        parameters: by the names of `Layout.parameters`; read now.
        batch: B.
        raw: where the input of each step will stand, two tensors [B, I] for even and odd steps.

    Attributes:
        states: for each state entry the two tensors [B, width] between which it goes to and fro: an even step
            reads the first and writes the second.
        runs: what runs an even step, and an odd one.
        inputs: words of memory in which addresses stand for these: at `raw` that of the input.
        buffers: words of memory in which addresses stand for `run`: at `raw` that of the input, at `entries`, for each
            state entry, those of the state before and after the step.

    Raises:
        CannotCompile: the cell has no kernel.
        BuildError: the kernel cannot be built.
    """

    def __init__(
        self, cell: Cell, layout: Layout, parameters: dict[str, Tensor], batch: int, raw: tuple[Tensor, Tensor]
    ) -> None:
        plan = Plan(cell, layout, {}, within=True)
        kernel, layout = plan.inference, plan.layout
        dtype = raw[0].dtype
        constants = reference.constants(cell, layout.hidden_size, raw[0])
        names = sorted({p for group in kernel.groups for p in group.products})
        dense = {n: matrices.dense(layout, n, parameters, constants).contiguous() for n in names}
        size = sum(m.numel() * dtype.itemsize for m in dense.values())
        workers = threads.count() if size >= _SHARED_FROM else 1
        self.states = [tuple(torch.zeros(batch, width, dtype=dtype) for _ in range(2)) for _, width in layout.states]
        sink = AtOnce(own_memory=True)
        table = Table(kernel, dtype, batch, sink, workers)
        units = {f"vector.{n}": parameters[n] for n in layout.vectors}
        units |= {f"constant.{n}": v.to(dtype) for n, v in constants.items() if v.dim() == 1}
        units |= {f"bias.{p.name}": parameters[p.bias][p.rows] for p in layout.products.values() if p.bias is not None}
        for n, v in units.items():
            table.place(n, sink.constant(v.contiguous()), 0, Kind.UNITS)
        table.prepare(
            {n: matrix(m) for n, m in dense.items()},
            patterns_of(layout, tuple(names)),
            Packing.dense(1, batch, raw[0].device),
            0,
            (False, False),
            (),
            clock_runs(plan),
        )
        self._held = (sink, raw)
        self.runs: list[functools.partial[object]] = []
        self.inputs: list[array[int]] = []

        def runs(turn: int) -> tuple[functools.partial[object], "array[int]", "array[int]"]:
            function, call, buffers = table.alone(turn)
            return functools.partial(callable_at(function), sink.array(call)), call, buffers

        for odd in (0, 1):
            table.place("raw", raw[odd].data_ptr(), raw[odd].stride(0), Kind.BATCH)
            for (entry, width), pair in zip(layout.states, self.states, strict=True):
                table.place(f"state.{entry.name}", pair[odd].data_ptr(), width, Kind.BATCH)
                table.place(f"next.{entry.name}", pair[1 - odd].data_ptr(), width, Kind.BATCH)
            run, _, buffers = runs(odd)
            self.runs.append(run)
            self.inputs.append(buffers)
        self._run, self._call, self.buffers = runs(0)
        self.raw = table.address("raw")
        names = [entry.name for entry, _ in layout.states]
        self.entries = [(table.address(f"state.{name}"), table.address(f"next.{name}")) for name in names]

    def run(self) -> None:
        """A step between places of the caller's choice, which `buffers` says."""
        self._run()
        self._call[TURN] ^= 1
