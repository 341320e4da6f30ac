"""One time step of a layer, prepared: matrices packed, buffers in place, the products with the input in the kernel."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.compiler.plan import Plan
from elman.engine import reference, threads
from elman.engine.forward import clock_runs, patterns_of
from elman.engine.kernel import Kind, Table
from elman.engine.matrices import located
from elman.engine.packing import Packing

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
        names = {p for group in kernel.groups for p in group.products}
        held: list[Tensor] = []
        matrices = {n: located(layout, n, parameters, constants, held) for n in names}
        size = sum(rows * columns * dtype.itemsize for _, rows, columns, _ in matrices.values())
        workers = threads.count() if size >= _SHARED_FROM else 1
        self.states = [tuple(torch.zeros(batch, width, dtype=dtype) for _ in range(2)) for _, width in layout.states]
        self._held: list[Any] = []  # what the runs read
        self._runs = []
        pieces: list[int] = []
        for odd in (0, 1):
            taken = iter(pieces.copy())

            def take(size: int, taken: Iterator[int] = taken) -> int:
                """Memory that both steps share, so that the matrices are there once."""
                found = next(taken, None)
                if found is None:
                    self._held.append(torch.empty(size + 64, dtype=torch.uint8))
                    found = -(-self._held[-1].data_ptr() // 64) * 64
                    pieces.append(found)
                return found

            table = Table(kernel, dtype, batch)
            table.set("raw", raw[odd], Kind.BATCH)
            for (entry, _), pair in zip(layout.states, self.states, strict=True):
                table.set(f"state.{entry.name}", pair[odd], Kind.BATCH)
                table.set(f"next.{entry.name}", pair[1 - odd], Kind.BATCH)
            for n in layout.vectors:
                table.set(f"vector.{n}", parameters[n].contiguous(), Kind.UNITS)
            for n, v in constants.items():
                if v.dim() == 1:
                    table.set(f"constant.{n}", v.to(dtype).contiguous(), Kind.UNITS)
            for p in layout.products.values():
                if p.bias is not None:
                    table.set(f"bias.{p.name}", parameters[p.bias][p.rows], Kind.UNITS)
            packing = Packing.dense(1, batch, raw[0].device)
            found = patterns_of(layout, tuple(sorted(names)))
            self._held.append(table)
            clock = clock_runs(plan)
            self._runs.append(table.prepare(matrices, found, packing, None, (False, False), (), take, workers, clock))

    def run(self, odd: int) -> None:
        """Run a step."""
        self._runs[odd]()
