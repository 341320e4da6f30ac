"""What happens between the layers of a stack: directions are merged, outputs dropped, inputs added or set beside."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.engine import draws, memory
from elman.engine.draws import Noise
from elman.engine.packing import Packing
from elman.nn.options import Merge, Options


def merged(directions: Sequence[Tensor], how: Merge) -> Tensor:
    """The directions' sequences, [..., width] each, as one: side by side, or their sum or mean."""
    if len(directions) == 1:
        return directions[0]
    if how == "concatenate":
        beside: Tensor = _Beside.apply(*directions)  # type: ignore[no-untyped-call]
        return beside
    total = directions[0] + directions[1]
    return total if how == "sum" else total / 2


class _Beside(torch.autograd.Function):
    """`torch.cat(parts, -1)`, in memory from the pool."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[-1] for part in parts]
        whole = memory.empty_like(parts[0], *parts[0].shape[:-1], sum(ctx.widths))
        return torch.cat(parts, dim=-1, out=whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].split(ctx.widths, dim=-1)


class Wiring:
    """How layers are joined.

    Args:
        options: of the stack.
        num_layers: layers.
    """

    def __init__(self, options: Options, num_layers: int) -> None:
        self._options = options
        self._locked = options.places(num_layers)
        if len(self._locked) != num_layers + 1:
            wanted = f"a probability, or {num_layers + 1} of them: of the input, and of each layer's output"
            raise ValueError(f"locked_dropout must be {wanted}, got {options.locked_dropout!r}")
        self._last = num_layers - 1
        self.skips: list[bool] = []  # of each layer: whether its input is added to its output

    @property
    def plain(self) -> bool:
        """Whether a layer's input is the merged output of the layer below, but for dropout."""
        return not self._options.dense and not any(self.skips)

    @cached_property
    def trivial(self) -> bool:
        """Whether there is nothing to do at all."""
        return self.plain and not self._options.dropout and not any(self._locked)

    def enter(self, x: Tensor, packing: Packing, noise: Noise | None) -> Tensor:
        """The input of the lowest layer, [N, I] or [T, B, I]."""
        return self._lock(x, 0, packing, noise)

    def leave(
        self, level: int, x: Tensor, output: Tensor, packing: Packing, noise: Noise | None, named: bool
    ) -> Tensor:
        """The input of the next layer, or the output of the stack.

        Args:
            level: of the layer.
            x: its input, [N, width] or [T, B, width].
            output: what it gave, in the same form.
            packing: of both.
            noise: None in evaluation.
            named: whether `dropout` draws from the noise too; else as torch.nn does.
        """
        if noise is not None:
            output = self._lock(output, level + 1, packing, noise)
            if self._options.dropout and level < self._last:
                output = self._drop(output, level, packing, noise, named)
        if self.skips[level]:
            return x + output
        return merged((x, output), "concatenate") if self._options.dense and level < self._last else output

    def _lock(self, x: Tensor, place: int, packing: Packing, noise: Noise | None) -> Tensor:
        chance = self._locked[place]
        if noise is None or not chance:
            return x
        return locked(x, chance, "locked_dropout", place, packing, noise)

    def _drop(self, x: Tensor, level: int, packing: Packing, noise: Noise, named: bool) -> Tensor:
        chance = self._options.dropout
        if not named or chance == 1:
            return F.dropout(x, chance)
        return draws.masked(x, draws.Keyed(noise, "dropout", level), True, chance, packing)


def locked(x: Tensor, chance: float, purpose: str, place: int, packing: Packing, noise: Noise) -> Tensor:
    """[N, width] or [T, B, width], units of a row dropped at all steps alike, the others scaled by 1 / (1 - chance).

    Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016.
    """
    return draws.masked(x, draws.Keyed(noise, purpose, place), False, chance, packing)


def weight_mask(weight: Tensor, chance: float, place: int, noise: Noise) -> Tensor:
    """A mask of a matrix, the same for all rows and steps: 0 where a weight is dropped, else 1 / (1 - chance).

    DropConnect: Wan, Zeiler, Zhang, LeCun & Fergus, "Regularization of neural networks using DropConnect", ICML 2013.
    """
    once = Packing.dense(1, weight.shape[0], weight.device)
    table = draws.rows(Noise(noise.seed), "weight_dropout", place, once)
    return draws.mask(table, False, chance, once, weight.shape[1], (0.0, 1 / (1 - chance)), weight.dtype)
