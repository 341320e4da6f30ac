"""The copying problem: ten symbols are shown, and wanted again after a long delay."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elman.tasks.long_memory import COPY, CopyConfig, commands
from elman.tasks.long_memory.problem import BATCHES_PER_EPOCH, SEQUENCES, Batch, Part, numbers_of
from elman.train.metrics import Metrics

SYMBOLS = 8
REMEMBERED = 10  # symbols of a sequence
BLANK, GO = SYMBOLS, SYMBOLS + 1


class Copying:
    """Ten symbols, blanks, a sign to begin, and blanks again, during which the ten are to be repeated.

    With a delay T the input is, one-hot, 10 symbols of 8 kinds, T - 1 blanks, the sign, 10 blanks; the target is T + 10
    blanks and the 10 symbols. The loss is the cross-entropy in nats, the mean over all T + 20 steps; knowing when to
    repeat, but not what, has 10 log 8 / (T + 20). Accuracy counts the last ten steps alone.

    Hochreiter & Schmidhuber 1997 have the idea; this form is that of Arjovsky, Shah & Bengio, "Unitary evolution
    recurrent neural networks", ICML 2016, section 5.1.
    """

    input_size = SYMBOLS + 2
    output_size = SYMBOLS + 1
    every_step = True
    steps_per_epoch = BATCHES_PER_EPOCH
    cost_name = "cross-entropy"

    def __init__(self, config: CopyConfig) -> None:
        self.seed = config.seed
        self.delay = config.delay
        self.steps = config.delay + 2 * REMEMBERED
        self.batch_size = config.batch_size
        self.baseline = REMEMBERED * math.log(SYMBOLS) / self.steps
        self.fingerprint = f"copy {config.delay}"

    def batch(self, epoch: int, index: int) -> Batch:
        return self._make(self.batch_size, numbers_of(self.seed, epoch, index))

    def part(self, part: Part) -> Batch:
        return self._make(SEQUENCES, numbers_of(part))

    def _make(self, count: int, random: np.random.Generator) -> Batch:
        symbols = torch.from_numpy(random.integers(0, SYMBOLS, (REMEMBERED, count)))
        shown = torch.full((self.steps, count), BLANK)
        shown[:REMEMBERED] = symbols
        shown[-REMEMBERED - 1] = GO
        targets = torch.full((self.steps, count), BLANK)
        targets[-REMEMBERED:] = symbols
        return Batch(F.one_hot(shown, self.input_size).float(), targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        right = outputs[-REMEMBERED:].argmax(-1) == targets[-REMEMBERED:]
        return right.double().mean().item()

    def cost(self, metrics: Metrics) -> float:
        return metrics["loss"]

    def describe(self, metrics: Metrics) -> str:
        return (
            f"cross-entropy {metrics['loss']:.5f} ({self.baseline:.5f} without memory), "
            f"{metrics['accuracy']:.1%} of the symbols right"
        )


train = partial(commands.train, COPY, Copying)
evaluate = partial(commands.evaluate, COPY, Copying)
