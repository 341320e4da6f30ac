"""What is known of a cell: everything that its class says, at the sizes H and I of any layer."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from elman import cells
from elman.catalogue.docstring import Docstring, read
from elman.catalogue.sizes import size_formula
from elman.cells.contract import Cell
from elman.cells.layout import Layout, layout
from elman.cells.structure import Antisymmetric, BlockDiagonal, BlockTriangular, Dense, LowRank, Structure
from elman.compiler.formulas import Formulas, formulas
from elman.compiler.graph import CannotCompile
from elman.compiler.notation import Name, Plain

_UNITS = (240, 1680)  # hidden sizes that most numbers of blocks divide


@dataclass(frozen=True)
class Option:
    """A field of the cell's dataclass."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class Facts:
    """What is known of a cell.

    Args:
        name: the registered one, `module:Class`, or the class's own.
        cell: with its options.
    """

    name: str
    cell: Cell

    @property
    def where(self) -> str:
        """Module and class."""
        return f"{type(self.cell).__module__}.{type(self.cell).__qualname__}"

    @cached_property
    def docstring(self) -> Docstring:
        """Summary, notes and source."""
        return read(type(self.cell))

    @cached_property
    def _unit(self) -> int:
        for unit in _UNITS:
            try:
                self.layout(unit, 1)
            except ValueError as error:
                problem = error
            else:
                return unit
        raise problem

    def layout(self, hidden: int = 0, inputs: int = 0) -> Layout:
        """The cell's layout, by default at some H = I that the cell can have."""
        hidden = hidden or self._unit
        return layout(self.cell, hidden if self.cell.equal_sizes else inputs or hidden, hidden)

    @cached_property
    def formulas(self) -> Formulas | str:
        """The equations of the step, or why they cannot be printed."""
        try:
            return formulas(self.cell, self.layout(), dict.fromkeys(self.cell.below, self._unit))
        except CannotCompile as error:
            return str(error)

    @property
    def states(self) -> tuple[tuple[str, str], ...]:
        """Each state and its width; the first is the output."""
        names = [entry.name for entry, _ in self.layout().states]
        return tuple((name, self._size(lambda parts, k=k: parts.states[k][1])) for k, name in enumerate(names))

    @property
    def input_gates(self) -> tuple[str, ...]:
        """Row blocks of `weight_ih`."""
        return tuple(self.layout().input_gates)

    @property
    def recurrent_gates(self) -> tuple[str, ...]:
        """Row blocks of `weight_hh`."""
        return tuple(n for n, product in self.layout().products.items() if product.weight == "weight_hh")

    @property
    def products(self) -> tuple[str, ...]:
        """Products beside the recurrent gates."""
        return tuple(n for n in self.layout().products if n not in self.recurrent_gates)

    @property
    def extras(self) -> tuple[str, ...]:
        """Further inputs of each step, with their defaults."""
        found = self.layout().extras
        return tuple(e.name if e.default is None else f"{e.name} (default {e.default:g})" for e in found)

    @property
    def parameters(self) -> tuple[tuple[str, str, bool], ...]:
        """Name, shape and whether it is trained, of each parameter of a layer."""
        found = []
        for k, parameter in enumerate(self.layout().parameters):
            shape = [
                self._size(lambda parts, k=k, d=d: parts.parameters[k].shape[d]) for d in range(len(parameter.shape))
            ]
            found.append((parameter.name, f"[{', '.join(shape)}]", not parameter.frozen))
        return tuple(found)

    @property
    def parameter_count(self) -> str:
        """The number of all parameters of a layer, as a formula."""
        return self._size(lambda parts: sum(math.prod(p.shape) for p in parts.parameters))

    def _size(self, of: Any) -> str:
        formula = size_formula(lambda h, i: of(self.layout(h, i)), self._unit)
        return formula or f"{of(self.layout())} at H = I = {self._unit}"

    @property
    def structures(self) -> tuple[str, ...]:
        """The matrices that are not dense, in words."""
        found = []
        seen = set()
        for name, product in self.layout().products.items():
            recurrent = product.weight == "weight_hh"
            if product.fixed:
                found.append(f"{Plain().name(Name(name))} is a fixed matrix.")
            elif not (recurrent and product.weight in seen):
                found += _structure("U" if recurrent else Plain().name(Name("V", of=name)), product.structure)
            seen.add(product.weight)
        return tuple(found)

    @property
    def options(self) -> tuple[Option, ...]:
        """The fields of the cell's dataclass, with this cell's values as defaults."""
        return tuple(Option(name, _type(hint), repr(getattr(self.cell, name))) for name, hint in _fields(self.cell))

    @property
    def variants(self) -> tuple[tuple[str, Formulas], ...]:
        """For each other choice of an option: how it is written, and the equations that it changes."""
        return tuple(self._variants())

    def _variants(self) -> Iterator[tuple[str, Formulas]]:
        for name, hint in _fields(self.cell):
            for choice in _choices(hint):
                if choice == getattr(self.cell, name):
                    continue
                other = Facts(self.name, _changed(self.cell, name, choice)).formulas
                if isinstance(self.formulas, str) or isinstance(other, str):
                    continue
                changed = other.without(self.formulas)
                if changed.plain:
                    yield f"{name}={choice!r}".replace("'", '"'), changed


def facts(cell: str | type[Cell] | Cell) -> Facts:
    """What is known of a cell: a registered name, `module:Class`, a Cell class, or an instance with options.

    Raises:
        ValueError: no such cell, or its declarations do not fit together.
    """
    if isinstance(cell, str):
        return Facts(cell, cells.get(cell)())
    instance = cell() if inspect.isclass(cell) else cell
    return Facts(type(instance).__name__, instance)


def _fields(cell: Any) -> tuple[tuple[str, Any], ...]:
    """Name and type of each option."""
    if not dataclasses.is_dataclass(cell):
        return ()
    hints = typing.get_type_hints(type(cell))
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cell))


def _changed(cell: Any, name: str, choice: Any) -> Cell:
    changed: Cell = dataclasses.replace(cell, **{name: choice})
    return changed


def _structure(matrix: str, structure: Structure) -> list[str]:
    match structure:
        case BlockDiagonal(blocks):
            return [f"{matrix} is block-diagonal: {blocks} blocks."]
        case BlockTriangular(blocks):
            return [f"{matrix} is block-triangular: of {blocks} × {blocks} blocks those below the diagonal are zero."]
        case LowRank(rank):
            return [f"{matrix} has rank {rank}: it is a product of two matrices."]
        case Antisymmetric(gamma):
            return [f"A = {matrix} - {matrix}ᵀ - {gamma:g} I, where {matrix} is what is stored."]
        case Dense():
            return []


def _choices(hint: Any) -> tuple[Any, ...]:
    if hint is bool:
        return (False, True)
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    parts = typing.get_args(hint)
    if parts and typing.get_origin(hint) is not tuple:
        return " | ".join(map(_type, parts))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint)) if not parts else str(hint)
