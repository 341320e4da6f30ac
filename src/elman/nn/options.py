"""The options of a stack of layers, checked, and the cells that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

from elman.cells.contract import Cell, entries
from elman.cells.initial import Identity, Initial, Orthogonal
from elman.cells.options import LayerNorm, Mogrified, RecurrentDropout, Zoneout
from elman.cells.wrapped import Projected, Unbiased

Merge = Literal["concatenate", "sum", "mean"]
RecurrentInit = Literal["orthogonal", "identity"]


@dataclass(frozen=True)
class Options:
    """The options of `Recurrent` (see there) beside torch's, and `dropout`; what is wrong raises a ValueError."""

    dropout: float = 0.0
    locked_dropout: float | Sequence[float] = 0.0
    recurrent_dropout: float = 0.0
    recurrent_dropout_per_step: bool = False
    zoneout: float | Mapping[str, float] = 0.0
    weight_dropout: float = 0.0
    layer_norm: bool = False
    residual: bool = False
    dense: bool = False
    merge: Merge = "concatenate"
    learn_state: bool = False
    proj_size: int = 0
    forget_bias: float | None = None
    chrono: float | None = None
    recurrent_init: RecurrentInit | Initial | None = None
    mogrify: int = 0
    mogrify_rank: int = 0

    def __post_init__(self) -> None:
        probability("dropout", self.dropout, one=True)
        for name in ("recurrent_dropout", "weight_dropout"):
            probability(name, getattr(self, name))
        for name, value in self.zoneout.items() if isinstance(self.zoneout, Mapping) else [("", self.zoneout)]:
            probability(f"zoneout[{name!r}]" if name else "zoneout", value)
        for value in self.locked_dropout if isinstance(self.locked_dropout, Sequence) else [self.locked_dropout]:
            probability("locked_dropout", value)
        if self.merge not in get_args(Merge):
            raise ValueError(f"merge must be one of {', '.join(get_args(Merge))}, got {self.merge!r}")
        if self.residual and self.dense:
            raise ValueError("residual and dense exclude each other: outputs are added to the input, or set beside it")
        named = isinstance(self.recurrent_init, str) and self.recurrent_init in get_args(RecurrentInit)
        if not (self.recurrent_init is None or named or isinstance(self.recurrent_init, Initial)):
            known = " or ".join(map(repr, get_args(RecurrentInit)))
            raise ValueError(f"recurrent_init must be {known}, or an Initial, got {self.recurrent_init!r}")
        for name in ("mogrify", "mogrify_rank"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, 0 or more, got {getattr(self, name)!r}")
        if self.mogrify_rank and not self.mogrify:
            raise ValueError(f"mogrify_rank = {self.mogrify_rank} needs mogrify, the number of rounds")
        for name in ("forget_bias", "chrono"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value)
            ):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if self.chrono is not None and not self.chrono > 2:
            raise ValueError(f"chrono must be the longest dependency in steps, above 2, got {self.chrono!r}")
        if self.chrono is not None and self.forget_bias is not None:
            raise ValueError("chrono and forget_bias exclude each other: both set the forget gate's bias")

    @property
    def acts_at_random(self) -> bool:
        """Whether any option draws masks in training, `dropout` included."""
        inside = self.recurrent_dropout or self.weight_dropout or any(self.places(1)) or self.dropout
        return bool(inside or (any(self.zoneout.values()) if isinstance(self.zoneout, Mapping) else self.zoneout))

    def places(self, num_layers: int) -> tuple[float, ...]:
        """Locked dropout at each place: of the input, and of each layer's output."""
        if not isinstance(self.locked_dropout, Sequence):
            return (float(self.locked_dropout),) * (num_layers + 1)
        return tuple(map(float, self.locked_dropout))

    def initial(self) -> Initial | None:
        """What fills each gate's part of `weight_hh`."""
        named: dict[Any, Initial] = {"orthogonal": Orthogonal(), "identity": Identity()}
        if isinstance(self.recurrent_init, str):
            return named[self.recurrent_init]
        return self.recurrent_init

    def applied(self, cell: Cell, bias: bool) -> Cell:
        """The cell with the options that act inside the recurrence.

        Raises:
            ValueError: an option asks for something that the cell does not have.
        """
        what = [n for n in ("recurrent_dropout", "weight_dropout", "recurrent_init") if getattr(self, n)]
        if what and not cell.recurrent_gates:
            raise ValueError(f"{what[0]}: {cell!r} has no recurrent products (weight_hh)")
        if self.forget_bias is not None or self.chrono is not None:
            name = "chrono" if self.forget_bias is None else "forget_bias"
            if not cell.keeping:
                raise ValueError(f"{name}: {cell!r} names no bias that decides how long its state is kept")
        cell = Unbiased(cell) if cell.biases and not bias else cell
        if self.layer_norm:
            cell = LayerNorm(cell, bias)
        if self.proj_size:
            cell = Projected(cell, self.proj_size)
        if self.mogrify:
            cell = Mogrified(cell, self.mogrify, self.mogrify_rank)
        if self.recurrent_dropout:
            cell = RecurrentDropout(cell, float(self.recurrent_dropout), not self.recurrent_dropout_per_step)
        chances = self._chances(cell)
        return Zoneout(cell, chances) if chances else cell

    def _chances(self, cell: Cell) -> tuple[tuple[str, float], ...]:
        names = [entry.name for entry in entries(cell) if entry.dtype == "float"]
        if not isinstance(self.zoneout, Mapping):
            return tuple((name, float(self.zoneout)) for name in names) if self.zoneout else ()
        for name in self.zoneout:
            if name not in names:
                raise ValueError(f"zoneout names the state {name!r}; {cell!r} has {', '.join(names)}")
        return tuple((name, float(z)) for name, z in self.zoneout.items() if z)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def probability(name: str, value: object, one: bool = False) -> None:
    """Raise a ValueError unless a value is a probability: from 0 to 1, or `one` excepted, below 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 <= value < 1 or (one and value == 1)):  # type: ignore[operator]
        limits = "a probability from 0 to 1" if one else "a probability, at least 0 and below 1"
        raise ValueError(f"{name} must be {limits}, got {value!r}")


def per_layer(num_layers: int, **given: Any) -> tuple[int, dict[str, list[Any]]]:
    """How many layers there are, and each argument as a list with one value for each.

    Raises:
        ValueError: a sequence is empty, or not as long as another, or as `num_layers`.
    """
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    for name, length in lengths.items():
        if length == 0 or (num_layers != 1 and length != num_layers) or length != next(iter(lengths.values())):
            wanted = f"num_layers = {num_layers}" if num_layers != 1 else "as many as the other sequence has"
            raise ValueError(f"{name} must have a value for each layer ({wanted}), got {length}")
    count = next(iter(lengths.values()), num_layers)
    return count, {n: list(v) if isinstance(v, (list, tuple)) else [v] * count for n, v in given.items()}
