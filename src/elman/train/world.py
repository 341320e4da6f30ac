"""The processes that train one model together. Alone, nothing here does anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from elman.errors import UsageError, UserError
from elman.nn.divided import Rows
from elman.train.config import TrainConfig
from elman.train.device import choose_device

Result = TypeVar("Result")


class World:
    """One process alone; see `elman.train.parallel.Together` for several.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: what this process computes on.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mean_gradients(self, parameters: list[torch.nn.Parameter], tokens: int) -> None:
        """Replace each gradient by the mean of all processes', weighted by their ``tokens``."""

    def norm(self, gradients: list[Tensor], divided: list[Tensor]) -> Tensor:
        """The norm of gradients that all processes have alike, and of others that are divided among them."""
        return nn.utils.get_total_norm([*gradients, *divided])

    def mean(self, value: float, tokens: int) -> tuple[float, int]:
        """The mean of all processes' values, weighted by ``tokens``, and the sum of these."""
        return value, tokens

    def agree(self, number: int, value: float) -> tuple[int, float]:
        """The largest of all processes' numbers, and of their values."""
        return number, value

    def told(self, error: UserError) -> UserError:
        """An error that all processes raise together, of which one need tell."""
        return error

    def gather(self, tree: Any) -> list[Any]:
        """All processes' trees, in order of rank; only the first process gets them."""
        return [tree]

    def first(self, function: Callable[[], Result], together: bool = False) -> Result:
        """What ``function`` returns, or raises, in the first process; the others call it only ``together``."""
        return function()

    def share(self, rows: Tensor, dim: int = 1) -> Tensor:
        """This process's part of the rows of a batch."""
        return rows

    def gathered(self, tensor: Tensor) -> Tensor:
        """All processes' tensors of one shape, stacked: ``[P, ...]``."""
        return tensor[None]

    def summed_share(self, tensor: Tensor) -> Tensor:
        """Of ``[P, ...]`` the sum over all processes of this one's entry, ``[...]``."""
        return tensor[0]

    def whole(self, part: Tensor, rows: Rows) -> Tensor:
        """Of a tensor whose rows are divided all of them, on the CPU; only the first process gets them."""
        return part


def start(config: TrainConfig) -> World:
    """The processes that ``--devices`` and ``--nodes``, or torchrun, ask for. Raises UsageError."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise UsageError(f"WORLD_SIZE must be a positive number, got {size!r}")
    alone = config.devices * config.nodes == 1
    if alone and int(size) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {size} without torchrun; unset it, or use --devices")
    if alone and int(size) == 1:
        return World(choose_device(config.device))
    try:
        from elman.train.parallel import start_together
    except ImportError as error:
        raise UsageError(f"several devices need Lightning Fabric ({error}): pip install 'elman[parallel]'") from None
    return start_together(config)
