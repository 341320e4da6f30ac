"""What a cell is: its declarations and its step.

A cell declares what it needs (gates, states, vectors, products) and computes one time step from symbols or tensors
alike. Widths are written as `"H"` (hidden size), `"I"` (input size of the layer), `"R"` (width of the first state,
which is what the recurrent products read; H unless declared or projected) or as a number. Layer and engine
turn the declarations into parameters and loops; see `elman.cells.layout`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from elman.cells.initial import Initial
from elman.cells.structure import Dense, Structure

if TYPE_CHECKING:
    import numpy as np

_DENSE = Dense()

Width = int | Literal["H", "I", "R"]


@dataclass(frozen=True)
class Gate:
    """A block of rows of `weight_ih` or `weight_hh`."""

    name: str
    width: Width = "H"


@dataclass(frozen=True)
class StateEntry:
    """One vector that the cell carries from step to step.

    `initial` fills it at the start of a sequence and after a reset. `int64` entries count steps and carry no gradient.
    """

    name: str
    width: Width = "H"
    initial: float = 0.0
    dtype: Literal["float", "int64"] = "float"


@dataclass(frozen=True)
class Vector:
    """A learned parameter with one value for each unit, stored as `<name>_l<k>`."""

    name: str
    width: Width = "H"


@dataclass(frozen=True)
class Product:
    """A matrix of its own, `u.<name>(v) = W v + b`, stored as `weight_<name>_l<k>` and `bias_<name>_l<k>`.

    A `fixed` product takes its matrix, without a bias, from the cell's `constants` and is not trained.
    """

    name: str
    input: Width
    output: Width = "H"
    bias: bool = True
    structure: Structure = _DENSE
    fixed: bool = False


@dataclass(frozen=True)
class Extra:
    """A further input of each time step, such as a time gap; `default` serves where the caller gives none."""

    name: str
    width: int = 1
    default: float | None = None


@dataclass(frozen=True)
class Draw:
    """A random choice for each unit of each row, read as `x.<name>`: true with `probability`, in [0, 1).

    It is made afresh at each step, or where `locked` once for a row. What chooses is named in the call (see
    `elman.Noise`), so that the same place draws the same in chunks, in any order of rows and on every engine.
    """

    name: str
    probability: float
    width: Width = "H"
    locked: bool = False


class Cell:
    """A recurrent cell: subclass it, declare its parts, write `step`.

    Everything declared here has a default; a cell needs `gates` and `step`. Cells are immutable: options are the
    fields of a frozen dataclass, from which declarations may be computed as properties.
    """

    @property
    def gates(self) -> tuple[str | Gate, ...]:
        """Row blocks of both `weight_ih` and `weight_hh`, in storage order."""
        return ()

    @property
    def input_gates(self) -> tuple[str | Gate, ...]:
        """Row blocks of `weight_ih`: each gives `x.<gate> = W x_t + b`. Default: `gates`."""
        return self.gates

    @property
    def recurrent_gates(self) -> tuple[str | Gate, ...]:
        """Row blocks of `weight_hh`: each gives a product `u.<gate>(v) = U v + b`, v [B, R]. Default: `gates`."""
        return self.gates

    @property
    def recurrent_structure(self) -> Structure:
        """The structure of `weight_hh`, the same for each gate."""
        return Dense()

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        """What the cell carries; the first entry is its output. An entry named `t` is the step index, [1], int64."""
        return ("h",)

    @property
    def vectors(self) -> tuple[str | Vector, ...]:
        """Per-unit parameters, read as `p.<name>`."""
        return ()

    @property
    def biases(self) -> tuple[str, ...]:
        """Per-unit biases beside those of gates and products, [H], read as `p.<name>`; `bias=False` makes them 0."""
        return ()

    @property
    def products(self) -> tuple[Product, ...]:
        """Matrices beside the recurrent gates, called as `u.<name>(v)`."""
        return ()

    @property
    def equal_sizes(self) -> bool:
        """Whether a layer's input must be as wide as its hidden size, as where the step adds `x.raw` to its state."""
        return False

    @property
    def extras(self) -> tuple[str | Extra, ...]:
        """Further inputs of each step, read as `x.<name>`."""
        return ()

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Random choices of each step, read as `x.<name>`, for `where(x.<name>, a, b)`."""
        return ()

    @property
    def below(self) -> tuple[str, ...]:
        """States of the layer below, at the same time step, that `step` reads as `x.below.<name>`."""
        return ()

    @property
    def input_bias(self) -> bool:
        """Whether `x.<gate>` has a bias (`bias_ih`)."""
        return True

    @property
    def input_within(self) -> bool:
        """Whether the step takes the products with its input itself, `u["x.<gate>"](v)` of a v [B, I] that it makes.

        There is no `x.<gate>` then, and the products are in the loop, not ahead of it.
        """
        return False

    @property
    def recurrent_bias(self) -> bool:
        """Whether `u.<gate>` has a bias (`bias_hh`)."""
        return True

    @property
    def initial(self) -> Mapping[str, Initial]:
        """Initial values: for a parameter (`weight_hh`: each gate's rows apart), or one gate of it (`bias_ih.f`).

        What is not named is drawn from U(-1/√H, 1/√H), as in torch.nn.
        """
        return {}

    @property
    def keeping(self) -> Mapping[str, int]:
        """Biases that decide how long the state is kept, the forget gate's first: 1 where a large one keeps, else -1.

        Each is named as in `initial`. `forget_bias` sets the first, chrono initialisation all.
        """
        return {}

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that are stored with the others but not trained, such as `weight_hh` of a random reservoir."""
        return ()

    def constants(self, hidden_size: int) -> "Mapping[str, np.ndarray[Any, Any]]":
        """Fixed values, read as `p.<name>` ([width]), or the matrices of fixed products ([output, input])."""
        return {}

    def at_layer(self, layer: int) -> "Cell":
        """The cell that layer `layer` (from 0, the lowest) of a stack runs; its states have the same names."""
        return self

    def evaluated(self) -> "Cell":
        """The cell that runs in evaluation, with the same states and parameters; options that draw masks end here."""
        return self

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        """One time step. Shapes are [B, width].

        Args:
            x: the inputs of the step: `x.<gate>`, `x.raw` ([B, I]), `x.<extra>`, `x.<draw>`, `x.below.<state>`.
            u: the products: `u.<gate>(v)`, `u.<product>(v)`, or `u["name"](v)`.
            s: the state before the step: `s.<entry>`.
            p: vectors and constants: `p.<name>`.

        Returns:
            `self.State(...)` with the state after the step.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    @property
    def State(self) -> Any:  # noqa: N802  (a type)
        """The named tuple of this cell's states."""
        return state_type(tuple(e.name for e in entries(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def entries(cell: Cell) -> tuple[StateEntry, ...]:
    """The cell's state entries with their defaults filled in."""
    return tuple(_entry(e) for e in cell.state)


def _entry(entry: str | StateEntry) -> StateEntry:
    if isinstance(entry, StateEntry):
        return entry
    return StateEntry("t", width=1, dtype="int64") if entry == "t" else StateEntry(entry)


@cache
def state_type(names: tuple[str, ...]) -> Any:
    """The named tuple with these fields; it equals a plain tuple and pickles by its names."""
    base = NamedTuple("State", [(name, Any) for name in names])  # type: ignore[misc]
    return type("State", (base,), {"__slots__": (), "__reduce__": lambda s: (_state, (names, tuple(s)))})


def _state(names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return state_type(names)(*values)
