"""The loop: schedules, limits, and what stops it. The job here is the smallest that can learn."""

import dataclasses
import io
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elman.errors import UserError
from elman.train import optim
from elman.train.config import TrainConfig
from elman.train.job import Stretch
from elman.train.metrics import language_metrics
from elman.train.progress import Reporter, clock
from elman.train.run import RunFolder
from elman.train.signals import StopSignal, signal_name
from elman.train.trainer import Trainer
from elman.train.world import World

from .conftest import metrics_of


class Line:
    """Fits y = 2x; says what it was asked for."""

    fingerprint = "line"

    def __init__(self, costs: list[float] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.asked: list[tuple[int, int, float]] = []
        self.costs = costs
        self.evaluations = 0
        self.bad_step: int | None = None

    def lengths(self, epoch: int) -> list[int]:
        return [4]

    def begin(self) -> Any:
        return torch.zeros(1)

    def read(self, stretch: Stretch, carry: Any) -> Any:
        return carry + 1

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        assert not carry.requires_grad
        self.asked.append((stretch.epoch, stretch.start, carry.item()))
        x = torch.tensor([[float(stretch.start + 1)]])
        loss = ((self.model(x) - 2 * x) ** 2).mean()
        if len(self.asked) == self.bad_step:
            loss = loss * math.nan
        return loss, 1, carry + 1 + 0 * self.model.bias

    def keepsakes(self) -> dict[str, str]:
        return {}

    def training_metrics(self, loss: float) -> dict[str, float]:
        return {"loss": loss}

    def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        weight = self.model.weight.item()
        return {"loss": self.costs[self.evaluations - 1] if self.costs else (weight - 2) ** 2}

    def cost(self, metrics: dict[str, float]) -> float:
        return metrics["loss"]

    def describe(self, metrics: dict[str, float]) -> str:
        return str(metrics)

    def sample(self) -> str:
        return ""


def fit(job: Line, run: Path, **options: Any) -> tuple[Trainer, str]:
    config = TrainConfig(**{"learning_rate": 0.01, "truncation": "fixed", "window": 1, **options})
    folder, shown = RunFolder(run), io.StringIO()
    folder.begin(config, "line", resuming=False)
    trainer = Trainer(job, config, folder, Reporter(shown), World(torch.device("cpu")))
    trainer.fit()
    return trainer, shown.getvalue()


def validations(run: Path) -> list[Any]:
    return [line["step"] for line in metrics_of(run) if line["kind"] == "validation"]


def test_epochs_begin_with_a_new_carry_and_go_through_all_steps(tmp_path: Path) -> None:
    job = Line()
    fit(job, tmp_path / "run", epochs=2)
    assert job.asked == [(epoch, index, index) for epoch in range(2) for index in range(4)]


@pytest.mark.parametrize(
    ("options", "steps", "evaluated"),
    [
        ({"max_steps": 20}, 20, list(range(2, 21, 2))),
        ({"epochs": 5, "max_steps": 100}, 20, list(range(2, 21, 2))),
        ({"epochs": 100, "max_steps": 3}, 3, [1, 2, 3]),
        ({"max_steps": 10, "evaluate_every": 4}, 10, [4, 8, 10]),
        ({"max_minutes": 1e-9}, 1, [1]),
    ],
)
def test_limits_and_evaluations(tmp_path: Path, options: dict[str, float], steps: int, evaluated: list[int]) -> None:
    job = Line()
    trainer, _ = fit(job, tmp_path / "run", **options)
    assert trainer.at.step == len(job.asked) == steps
    assert validations(tmp_path / "run") == evaluated


@pytest.mark.parametrize(("each", "most"), [(0.2, 10), (2.0, 2)])
def test_a_time_limit_counts_the_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: float, most: int
) -> None:
    now = [0.0]
    monkeypatch.setattr("elman.train.trainer.time.monotonic", lambda: now[0])

    class Slow(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            now[0] += 0.1
            return super().loss(stretch, carry)

        def evaluate(self) -> dict[str, float]:
            now[0] += each
            return super().evaluate()

    job = Slow()
    trainer, _ = fit(job, tmp_path / "run", max_minutes=1)
    assert 59 < trainer.at.seconds <= 60.2
    # the first comes when a tenth is done; after that they take a twentieth of the time, and steps the rest
    assert validations(tmp_path / "run")[0] == pytest.approx(60, abs=2)
    assert job.evaluations == most
    assert len(job.asked) == pytest.approx((60 - each * job.evaluations) / 0.1, abs=2)


def test_patience(tmp_path: Path) -> None:
    trainer, _ = fit(Line([3, 2, 2.5, 2, 1, 1, 1]), tmp_path / "run", max_steps=100, patience=2)
    assert (trainer.at.step, trainer.at.best_step) == (40, 20)
    tensors, about = trainer.run.load_model()
    assert about == {"step": 20, "cost": 2}
    assert set(tensors) == {"weight", "bias"}


def test_the_best_model_is_kept_not_the_last(tmp_path: Path) -> None:
    job = Line([5, 1, *[2.0] * 8])
    trainer, _ = fit(job, tmp_path / "run", max_steps=10)
    tensors, _ = trainer.run.load_model()
    fresh = Line([5, 1])
    early, _ = fit(fresh, tmp_path / "early", max_steps=2, schedule="constant", warmup=0)
    assert trainer.at.best_step == 2
    assert not torch.equal(tensors["weight"], job.model.weight)
    assert early.at.step == 2


@pytest.mark.parametrize("bad_step", [1, 7])
def test_nan_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path: Path, bad_step: int) -> None:
    job = Line()
    job.bad_step = bad_step
    with pytest.raises(UserError, match=f"the loss is nan at step {bad_step}"):
        fit(job, tmp_path / "run", max_steps=20, checkpoint_every=1)
    steps = [tree["position"]["step"] for tree in [RunFolder(tmp_path / "run").checkpoints.load_latest(print)] if tree]
    assert steps == [bad_step - 1] * (bad_step > 1)
    assert all(parameter.isfinite().all() for parameter in job.model.parameters())


