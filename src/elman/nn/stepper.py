"""Inference one step at a time, with the state kept between the calls."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from elman.nn.recurrent import Recurrent


class Stepper:
    """Steps of a unidirectional `Recurrent` for a fixed number of rows; no gradients.

    Args:
        module: the layers to step; their parameters are read when the stepper is made.
        batch_size: B, rows that step together.

    Attributes:
        state: the state after the last step, in the form that the module's `forward` takes and gives; None at the
            start. It may be assigned.

    Raises:
        ValueError: the module is bidirectional, or batch_size is not positive.
    """

    def __init__(self, module: Recurrent, batch_size: int = 1) -> None:
        if module.bidirectional:
            raise ValueError("a bidirectional layer cannot be stepped: its backward direction starts at the end")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._module = module
        self.batch_size = batch_size
        self.state: Any = None

    def __call__(self, input: Tensor, *, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        """One time step: [B, I] to [B, H]."""
        if input.dim() != 2 or input.shape[0] != self.batch_size:
            raise ValueError(f"input must be [B, I] with B = {self.batch_size}, got {tuple(input.shape)}")
        with torch.no_grad():
            output, self.state = self._module.step(input, self.state, extras=extras)
        return output  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Go back to the cell's default state, for all rows."""
        self.state = None
