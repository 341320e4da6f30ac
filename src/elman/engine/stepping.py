"""Time steps of prepared layers: matrices packed, buffers in place, the products with the input in the kernel."""

import ctypes
import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.compiler import build
from elman.compiler.plan import Plan
from elman.engine import matrices, memory, reference, threads
from elman.engine.form import gates_width
from elman.engine.kernel import TURN, Kind, Table
from elman.engine.packing import Packing
from elman.engine.products import matrix
from elman.engine.sinks import REALS, AtOnce, Words
from elman.engine.tensors import like, maker, torch_words
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
        inputs: shape of the input, [B, I].
        start: of each state entry the default, [layers, B, width]; they are read at each step.
        carrying: whether steps go from an own state to the next, or each from one that is given.

    Attributes:
        run: called with the input; gives the output, [B, H]. Where the state is not its own, called with the input and,
            unless it is the default, all state entries; gives a list of the output and the next state's entries. None
            where a tensor does not have the right shape and dtype, or is not contiguous or not on the CPU.
        state: the entries of the own state as they stand; what the next step reads.
    """

    run: Callable[..., Any]

    def __init__(
        self, layers: Sequence[LayerStep], inputs: Sequence[int], start: Sequence[Tensor], carrying: bool
    ) -> None:
        dtype = start[0].dtype
        self._own = [(v.clone(), v.clone()) for v in start] if carrying else []
        pairs = [[v.data_ptr() for v in pair] for pair in self._own] or [[0, 0] for _ in start]
        of_layers = array("q", [word for layer in layers for word in layer.words])
        places = array("q", [place for layer in layers for place in layer.places])
        entries = array("q")
        for v, pair in zip(start, pairs, strict=True):
            entries.extend((v[0].numel() * dtype.itemsize, *pair, v.data_ptr(), *like(tuple(v.shape), dtype)))
        makes = memory.Tensors([v.shape for v in (start[0][0], *(() if carrying else start))], dtype).make
        addresses = [words.buffer_info()[0] for words in (of_layers, places, entries, torch_words())]
        objects = (makes, None)
        words = (len(layers), len(start), 0, 0, *addresses, *map(id, objects), *like(tuple(inputs), dtype))
        self._words: Words = array("q", words)
        held = (self._words, layers, of_layers, places, entries, start, self._own, objects)
        made = maker(_library(dtype, build.instruction_set()), "elman_stepping", 1)
        self.run = made(self._words.buffer_info()[0], carrying, held)

    @property
    def taken(self) -> bool:
        """Whether the own state has been entered, or a step taken from it."""
        return bool(self._words[_TAKEN])

    @taken.setter
    def taken(self, taken: bool) -> None:
        self._words[_TAKEN] = taken

    @property
    def state(self) -> list[Tensor]:
        """See the class: [layers, B, width] each."""
        return [pair[self._words[_ODD]] for pair in self._own]


_ODD, _TAKEN = 2, 3  # among the words of a `Steps` in stepping.cpp


_SAMPLED = 16  # numbers of each parameter that are compared, since torch does not count changes through `.data`


def unchanged(parameters: Mapping[str, Tensor]) -> Callable[[Mapping[str, Tensor | None]], int]:
    """What says whether those of a dictionary are still the same tensors, with the same numbers.

    Args:
        parameters: contiguous, on the CPU and of one dtype.
    """
    dtype = next(iter(parameters.values())).dtype
    rows = [(id(n), *like(tuple(v.shape), dtype), v.data_ptr(), v._version) for n, v in parameters.items()]
    table, name = array("q", [word for row in rows for word in row]), "_version"
    numbers = (id(name), len(rows), _SAMPLED, table.buffer_info()[0], 0)
    words = array("q", (torch_words().buffer_info()[0], *numbers))
    made = maker(_library(dtype, build.instruction_set()), "elman_unchanged")
    return made(words.buffer_info()[0], (words, table, name, list(parameters)))  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def _library(dtype: torch.dtype, isa: str) -> ctypes.CDLL:
    return build.load(Path(__file__).with_name("stepping.cpp").read_text(), REALS[dtype])
