"""Parts of a loss that keep recurrent outputs small and slow."""

from __future__ import annotations

import torch
from torch import Tensor


def activation_penalties(outputs: Tensor, dropped: Tensor, ar: float, tar: float) -> Tensor:
    """Activation regularisation ``ar · mean(dropped²)`` and its temporal kin ``tar · mean((h_t - h_{t-1})²)``.

    Merity, McCann & Socher, "Revisiting activation regularization for language RNNs", 2017. ``outputs`` ``[T, B, H]``
    are those of the last layer, ``dropped`` the same after dropout. The value of the result is zero, so that the loss
    it is added to stays what it says; its gradient is the penalty's.
    """
    penalty = outputs.new_zeros(())
    if ar:
        penalty = penalty + ar * dropped.square().mean()
    if tar and len(outputs) > 1:
        penalty = penalty + tar * torch.diff(outputs, dim=0).square().mean()
    return penalty - penalty.detach()
