"""Where a run is: everything beside tensors that it must remember."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from elman.errors import UserError

FIRST_STEPS = 10  # the largest of their losses is what a diverging loss is compared with
SMOOTHING = 0.95  # of the running mean of the loss, per step


class TroubleError(UserError):
    """The numbers of a run have gone wrong; a smaller learning rate may help."""


@dataclass
class Tally:
    """Sums since the last training line."""

    updates: int = 0
    loss: float = 0.0  # times tokens
    tokens: int = 0
    norm: float = 0.0  # of the gradient
    norm_clipped: float = 0.0
    clipped: int = 0  # updates whose gradient was longer than --clip


@dataclass
class Position:
    """A run's counters. All but ``seconds`` are the same in a resumed run as in an undisturbed one."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0  # of the last step
    since: Tally = field(default_factory=Tally)
    loss_first: float = 0.0
    loss_mean: float = 0.0
    costs: list[float] = field(default_factory=list)  # of all evaluations
    best_cost: float | None = None
    best_step: int = 0
    evaluated_step: int = 0
    stale: int = 0  # evaluations since the best one
    evaluation_seconds: float = 0.0  # of the last: kept free at the end of --max-minutes
    rollbacks: int = 0
    rolled_back_to: int = 0  # the step of the last one
    metrics_bytes: int = 0

    def save(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Position:
        """Raises TypeError or KeyError where something is missing or unknown."""
        return cls(**{**saved, "since": Tally(**saved["since"])})

    def count(self, loss: float, tokens: int, norm: float, clip: float) -> None:
        """Take in a step's mean loss, its targets and the norm of its gradient, before clipping to ``clip``."""
        since = self.since
        self.tokens += tokens
        since.updates += 1
        since.loss += loss * tokens
        since.tokens += tokens
        if math.isfinite(norm):  # fp16 may overflow, and leaves the step out
            since.norm += norm
            since.norm_clipped += min(norm, clip)
        since.clipped += norm > clip
        self.loss_mean = loss if self.step == 1 else SMOOTHING * self.loss_mean + (1 - SMOOTHING) * loss
        if self.step <= FIRST_STEPS:
            self.loss_first = max(self.loss_first, loss)

    def check_loss(self, loss: float, most: float) -> None:
        """Raise TroubleError for a loss that is no number, or a running mean ``most`` times the first losses."""
        check_finite(loss, "loss", self.step)
        if most and self.step > FIRST_STEPS and self.loss_mean > most * self.loss_first:
            raise TroubleError(
                f"the loss diverges: its running mean is {self.loss_mean:.4g} at step {self.step}, and was at most "
                f"{self.loss_first:.4g} in the first {FIRST_STEPS} steps"
            )


def check_finite(value: float, what: str, step: int) -> None:
    """Raise TroubleError where a value is NaN or infinite."""
    if not math.isfinite(value):
        raise TroubleError(f"the {what} is {value} at step {step}")
