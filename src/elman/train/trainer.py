"""The training loop. It knows no task: a `Job` gives it losses, evaluations and samples.

What it uses: `Course` walks through the data and carries the state, `Updater` turns losses into new weights, `Average`
keeps their mean, `Position` counts, `Checkpoints` keep all of it, `World` is the processes that train together.
"""

from __future__ import annotations

import time
from concurrent.futures import BrokenExecutor
from typing import Any

from elman.errors import UserError
from elman.train import optim, snapshot, watch
from elman.train.average import Average
from elman.train.config import TrainConfig
from elman.train.course import Course
from elman.train.job import Job
from elman.train.journal import Journal
from elman.train.position import Position, Tally, TroubleError, check_finite
from elman.train.progress import Reporter
from elman.train.run import RunFolder
from elman.train.signals import StopSignal, signal_name
from elman.train.truncation import Truncation
from elman.train.update import Updater
from elman.train.world import World

EVALUATIONS = 10  # in a run, unless --evaluate-every says otherwise
EVALUATING = 0.05  # of --max-minutes, at most; then there are fewer


class Trainer:
    """Trains a job's model and keeps the run folder.

    Call :meth:`restore` to go on from a checkpoint, then :meth:`fit`.
    """

    def __init__(self, job: Job, config: TrainConfig, run: RunFolder, reporter: Reporter, world: World) -> None:
        self.job = job
        self.config = config
        self.run = run
        self.reporter = reporter
        self.world = world
        self.leads = world.rank == 0  # the first process alone writes, evaluates and speaks
        self.course = Course(job, Truncation.of(config), fresh=config.state == "fresh")
        self.updater = Updater(job.model, config, world)
        self.divided = bool(self.updater.rows)  # then all processes must run the model together, always
        self.average = Average(job.model, config)
        self.at = Position()
        self.began = time.monotonic()

    def fit(self) -> Position:
        """Train until a limit is reached.

        Raises:
            UserError: the loss is not finite, a file cannot be written, or a signal stopped the run; the last
                checkpoint is kept.
        """
        self.began = time.monotonic() - self.at.seconds
        self.first_seconds, self.first_progress, self.first_tokens = self.at.seconds, self.progress(), self.at.tokens
        self.open_journal()
        try:
            with StopSignal() as stop:
                while not (self.finished() and self.at.evaluated_step == self.at.step):
                    try:
                        if self.finished():
                            self.evaluate()
                        else:
                            self.train_step(stop)
                    except TroubleError as trouble:
                        self.roll_back(trouble)
        except OSError as error:
            raise UserError(f"{error.filename or self.run.path}: {error.strerror or error}; {self.kept()}") from None
        except BrokenExecutor:
            raise UserError(f"a worker process died, killed or out of memory; {self.kept()}") from None
        finally:
            self.at.seconds = self.seconds()
            self.journal.close()
        return self.at

    def train_step(self, stop: StopSignal) -> None:
        """One update of the weights, and what is due after it."""
        before = self.progress()
        self.update(before)
        stopping = self.tick(stop.received)
        now = self.progress()
        self.show(now)
        if self.at.step % self.config.log_every == 0:
            self.log_training()
        if self.evaluation_due(before, now):
            self.evaluate()
        elif stopping or self.checkpoint_due():
            self.save()
        if stopping:
            raise self.world.told(
                UserError(
                    f"stopped by {signal_name(stopping)} after step {self.at.step}, which is saved; "
                    f"go on with --resume --run {self.run.path}",
                    status=128 + stopping,
                )
            )

    def tick(self, signal: int = 0) -> int:
        """Read the clock, and agree with the other processes on it and on a signal that came, if any."""
        signal, self.at.seconds = self.world.agree(signal, self.seconds())
        return signal

    def update(self, progress: float) -> None:
        """Losses, gradients, new weights."""
        self.job.model.train()
        self.updater.forget()
        loss, tokens, rate = 0.0, 0, 0.0
        for _ in range(self.config.accumulate):
            with self.updater.autocast():
                part = self.course.advance()
            self.updater.backward(part.objective / self.config.accumulate)
            loss, tokens = loss + part.loss.item() * part.tokens, tokens + part.tokens
            rate += part.rate / self.config.accumulate
        norm = self.updater.gradient_norm(tokens)
        loss, tokens = self.world.mean(loss / tokens, tokens)
        self.at.step += 1
        self.at.count(loss, tokens, norm, self.updater.clip)
        self.at.check_loss(loss, self.config.diverged)
        if not self.updater.may_overflow:
            check_finite(norm, "norm of the gradient", self.at.step)
        self.at.learning_rate = optim.learning_rate(self.config, progress) * rate / 2**self.at.rollbacks
        self.updater.step(self.at.learning_rate)
        self.average.update(self.progress())

    def evaluate(self) -> None:
        """Score the validation part, save, and keep the model if it is the best so far."""
        self.log_training()
        began = time.monotonic()
        at = self.at
        with self.average.applied():
            self.job.model.eval()
            metrics = self.world.first(self.job.evaluate, self.divided)
            cost = self.job.cost(metrics)
            check_finite(cost, "validation loss", at.step)
            at.costs.append(cost)
            if at.best_cost is None or cost < at.best_cost:
                at.best_cost, at.best_step, at.stale = cost, at.step, 0
            else:
                at.stale += 1
            at.evaluated_step = at.step
            if self.leads or self.divided:
                self.report(metrics)
        if self.average.hear(at.costs):
            self.reporter.say(f"step {at.step}  validation stalls: from here on the weights are averaged")
        _, at.evaluation_seconds = self.world.agree(0, time.monotonic() - began)
        self.save()
        if at.best_step == at.step:
            self.keep_model()
        self.tick()

    def report(self, metrics: dict[str, float]) -> None:
        """Write and show an evaluation, with a sample."""
        sample = self.job.sample()
        seen = {} if self.config.bidirectional else watch.inside(self.job, self.course.place.epoch)
        kept = {"cost": self.at.costs[-1], "best_step": self.at.best_step}
        self.log("validation", {**metrics, **kept, **seen, "sample": sample})
        self.reporter.say(
            f"step {self.at.step}  validation {self.job.describe(metrics)}" + " (best)" * (self.at.stale == 0)
        )
        if sample:
            self.reporter.say("\n".join("    " + line for line in sample.splitlines()))

    def progress(self) -> float:
        """The share of the run that is done: the largest over its limits."""
        shares = [0.0]
        if self.config.max_steps is not None:
            shares.append(self.at.step / self.config.max_steps)
        if self.config.epochs is not None:
            shares.append(self.course.epochs() / self.config.epochs)
        if self.config.max_minutes is not None:
            seconds = self.config.max_minutes * 60
            shares.append(self.at.seconds / max(seconds - self.at.evaluation_seconds, seconds / 10))
        return min(max(shares), 1.0)

    def finished(self) -> bool:
        """Whether a limit is reached; there is always one step."""
        return self.at.step > 0 and (self.progress() >= 1 or self.out_of_patience())

    def evaluation_due(self, before: float, now: float) -> bool:
        """Whether this step ends a stretch between two evaluations."""
        if self.config.evaluate_every is not None:
            return self.at.step % self.config.evaluate_every == 0
        count = EVALUATIONS
        if self.config.max_minutes is not None and self.at.evaluation_seconds:
            affordable = EVALUATING * self.config.max_minutes * 60 / self.at.evaluation_seconds
            count = max(1, int(min(count, affordable)))
        return int(now * count) > int(before * count)

    def checkpoint_due(self) -> bool:
        """Whether --checkpoint-every asks for one at this step."""
        return self.config.checkpoint_every is not None and self.at.step % self.config.checkpoint_every == 0

    def out_of_patience(self) -> bool:
        """Whether as many evaluations as --patience allows brought nothing better."""
        return self.config.patience is not None and self.at.stale >= self.config.patience

    def save(self) -> None:
        """Write a checkpoint. Processes wait for each other, so that none leaves before it is there."""
        tensors = {name: t for name, t in self.job.model.state_dict().items() if t.is_floating_point()}
        bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if self.world.agree(len(bad), 0.0)[0]:
            raise TroubleError(f"{', '.join(bad[:1]) or 'a weight'} is no longer finite at step {self.at.step}")
        self.at.metrics_bytes = self.journal.sync()
        self.at.seconds = self.seconds()
        tree = snapshot.take(self)
        if self.leads:
            self.run.checkpoints.save(self.at.step, tree, keep=self.config.keep, best=self.at.best_step)
        self.tick()

    def keep_model(self) -> None:
        """Write the model as the best so far."""
        with self.average.applied():
            weights = snapshot.model(self)
            if self.leads:
                self.run.save_model(weights, {"step": self.at.step, "cost": self.at.best_cost})

    def restore(self, tree: Any) -> None:
        """Take up a checkpoint.

        Raises:
            UsageError: it was made on other data, or by another number of processes.
            UserError: it does not fit the model.
        """
        snapshot.restore(self, tree)
        self.began = time.monotonic() - self.at.seconds
        if self.at.step and self.at.best_step == self.at.step:
            self.keep_model()  # the run may have ended between checkpoint and model

    def roll_back(self, trouble: TroubleError) -> None:
        """Go back to the last checkpoint with half the learning rate; raises where that is not allowed.

        A checkpoint from which the trouble came again is given up for the one before it.
        """
        count, checkpoints = self.at.rollbacks + 1, self.run.checkpoints
        tree = None
        if count <= self.config.roll_back:
            if self.leads:
                checkpoints.give_up(self.at.rolled_back_to)
            tree = self.world.first(lambda: checkpoints.load_latest(self.reporter.say))
        if tree is None:
            advice = "a smaller --learning-rate or --clip may help, or --roll-back N"
            raise self.world.told(UserError(f"{trouble}: training stops and {self.kept()}; {advice}")) from None
        self.journal.close()
        self.restore(tree)
        self.open_journal()
        self.at.rollbacks, self.at.rolled_back_to = count, self.at.step
        self.at.loss_mean = min(self.at.loss_mean, self.at.loss_first)  # the checkpoint may be on its way up already
        self.reporter.say(f"{trouble}: back to step {self.at.step} with the learning rate halved {count} times")
        self.save()

    def kept(self) -> str:
        """What there is to go on from, in words."""
        files = self.run.checkpoints.files()
        if not files:
            return "there is no checkpoint yet"
        return f"the last checkpoint is kept, {files[-1].name}; go on with --resume --run {self.run.path}"

    def open_journal(self) -> None:
        """Open the metrics, without what is later than the present step."""
        self.journal = Journal(self.run.metrics, self.run.tensorboard) if self.leads else Journal()
        if missing := self.journal.go_on(self.at.step, self.at.metrics_bytes):
            self.reporter.say(f"{self.run.metrics} has lost {missing} bytes of earlier lines; going on without them")

    def log_training(self) -> None:
        """A line of the means since the last one; none where there was no step since."""
        since, self.at.since = self.at.since, Tally()
        if not since.tokens or not self.leads:
            return
        metrics = self.job.training_metrics(since.loss / since.tokens)
        self.log(
            "train",
            {
                **metrics,
                "learning_rate": self.at.learning_rate,
                "gradient_norm": since.norm / since.updates,
                "gradient_norm_clipped": since.norm_clipped / since.updates,
                "clipped": since.clipped / since.updates,
                **watch.state_sizes(self.course.carry),
            },
        )

    def log(self, kind: str, values: dict[str, float | str]) -> None:
        """One line of metrics. Clocks come last: they alone may differ between equal runs."""
        place = {"step": self.at.step, "epoch": self.course.epochs(), "tokens_seen": self.at.tokens}
        clock = {
            "seconds": round(self.seconds(), 3),
            "tokens_per_second": round(self.speed(), 1),
            **watch.memory(self.updater.device),
        }
        self.journal.write(kind, place, values, clock)

    def seconds(self) -> float:
        """Seconds of training and evaluation, those before a resumption included."""
        return time.monotonic() - self.began

    def speed(self) -> float:
        """Tokens per second since this process began to train."""
        return (self.at.tokens - self.first_tokens) / max(self.seconds() - self.first_seconds, 1e-9)

    def show(self, done: float) -> None:
        """Tell the user where the run is."""
        rate = (done - self.first_progress) / max(self.seconds() - self.first_seconds, 1e-9)
        self.reporter.update(done, self.at.step, self.at.loss_mean, self.speed(), (1 - done) / max(rate, 1e-9))
