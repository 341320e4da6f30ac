"""What the trainer asks of a task."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from elman.train.metrics import Metrics


class Job(Protocol):
    """What a task gives the trainer."""

    steps_per_epoch: int
    fingerprint: str  # names the training data: a run resumes on the same only

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def begin_epoch(self) -> Any:
        """What the first step of an epoch is given as ``carry``."""

    def loss(self, epoch: int, index: int, carry: Any) -> tuple[Tensor, int, Any]:
        """The mean loss of step ``index`` of an epoch, the number of targets in it, and the next step's carry.

        The same arguments give the same data. The trainer cuts the carry's gradients.
        """

    def training_metrics(self, loss: float) -> Metrics:
        """What a mean training loss means."""

    def evaluate(self) -> Metrics:
        """Metrics of the validation part."""

    def cost(self, metrics: Metrics) -> float:
        """What the best model has least of, from :meth:`evaluate`'s metrics."""

    def describe(self, metrics: Metrics) -> str:
        """The metrics in words, for a line of progress."""

    def sample(self) -> str:
        """A short sample of what the model makes now; empty where a task has none."""
