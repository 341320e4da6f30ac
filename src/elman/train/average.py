"""Averages of the weights over the steps: they score better than the last ones, and cost a copy of the weights.

``ema`` is an exponential mean; ``swa`` the mean over the end of a run (Izmailov et al., "Averaging weights leads to
wider optima and better generalization", UAI 2018); ``asgd`` the mean since validation stalled (Polyak & Juditsky 1992;
begun as by Merity, Keskar & Socher, ICLR 2018, who run it with plain SGD at a constant rate: NT-ASGD).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from elman.train.config import TrainConfig


class Average:
    """The mean of a model's floating-point weights; without one as long as it has not begun.

    Attributes:
        weights: the mean, by the names of the model's state.
        count: steps in it; 0 before it begins.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.kind = config.average
        self.decay = config.average_decay
        self.start = config.average_start
        self.patience = config.average_patience
        self.weights: dict[str, Tensor] = {}
        self.count = 0
        self.begun = self.kind == "ema"

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights after a step; ``progress`` is the share of the run that is done."""
        if self.kind == "swa" and progress >= self.start:
            self.begun = True
        if not self.begun:
            return
        self.count += 1
        # the first steps of an exponential mean weigh as in a plain one, so that it does not cling to the first weights
        rate = max(1 - self.decay, 1 / self.count) if self.kind == "ema" else 1 / self.count
        for name, tensor in self._tensors():
            if self.count == 1:
                self.weights[name] = tensor.clone()
            else:
                self.weights[name].lerp_(tensor, rate)

    def hear(self, costs: list[float]) -> bool:
        """Take in the validation costs so far. Returns whether ``asgd`` begins now.

        It begins when the last cost is above the lowest of those at least ``patience`` evaluations ago.
        """
        if self.kind != "asgd" or self.begun or len(costs) <= self.patience:
            return False
        self.begun = costs[-1] > min(costs[: -self.patience])
        return self.begun

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averaged weights, if there are any yet."""
        own = {name: tensor.clone() for name, tensor in self._tensors()} if self.count else {}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors():
            if name in weights:
                tensor.copy_(weights[name])

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, tensor) for name, tensor in self.model.state_dict().items() if tensor.is_floating_point()]

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes up."""
        return {"weights": self.weights, "count": self.count, "begun": self.begun}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another average's state."""
        own = dict(self._tensors())
        self.weights = {name: tensor.to(own[name].device) for name, tensor in state["weights"].items()}
        self.count, self.begun = state["count"], state["begun"]
