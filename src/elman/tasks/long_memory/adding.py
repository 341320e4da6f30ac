"""The adding problem: two numbers of a long sequence are marked; what is their sum?"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elman.tasks.long_memory import ADDING, AddingConfig, commands
from elman.tasks.long_memory.problem import BATCHES_PER_EPOCH, SEQUENCES, Batch, Part, numbers_of
from elman.train.metrics import Metrics

CLOSE = 0.04  # the first authors' criterion for a right answer


class Adding:
    """Numbers from U(0, 1), one marked in each half of the sequence; the target is the sum of these two.

    Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, section 5.4, in the form of Le,
    Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015, with the places
    of Arjovsky, Shah & Bengio, "Unitary evolution recurrent neural networks", ICML 2016: the first marker is uniform
    over the first half, the second over the rest. The loss is the mean squared error; always answering 1 has 1/6.
    """

    input_size = 2  # the number, the marker
    output_size = 1
    every_step = False
    steps_per_epoch = BATCHES_PER_EPOCH
    baseline = 1 / 6
    cost_name = "mean squared error"

    def __init__(self, config: AddingConfig) -> None:
        self.seed = config.seed
        self.steps = config.length
        self.batch_size = config.batch_size
        self.fingerprint = f"adding {config.length}"

    def batch(self, epoch: int, index: int) -> Batch:
        return self._make(self.batch_size, numbers_of(self.seed, epoch, index))

    def part(self, part: Part) -> Batch:
        return self._make(SEQUENCES, numbers_of(part))

    def _make(self, count: int, random: np.random.Generator) -> Batch:
        half = self.steps // 2
        values = random.random((self.steps, count), dtype=np.float32)
        marks = np.zeros_like(values)
        for low, high in ((0, half), (half, self.steps)):
            marks[random.integers(low, high, count), np.arange(count)] = 1
        inputs = np.stack([values, marks], axis=-1)  # [T, B, 2]
        return Batch(torch.from_numpy(inputs), torch.from_numpy((values * marks).sum(0)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        return ((outputs[:, 0] - targets).abs() < CLOSE).double().mean().item()

    def cost(self, metrics: Metrics) -> float:
        return metrics["loss"]

    def describe(self, metrics: Metrics) -> str:
        return (
            f"mean squared error {metrics['loss']:.6f} ({self.baseline:.3f} without memory), "
            f"{metrics['accuracy']:.1%} within {CLOSE}"
        )


train = partial(commands.train, ADDING, Adding)
evaluate = partial(commands.evaluate, ADDING, Adding)
