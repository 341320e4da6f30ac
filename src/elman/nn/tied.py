"""A matrix that a model uses at both ends: as the vectors of its tokens and as the weights of its softmax."""

from typing import Any

import torch
from torch import Tensor


def gradient_last(weight: Tensor) -> Tensor:
    """The same matrix, whose gradient waits for those of everything that is computed after this call.

    Autograd runs backward what was made last. Take this before the tokens are looked up, and give it to the softmax:
    the vectors' sparse gradient [N rows of V] is then there first, and the softmax's dense one [V, H] takes it in. The
    other way round their sum would be a second dense matrix. What the gradients are does not depend on it.
    """
    same: Tensor = _Last.apply(weight)  # type: ignore[no-untyped-call]
    return same


class _Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
