"""A problem as the trainer sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elman.tasks.long_memory.model import SequenceModel
from elman.tasks.long_memory.problem import Batch, Problem
from elman.train.job import Stretch
from elman.train.metrics import Metrics
from elman.train.world import World

SCORED_AT_ONCE = 1 << 24  # recurrent outputs: 64 MB


@torch.no_grad()
def score(model: SequenceModel, problem: Problem, part: Batch) -> Metrics:
    """The loss and the share of right answers, with the loss that needs no memory beside them."""
    model.eval()
    device = model.head.weight.device
    steps, count, _ = part.inputs.shape
    at_once = max(1, SCORED_AT_ONCE // (steps * model.recurrent.output_size))
    outputs = [model(part.inputs[:, first : first + at_once].to(device))[0] for first in range(0, count, at_once)]
    answers = torch.cat(outputs, dim=-2).cpu().double()
    return {
        "loss": problem.loss(answers, part.targets).item(),
        "accuracy": problem.accuracy(answers, part.targets),
        "baseline": problem.baseline,
    }


class ProblemJob:
    """Fresh sequences in each batch; see `elman.train.job.Job`."""

    def __init__(self, model: SequenceModel, problem: Problem, world: World) -> None:
        self.model = model
        self.problem = problem
        self.world = world
        self.validation = problem.part("validation")
        self.device = model.head.weight.device
        self.fingerprint = problem.fingerprint

    def lengths(self, epoch: int) -> Sequence[int]:
        return [self.problem.steps] * self.problem.steps_per_epoch

    def begin(self) -> Any:
        return None

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        batch = self._batch(stretch)
        outputs, carry = self.model(batch.inputs.to(self.device), carry)
        return self.problem.loss(outputs, batch.targets.to(self.device)), batch.targets.numel(), carry

    def read(self, stretch: Stretch, carry: Any) -> Any:
        return self.model.read(self._batch(stretch).inputs.to(self.device), carry)[1]

    def _batch(self, stretch: Stretch) -> Batch:
        batch = self.problem.batch(stretch.epoch, stretch.index)
        inputs, targets = self.world.share(batch.inputs, 1), self.world.share(batch.targets, batch.targets.dim() - 1)
        if stretch.stop - stretch.start == len(inputs):
            return Batch(inputs, targets)
        steps = slice(stretch.start, stretch.stop)
        return Batch(inputs[steps], targets[steps] if self.problem.every_step else targets)

    def keepsakes(self) -> dict[str, str]:
        return {}

    def training_metrics(self, loss: float) -> Metrics:
        return {"loss": loss}

    def evaluate(self) -> Metrics:
        return score(self.model, self.problem, self.validation)

    def cost(self, metrics: Metrics) -> float:
        return self.problem.cost(metrics)

    def describe(self, metrics: Metrics) -> str:
        return self.problem.describe(metrics)

    def sample(self) -> str:
        return ""
