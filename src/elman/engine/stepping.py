"""Time steps of prepared layers: matrices packed, buffers in place, the products with the input in the kernel."""

import functools
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.compiler import build
from elman.compiler.plan import Plan
from elman.engine import matrices, reference, threads
from elman.engine.form import gates_width
from elman.engine.kernel import TURN, Kind, Table
from elman.engine.packing import Packing
from elman.engine.products import matrix
from elman.engine.sinks import REALS, AtOnce, Words
from elman.engine.tensors import maker
from elman.engine.written import clock_runs, patterns_of

_SHARED_FROM = 1 << 19  # bytes of matrices from which a second thread repays its start
_WORD = 8
_INPUTS = ("input", "raw")  # the buffers of what the products with the input read, and of what the step itself does
_LINES = 1 << 12  # bytes of a layer's memory beside its matrices, at most


class LayerStep:
    """A step of one layer for B rows; no gradients.

    Args:
        cell, layout: the layer.
        parameters: by the names of `Layout.parameters`; read now.
        batch: B.
        input_size: I, what it reads of each row.
        dtype: of all numbers.

    Raises:
        CannotCompile: the cell has no kernel.
        BuildError: the kernel cannot be built.
    """

    def __init__(
        self, cell: Cell, layout: Layout, parameters: dict[str, Tensor], batch: int, input_size: int, dtype: torch.dtype
    ) -> None:
        plan = Plan(cell, layout, {})
        if plan.inference.ahead:  # with the input's products: they cannot be added up with the others
            plan = Plan(cell, layout, {}, within=True)
        kernel, layout = plan.inference, plan.layout
        like = torch.empty(0, dtype=dtype, device="cpu")
        constants = reference.constants(cell, layout.hidden_size, like)
        gates = {f"x.{gate}": rows for gate, rows in layout.input_gates.items()}
        names = sorted({p for group in kernel.groups if not group.inputs for p in group.products})
        dense = {n: matrices.dense(layout, n, parameters, constants).contiguous() for n in names}
        dense |= {n: parameters["weight_ih"][rows].contiguous() for n, rows in gates.items()}
        size = sum(m.numel() * dtype.itemsize for m in dense.values())
        workers = threads.count() if size >= _SHARED_FROM else 1
        sink = AtOnce(own_memory=size + size // 8 + _LINES)
        table = Table(kernel, dtype, batch, sink, workers)
        none = torch.zeros(gates_width(layout), dtype=dtype, device="cpu")
        units = {n: (parameters["bias_ih"] if layout.input_bias else none)[rows] for n, rows in gates.items()}
        units |= {f"vector.{n}": parameters[n] for n in layout.vectors}
        units |= {f"constant.{n}": v.to(dtype) for n, v in constants.items() if v.dim() == 1}
        units |= {f"bias.{p.name}": parameters[p.bias][p.rows] for p in layout.products.values() if p.bias is not None}
        for n, v in units.items():
            table.place(n, sink.constant(v.contiguous()), 0, Kind.UNITS)
        table.prepare(
            {n: matrix(m) for n, m in dense.items()},
            patterns_of(layout, tuple(names)),
            Packing.dense(1, batch, like.device),
            0,
            (False, False),
            (),
            clock_runs(plan),
        )
        for name in _INPUTS:
            table.place(name, 0, input_size, Kind.BATCH)
        for entry, width in layout.states:
            table.place(f"state.{entry.name}", 0, width, Kind.BATCH)
            table.place(f"next.{entry.name}", 0, width, Kind.BATCH)
        function, call, buffers = table.alone()
        self._held = (sink, buffers)
        at = buffers.buffer_info()[0]
        address = sink.array(call)
        inputs = [at + table.address(name) * _WORD for name in _INPUTS]
        self.words = (function, address, address + TURN * _WORD, *inputs)
        names = [entry.name for entry, _ in layout.states]
        self.places = [at + table.address(f"{when}.{name}") * _WORD for name in names for when in ("state", "next")]


class Steps:
    """Steps of layers, one above the other.

    Args:
        layers: from the lowest; each reads the first state entry of the one below.
        sizes: bytes of each state entry of a layer.
        dtype: of all numbers.
        own: for each state entry two tensors [layers, B, width], between which the state goes to and fro.

    Attributes:
        run: called with the addresses of the input and of the output, [B, I] and [B, H], and unless the state is its
            own, those of all state entries, [layers, B, width], before the step, and then behind it.
    """

    run: Callable[..., object]

    def __init__(
        self,
        layers: Sequence[LayerStep],
        sizes: Sequence[int],
        dtype: torch.dtype,
        own: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self._own = own
        pairs = [[v.data_ptr() for v in pair] for pair in own] or [[0, 0] for _ in sizes]
        of_layers = array("q", [word for layer in layers for word in layer.words])
        places = array("q", [place for layer in layers for place in layer.places])
        entries = array("q", [word for size, pair in zip(sizes, pairs, strict=True) for word in (size, *pair)])
        addresses = [words.buffer_info()[0] for words in (of_layers, places, entries)]
        self._words: Words = array("q", (len(layers), len(sizes), 0, 0, *addresses))
        held = (self._words, layers, of_layers, places, entries, own)
        self.run = _maker(dtype, build.instruction_set())(self._words.buffer_info()[0], bool(own), held)

    @property
    def taken(self) -> bool:
        """Whether the own state has been entered, or a step taken from it."""
        return bool(self._words[_TAKEN])

    @taken.setter
    def taken(self, taken: bool) -> None:
        self._words[_TAKEN] = taken

    @property
    def state(self) -> list[Tensor]:
        """The entries of the own state as they stand, [layers, B, width]; what the next step reads."""
        return [pair[self._words[_ODD]] for pair in self._own]


_ODD, _TAKEN = 2, 3  # among the words of a `Steps` in stepping.cpp


@functools.lru_cache(maxsize=8)
def _maker(dtype: torch.dtype, isa: str) -> Callable[[int, bool, object], Callable[..., object]]:
    """What makes the builtin function of some `Steps`."""
    library = build.load(Path(__file__).with_name("stepping.cpp").read_text(), REALS[dtype])
    return maker(library, "elman_stepping", 1)  # type: ignore[no-any-return]
