"""What the trainer asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from elman.train.metrics import Metrics


@dataclass(frozen=True)
class Stretch:
    """Steps ``start`` to ``stop`` of sequence ``index`` of an epoch."""

    epoch: int
    index: int
    start: int
    stop: int


class Job(Protocol):
    """What a task gives the trainer.

    Its data are sequences of time steps: each a batch that starts anew, or one long text in lanes. The trainer reads
    them in stretches, the whole sequence at once unless truncation is asked for, and hands the state, the ``carry``,
    from one stretch to the next.
    """

    fingerprint: str  # names the training data: a run resumes on the same only

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def lengths(self, epoch: int) -> Sequence[int]:
        """The steps of each of an epoch's sequences, in order."""

    def begin(self) -> Any:
        """The carry at the start of a sequence."""

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        """The mean loss of a stretch, the number of targets in it, and the carry after it.

        The same stretch gives the same data. The trainer cuts the carry's gradients where that is wanted.
        """

    def read(self, stretch: Stretch, carry: Any) -> Any:
        """The carry after a stretch whose losses are not wanted."""

    def keepsakes(self) -> dict[str, str]:
        """Texts that a checkpoint keeps beside the model, such as the tokenizer."""

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
