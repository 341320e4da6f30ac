"""What a cell may declare: each mistake is one line that names the cell and what was expected."""

import keyword
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from elman.cells.contract import Cell, Draw, StateEntry, Width

_LISTS = (
    "input_gates",
    "recurrent_gates",
    "state",
    "vectors",
    "biases",
    "products",
    "extras",
    "draws",
    "below",
    "frozen",
)


def check_lists(cell: Cell) -> None:
    """Raise a ValueError unless a cell can be told from others, and its declarations are lists of names."""
    where = type(cell).__name__
    try:
        hash(cell)
    except TypeError as error:
        raise ValueError(
            f"{where} must be hashable, so that its kernels can be found again ({error}); make it a frozen dataclass "
            "whose fields are numbers, strings or tuples of them"
        ) from error
    for name in _LISTS:
        given = getattr(cell, name)
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ValueError(f"{where}.{name} must be a tuple, got {given!r}; of one name: ({str(given)!r},)")


def check_names(cell: Cell, what: str, names: Iterable[Any]) -> None:
    """Raise a ValueError unless these can be written behind a dot in `step`."""
    for name in names:
        fine = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        if not fine or (what == "state" and name.startswith("_")):
            raise ValueError(f"{type(cell).__name__}: the name of a {what} must be an identifier, got {name!r}")


def checked_width(cell: Cell, name: str, width: Width, widths: Mapping[str, int]) -> int:
    """A declared width as a number."""
    found = widths.get(width) if isinstance(width, str) else width
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        known = ", ".join(map(repr, widths))
        raise ValueError(f"{type(cell).__name__}: the width of {name!r} must be {known} or at least 1, got {width!r}")
    return found


def check_states(cell: Cell, states: Iterable[StateEntry]) -> None:
    """Raise a ValueError where a state entry has another dtype than there are."""
    for entry in states:
        if entry.dtype not in ("float", "int64"):
            raise ValueError(
                f'{type(cell).__name__}: the state {entry.name!r} must be "float" or "int64", got {entry.dtype!r}'
            )


def check_draws(cell: Cell, draws: Iterable[Draw]) -> None:
    """Raise a ValueError unless probabilities are such."""
    for draw in draws:
        if not 0 <= draw.probability < 1:
            raise ValueError(
                f"{type(cell).__name__}: the probability of {draw.name!r} must be at least 0 and below 1, "
                f"got {draw.probability!r}"
            )


def check_constants(cell: Cell, hidden_size: int, fixed: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError unless constants are arrays of numbers, and fixed products have their matrices.

    Args:
        fixed: shape of each, [output, input].
    """
    where, constants = type(cell).__name__, cell.constants(hidden_size)
    for name, value in constants.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"{where}: the constant {name!r} must be a numpy array of numbers, got {got}")
    for name, shape in fixed.items():
        if name not in constants:
            raise ValueError(f"{where}: the fixed product {name!r} needs its matrix, {shape}, among the constants")
        if constants[name].shape != shape:
            raise ValueError(
                f"{where}: the matrix of the fixed product {name!r} must be {shape}, got {constants[name].shape}"
            )
