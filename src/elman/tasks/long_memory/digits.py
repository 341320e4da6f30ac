"""MNIST-1D: which digit do forty numbers draw?"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elman.data.mnist1d import CLASSES, STEPS, Floats, Integers, mnist1d
from elman.tasks.long_memory import MNIST1D, DigitsConfig, commands
from elman.tasks.long_memory.problem import Batch, Part, numbers_of
from elman.train.metrics import Metrics


class Digits:
    """Signals of forty steps in ten classes, of which 4,000 train and 1,000 test; see `elman.data.mnist1d`.

    The last `validation_share` of the training part only chooses the best model.
    """

    input_size = 1
    output_size = CLASSES
    every_step = False
    steps = STEPS
    baseline = math.log(CLASSES)
    cost_name = "share of errors"

    def __init__(self, config: DigitsConfig) -> None:
        digits = mnist1d()
        signals, labels = digits.train
        kept = round(len(labels) * (1 - config.validation_share))
        kept = min(max(kept, 1), len(labels) - 1)
        self.train = _batch(signals[:kept], labels[:kept])
        self.parts = {"validation": _batch(signals[kept:], labels[kept:]), "test": _batch(*digits.test)}
        self.seed = config.seed
        self.batch_size = config.batch_size
        self.steps_per_epoch = math.ceil(kept / config.batch_size)
        self.fingerprint = f"mnist1d {kept}"

    def batch(self, epoch: int, index: int) -> Batch:
        order = numbers_of(self.seed, epoch).permutation(len(self.train.targets))
        rows = torch.from_numpy(order[index * self.batch_size :][: self.batch_size])
        return Batch(self.train.inputs[:, rows], self.train.targets[rows])

    def part(self, part: Part) -> Batch:
        return self.parts[part]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(-1) == targets).double().mean().item()

    def cost(self, metrics: Metrics) -> float:
        return 1 - metrics["accuracy"]  # the loss grows again when the model begins to be too sure

    def describe(self, metrics: Metrics) -> str:
        return f"cross-entropy {metrics['loss']:.4f}, {metrics['accuracy']:.1%} right"


def _batch(signals: Floats, labels: Integers) -> Batch:
    """Signals ``[N, 40]`` with the time first."""
    return Batch(torch.from_numpy(signals.T[..., None].astype(np.float32)), torch.from_numpy(labels))


train = partial(commands.train, MNIST1D, Digits)
evaluate = partial(commands.evaluate, MNIST1D, Digits)
