"""What a problem is to its job: sequences, a loss, and what the loss means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from elman.train.metrics import Metrics

Part = Literal["validation", "test"]
BATCHES_PER_EPOCH = 100  # where data are made afresh and never come to an end
SEQUENCES = 2560  # in each made part that is scored, as Hochreiter & Schmidhuber tested


@dataclass(frozen=True)
class Batch:
    """Sequences side by side: inputs ``[T, B, I]``; targets ``[B]``, or ``[T, B]`` where each step has one."""

    inputs: Tensor
    targets: Tensor


class Problem(Protocol):
    """Data and loss.

    Attributes:
        input_size, output_size: of a step, and of the model's answer.
        every_step: whether the model answers at each step, or once, at the end.
        steps: of a sequence.
        steps_per_epoch: batches in an epoch.
        baseline: the loss of the best answers without memory.
        cost_name: what :meth:`cost` is, in words.
        fingerprint: names the training data.
    """

    input_size: int
    output_size: int
    every_step: bool
    steps: int
    steps_per_epoch: int
    baseline: float
    cost_name: str
    fingerprint: str

    def batch(self, epoch: int, index: int) -> Batch:
        """Training batch ``index`` of an epoch: always the same one."""

    def part(self, part: Part) -> Batch:
        """All sequences that are scored: the same for every seed."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of outputs ``[B, O]`` or ``[T, B, O]``."""

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        """The share of right answers."""

    def cost(self, metrics: Metrics) -> float:
        """What the best model has least of."""

    def describe(self, metrics: Metrics) -> str:
        """The metrics in words."""


def numbers_of(*key: int | Part) -> np.random.Generator:
    """Random numbers that only ``key`` decides: a part, or the seed, epoch and index of a training batch."""
    parts = {"validation": 1, "test": 2}
    return np.random.default_rng([parts[part] if isinstance(part, str) else part for part in (len(key), *key)])
