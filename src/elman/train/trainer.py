"""The training loop. It knows no task: a `Job` gives it losses, evaluations and samples."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from elman.errors import UsageError, UserError
from elman.train import optim
from elman.train.config import TrainConfig
from elman.train.course import Course, Place
from elman.train.job import Job
from elman.train.metrics import Metrics, MetricsFile
from elman.train.progress import Reporter
from elman.train.run import RunFolder
from elman.train.signals import StopSignal
from elman.train.trees import map_tensors
from elman.train.truncation import Truncation

EVALUATIONS = 10  # in a run, unless --evaluate-every says otherwise


@dataclass
class Position:
    """Where a run is: everything beside tensors that it must remember."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0  # of the last step
    gradient_norm: float = 0.0  # of the last step, before clipping
    loss_sum: float = 0.0  # since the last training line
    loss_tokens: int = 0
    best_cost: float | None = None
    best_step: int = 0
    evaluated_step: int = 0
    stale: int = 0  # evaluations since the best one
    evaluation_seconds: float = 0.0  # of the last: kept free at the end of --max-minutes
    metrics_bytes: int = 0


class Trainer:
    """Trains a job's model and keeps the run folder.

    Call :meth:`restore` to go on from a checkpoint, then :meth:`fit`.
    """

    def __init__(self, job: Job, config: TrainConfig, run: RunFolder, reporter: Reporter) -> None:
        self.job = job
        self.config = config
        self.run = run
        self.reporter = reporter
        self.parameters = [p for p in job.model.parameters() if p.requires_grad]
        self.optimizer = optim.optimizer(self.parameters, config)
        self.at = Position()
        truncation = Truncation(
            config.truncation, config.window, config.backward, config.burn_in, config.links, config.seed
        )
        self.course = Course(job, truncation, fresh=config.state == "fresh")
        self.began = time.monotonic()

    def fit(self) -> Position:
        """Train until a limit is reached.

        Raises:
            UserError: the loss is not finite, or a signal stopped the run; the last checkpoint is kept.
        """
        self.lines = MetricsFile(self.run.metrics)
        if missing := self.lines.cut(self.at.metrics_bytes):
            self.reporter.say(f"{self.run.metrics} has lost {missing} bytes of earlier lines; going on without them")
        self.board = SummaryWriter(str(self.run.tensorboard), purge_step=self.at.step + 1 if self.at.step else None)
        self.began = time.monotonic() - self.at.seconds
        self.first_seconds, self.first_progress, self.first_tokens = self.at.seconds, self.progress(), self.at.tokens
        try:
            with StopSignal() as stop:
                while not self.finished():
                    before = self.progress()
                    self.train_step(before)
                    stopping = stop.received
                    if self.at.step % self.config.log_every == 0:
                        self.log_training()
                    if self.evaluation_due(before, self.progress()):
                        self.evaluate()
                    elif stopping or self.checkpoint_due():
                        self.save()
                    if stopping:
                        raise UserError(
                            f"stopped by {stop.name} after step {self.at.step}, which is saved; "
                            f"go on with --resume --run {self.run.path}",
                            status=128 + stopping,
                        )
                if self.at.evaluated_step != self.at.step:
                    self.evaluate()
        finally:
            self.at.seconds = self.seconds()
            self.board.close()
            self.lines.close()
        return self.at

    def train_step(self, progress: float) -> None:
        """One window or minibatch: loss, gradients, update."""
        self.job.model.train()
        part = self.course.advance()
        self.optimizer.zero_grad(set_to_none=True)
        part.objective.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf).item()
        value = part.loss.item()
        self.at.learning_rate = optim.learning_rate(self.config, progress) * part.rate
        for group in self.optimizer.param_groups:
            group["lr"] = self.at.learning_rate
        self.at.step += 1
        self.check_finite(value, "loss")
        self.check_finite(norm, "norm of the gradient")
        self.optimizer.step()
        self.at.gradient_norm = norm
        self.at.tokens += part.tokens
        self.at.loss_sum += value * part.tokens
        self.at.loss_tokens += part.tokens
        self.show(value)

    def evaluate(self) -> None:
        """Score the validation part, save, and keep the model if it is the best so far."""
        self.log_training()
        began = time.monotonic()
        self.job.model.eval()
        metrics = self.job.evaluate()
        cost = self.job.cost(metrics)
        self.check_finite(cost, "validation loss")
        if self.at.best_cost is None or cost < self.at.best_cost:
            self.at.best_cost, self.at.best_step, self.at.stale = cost, self.at.step, 0
        else:
            self.at.stale += 1
        sample = self.job.sample()
        self.log("validation", metrics, {"best_step": self.at.best_step, "sample": sample})
        best = " (best)" if self.at.stale == 0 else ""
        self.reporter.say(f"step {self.at.step}  validation {self.job.describe(metrics)}{best}")
        if sample:
            self.reporter.say("\n".join("    " + line for line in sample.splitlines()))
        self.at.evaluated_step = self.at.step
        self.at.evaluation_seconds = time.monotonic() - began
        self.save()
        if self.at.best_step == self.at.step:
            self.keep_model()

    def progress(self) -> float:
        """The share of the run that is done: the largest over its limits."""
        shares = [0.0]
        if self.config.max_steps is not None:
            shares.append(self.at.step / self.config.max_steps)
        if self.config.epochs is not None:
            shares.append(self.course.epochs() / self.config.epochs)
        if self.config.max_minutes is not None:
            seconds = self.config.max_minutes * 60
            shares.append(self.seconds() / max(seconds - self.at.evaluation_seconds, seconds / 10))
        return min(max(shares), 1.0)

    def finished(self) -> bool:
        """Whether a limit is reached; there is always one step."""
        return self.at.step > 0 and (self.progress() >= 1 or self.out_of_patience())

    def evaluation_due(self, before: float, now: float) -> bool:
        """Whether this step ends a stretch between two evaluations."""
        if self.config.evaluate_every is not None:
            return self.at.step % self.config.evaluate_every == 0
        return int(now * EVALUATIONS) > int(before * EVALUATIONS)

    def checkpoint_due(self) -> bool:
        """Whether --checkpoint-every asks for one at this step."""
        return self.config.checkpoint_every is not None and self.at.step % self.config.checkpoint_every == 0

    def out_of_patience(self) -> bool:
        """Whether as many evaluations as --patience allows brought nothing better."""
        return self.config.patience is not None and self.at.stale >= self.config.patience

    def save(self) -> None:
        """Write a checkpoint."""
        for name, tensor in self.job.model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{name} is no longer finite at step {self.at.step}; the checkpoint before it is kept")
        self.at.metrics_bytes = self.lines.sync()
        self.at.seconds = self.seconds()
        self.run.checkpoints.save(
            self.at.step,
            {
                "model": dict(self.job.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "carry": self.course.carry,
                "place": dataclasses.asdict(self.course.place),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "position": dataclasses.asdict(self.at),
                "fingerprint": self.job.fingerprint,
            },
        )

    def keep_model(self) -> None:
        """Write the model as the best so far."""
        about = {"step": self.at.step, "cost": self.at.best_cost}
        self.run.save_model(self.job.model.state_dict(), about)

    def restore(self, tree: Any) -> None:
        """Take up a checkpoint.

        Raises:
            UsageError: it was made on other data.
            UserError: it does not fit the model.
        """
        if tree["fingerprint"] != self.job.fingerprint:
            raise UsageError(f"cannot resume {self.run.path}: --data is not the data that the run was trained on")
        try:
            device = self.parameters[0].device
            self.job.model.load_state_dict(tree["model"])
            self.optimizer.load_state_dict(tree["optimizer"])
            self.course.carry = map_tensors(lambda tensor: tensor.to(device), tree["carry"])
            self.course.place = Place(**tree["place"])
            self.at = Position(**tree["position"])
            torch.set_rng_state(tree["random"])
            if len(tree["random_cuda"]) == torch.cuda.device_count() > 0:
                torch.cuda.set_rng_state_all(tree["random_cuda"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the checkpoint in {self.run.path} does not fit: {str(error).splitlines()[0]}") from None
        self.began = time.monotonic() - self.at.seconds
        if self.at.step and self.at.best_step == self.at.step:
            self.keep_model()  # the run may have ended between checkpoint and model

    def log_training(self) -> None:
        """A line of the mean since the last one; none where there was no step since."""
        if not self.at.loss_tokens:
            return
        metrics = self.job.training_metrics(self.at.loss_sum / self.at.loss_tokens)
        last = {"learning_rate": self.at.learning_rate, "gradient_norm": self.at.gradient_norm}
        self.log("train", metrics, last)
        self.at.loss_sum, self.at.loss_tokens = 0.0, 0

    def log(self, kind: str, metrics: Metrics, more: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same numbers for TensorBoard. Clocks come last: they alone may differ."""
        place = {"step": self.at.step, "epoch": self.course.epochs(), "tokens_seen": self.at.tokens}
        clock = {"seconds": round(self.seconds(), 3), "tokens_per_second": round(self.speed(), 1)}
        self.lines.write({"kind": kind, **place, **metrics, **more, **clock})
        for name, value in {**metrics, **more}.items():
            if isinstance(value, str):
                self.board.add_text(f"{kind}/{name}", value, self.at.step)
            else:
                self.board.add_scalar(f"{kind}/{name}", value, self.at.step)

    def seconds(self) -> float:
        """Seconds of training and evaluation, those before a resumption included."""
        return time.monotonic() - self.began

    def speed(self) -> float:
        """Tokens per second since this process began to train."""
        return (self.at.tokens - self.first_tokens) / max(self.seconds() - self.first_seconds, 1e-9)

    def show(self, loss: float) -> None:
        """Tell the user where the run is."""
        done = self.progress()
        rate = (done - self.first_progress) / max(self.seconds() - self.first_seconds, 1e-9)
        self.reporter.update(done, self.at.step, loss, self.speed(), (1 - done) / max(rate, 1e-9))

    def check_finite(self, value: float, what: str) -> None:
        """Raise UserError where a value is NaN or infinite."""
        if not math.isfinite(value):
            raise UserError(
                f"the {what} is {value} at step {self.at.step}: training stops and the last checkpoint is kept; "
                f"a smaller --learning-rate or --clip may help"
            )
