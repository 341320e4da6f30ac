"""From losses to new weights: mixed precision, the mean over processes, clipping, the optimiser."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from elman.nn.divided import divided_rows
from elman.train import optim
from elman.train.config import TrainConfig
from elman.train.world import World

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Updater:
    """Collects gradients with :meth:`backward` and applies them with :meth:`step`.

    In fp16 the loss is scaled so that small gradients do not vanish; where a gradient overflows, the step is left out
    and the scale halved.

    Attributes:
        rows: of each parameter that is divided among the processes, by its name, the rows that this one has.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, world: World) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.rows = divided_rows(model)
        self.shared = [p for name, p in named if name not in self.rows]
        self.divided = [p for name, p in named if name in self.rows]
        self.device = self.parameters[0].device
        self.optimizer = optim.optimizer(self.parameters, config)
        self.clip = config.clip or math.inf
        self.dtype = PRECISIONS[config.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.world = world

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, objective: Tensor) -> None:
        """Add the gradients of a loss to those that wait."""
        self.scaler.scale(objective).backward()

    def gradient_norm(self, tokens: int) -> float:
        """Take the mean of all processes' gradients, weighted by their ``tokens``, clip it; returns its norm before."""
        self.world.mean_gradients(self.shared, tokens)
        self.scaler.unscale_(self.optimizer)
        shared, divided = ([p.grad for p in some if p.grad is not None] for some in (self.shared, self.divided))
        total = self.world.norm(shared, divided)
        norm = total.item()
        if not norm < self.clip:  # a short one would be multiplied by 1
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, total)
        return norm

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite only asks for a smaller scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def step(self, learning_rate: float) -> None:
        """Apply the gradients and forget them."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients that wait."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes up."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another updater's state. Raises ValueError or KeyError where it does not fit."""
        optimizer = state["optimizer"]
        for saved, group in zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True):
            saved["fused"] = group["fused"]  # how it computes is not of the run
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.forget()