def test_nan_in_validation_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the validation loss is nan at step 2"):
        fit(Line([math.nan]), tmp_path / "run", max_steps=20)
    assert RunFolder(tmp_path / "run").checkpoints.files() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        assert (stop.received, signal_name(stop.received)) == (number, number.name)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


def test_carry_gradients_are_cut_and_the_line_is_learnt(tmp_path: Path) -> None:
    job = Line()
    fit(job, tmp_path / "run", max_steps=400, learning_rate=0.05)
    assert job.model.weight.item() == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules(schedule: Any) -> None:
    config = TrainConfig(schedule=schedule, learning_rate=2.0, warmup=0.2)
    at = {share: optim.learning_rate(config, share) for share in (0.0, 0.1, 0.2, 0.6, 1.0)}
    assert at[0.0] == 0
    assert at[0.1] == pytest.approx(1)
    assert at[0.2] == pytest.approx(2)
    assert at[0.6] == pytest.approx({"constant": 2, "linear": 1, "cosine": 1}[schedule])
    assert at[1.0] == pytest.approx({"constant": 2, "linear": 0, "cosine": 0}[schedule])
    assert optim.learning_rate(dataclasses.replace(config, warmup=0.0), 0.0) == 2.0


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"optimizer": "sgd", "momentum": 0.9}, torch.optim.SGD),
        ({"optimizer": "adam", "weight_decay": 0.1}, torch.optim.Adam),
        ({"optimizer": "adamw", "weight_decay": 0.1}, torch.optim.AdamW),
    ],
)
def test_optimisers(options: dict[str, Any], kind: type) -> None:
    made = optim.optimizer(nn.Linear(1, 1).parameters(), TrainConfig(learning_rate=0.5, **options))
    assert type(made) is kind
    assert made.param_groups[0]["lr"] == 0.5
    for name in set(options) - {"optimizer"}:
        assert made.param_groups[0][name] == options[name]


@pytest.mark.parametrize(("clip", "length"), [(0.0, 4.0), (1.0, 1.0), (100.0, 4.0)])
def test_clipping_by_norm(tmp_path: Path, clip: float, length: float) -> None:
    class Slope(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            return 4 * self.model.weight.sum(), 1, carry

    job = Slope()
    before = job.model.weight.item()
    fit(job, tmp_path / "run", max_steps=1, clip=clip, optimizer="sgd", learning_rate=1.0, warmup=0)
    assert before - job.model.weight.item() == pytest.approx(length, rel=1e-5)
    assert metrics_of(tmp_path / "run")[0]["gradient_norm"] == pytest.approx(4)


def test_bits_per_character_compare_tokenizers() -> None:
    # 10 tokens of 3 characters, 2 bits each
    metrics = language_metrics(2 * math.log(2), 10, 30)
    assert metrics["bits_per_character"] == pytest.approx(2 / 3)
    assert metrics["perplexity"] == pytest.approx(4)
    assert math.isfinite(language_metrics(1e6, 1, 1)["perplexity"])


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.2, "1:15"), (3675, "1:01:15")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_terminal_gets_a_bar_with_the_lines_above_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    with Reporter(shown) as reporter:
        reporter.say("[a line]")
        reporter.update(0.5, 12, 1.25, 34567.0, 61.0)
    text = shown.getvalue()
    assert "[a line]" in text
    assert "50%" in text
    assert "step 12 · loss 1.250 · 34,567 tokens/s · 1:01 left" in text
