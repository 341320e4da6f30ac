"""Cells around cells: an option changes a cell's definition, and leaves what it does not name as it was."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elman.cells.contract import Cell, Draw, Extra, Gate, Product, StateEntry, Vector, entries
from elman.cells.initial import Initial
from elman.cells.structure import Structure


@dataclass(frozen=True)
class Wrapped(Cell):
    """A cell that is another in everything that a subclass does not override."""

    cell: Cell

    @property
    def input_gates(self) -> tuple[str | Gate, ...]:
        return self.cell.input_gates

    @property
    def recurrent_gates(self) -> tuple[str | Gate, ...]:
        return self.cell.recurrent_gates

    @property
    def recurrent_structure(self) -> Structure:
        return self.cell.recurrent_structure

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        return self.cell.state

    @property
    def vectors(self) -> tuple[str | Vector, ...]:
        return self.cell.vectors

    @property
    def biases(self) -> tuple[str, ...]:
        return self.cell.biases

    @property
    def products(self) -> tuple[Product, ...]:
        return self.cell.products

    @property
    def equal_sizes(self) -> bool:
        return self.cell.equal_sizes

    @property
    def extras(self) -> tuple[str | Extra, ...]:
        return self.cell.extras

    @property
    def draws(self) -> tuple[Draw, ...]:
        return self.cell.draws

    @property
    def below(self) -> tuple[str, ...]:
        return self.cell.below

    @property
    def input_bias(self) -> bool:
        return self.cell.input_bias

    @property
    def input_within(self) -> bool:
        return self.cell.input_within

    @property
    def recurrent_bias(self) -> bool:
        return self.cell.recurrent_bias

    @property
    def initial(self) -> Mapping[str, Initial]:
        return self.cell.initial

    @property
    def keeping(self) -> Mapping[str, int]:
        return self.cell.keeping

    @property
    def frozen(self) -> tuple[str, ...]:
        return self.cell.frozen

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        return self.cell.constants(hidden_size)

    def at_layer(self, layer: int) -> Cell:
        return replace(self, cell=self.cell.at_layer(layer))

    def evaluated(self) -> Cell:
        return replace(self, cell=self.cell.evaluated())

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.cell.step(x, u, s, p)


@dataclass(frozen=True)
class Unbiased(Wrapped):
    """A cell whose `biases` are zero and not stored: what `bias=False` makes of it."""

    @property
    def biases(self) -> tuple[str, ...]:
        return ()

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        import numpy as np

        return {**self.cell.constants(hidden_size), **{name: np.zeros(hidden_size) for name in self.cell.biases}}


@dataclass(frozen=True)
class Projected(Wrapped):
    """A cell whose output, and what the recurrent products read, is a learned projection: h_t = W_hr h̃_t.

    Sak, Senior & Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
    modeling", Interspeech 2014; torch.nn.LSTM's `proj_size`. For cells whose step uses its output only in products.

    Shapes: h [B, size]; weight_hh [G·H, size], weight_hr [size, H].
    """

    size: int

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        first, *others = entries(self.cell)
        return (replace(first, width=self.size), *others)

    @property
    def products(self) -> tuple[Product, ...]:
        return (*self.cell.products, Product("hr", input="H", output=self.size, bias=False))

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        whole, *others = self.cell.step(x, u, s, p)
        return self.State(u.hr(whole), *others)
