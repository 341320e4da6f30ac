"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from elman.train.config import TrainConfig


def optimizer(parameters: Iterable[torch.nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, which goes over each parameter once, not once an operation."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **common)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The learning rate when a share ``progress`` in [0, 1] of the run is done.

    It rises linearly over the share ``warmup``, then stays, or falls to zero along a line or half a cosine.
    """
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    left = 1 - (progress - config.warmup) / (1 - config.warmup)
    factor = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[config.schedule]
    return config.learning_rate * factor
