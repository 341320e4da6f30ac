"""From losses to weights: accumulation, precision, averages, penalties."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elman.cli import main
from elman.data.tokenizers import Tokenizer
from elman.train.average import Average
from elman.train.config import TrainConfig
from elman.train.job import Stretch
from elman.train.penalties import activation_penalties
from elman.train.update import Updater
from elman.train.world import World

from .conftest import SMALL, metrics_of
from .test_language_model import TEXT, job_of, loss_of, small
from .test_resume import same_model
from .test_training import Line, fit


class Batches(Line):
    """Four batches of two examples, or two of four: the same examples in the same order."""

    def __init__(self, size: int, costs: list[float] | None = None) -> None:
        super().__init__(costs)
        self.size = size

    def lengths(self, epoch: int) -> list[int]:
        return [1] * (8 // self.size)

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        self.asked.append((stretch.epoch, stretch.index, 0.0))
        x = torch.arange(8.0)[stretch.index * self.size :][: self.size, None] / 8
        return ((self.model(x) - 2 * x) ** 2).mean(), self.size, carry


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    whole, parts = Batches(4), Batches(2)
    one, _ = fit(whole, tmp_path / "one", truncation="none", max_steps=10)
    many, _ = fit(parts, tmp_path / "many", truncation="none", max_steps=10, accumulate=2)
    assert len(parts.asked) == 2 * len(whole.asked) == 20
    torch.testing.assert_close(whole.model.weight, parts.model.weight, rtol=1e-5, atol=0)
    assert (one.at.tokens, one.at.step) == (many.at.tokens, many.at.step)
    ours, theirs = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "many")
    for line, other in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_mixed_precision_learns_and_resumes(tmp_path: Path, text_file: Path) -> None:
    def train(name: str, *options: str) -> None:
        files = ["--data", str(text_file), "--run", str(tmp_path / name)]
        assert main(["train", "lm", *SMALL, *files, "--max-steps", "40", "--checkpoint-every", "15", *options]) == 0

    train("whole", "--precision", "bf16", "--keep", "9")
    train("fp32")
    losses = {name: [line["loss"] for line in metrics_of(tmp_path / name)] for name in ("whole", "fp32")}
    assert losses["whole"] != losses["fp32"]
    assert losses["whole"] == pytest.approx(losses["fp32"], rel=0.03)
    whole = metrics_of(tmp_path / "whole")
    for later in sorted((tmp_path / "whole" / "checkpoints").iterdir())[3:]:
        later.unlink()
    train("whole", "--precision", "bf16", "--keep", "9", "--resume")
    assert metrics_of(tmp_path / "whole") == whole


def test_fp16_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    class Overflowing(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            loss, count, carry = super().loss(stretch, carry)
            return loss + 1e34 * (self.model.weight - self.model.weight.detach()).sum(), count, carry

    job = Overflowing()
    before = job.model.weight.item()
    fit(job, tmp_path / "run", max_steps=3, precision="fp16")
    assert job.model.weight.item() == before


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_optimisers_of_checkpoints_that_went_operation_by_operation_go_on_fused(kind: Any) -> None:
    def updater(fused: bool) -> Updater:
        torch.manual_seed(0)
        made = Updater(nn.Linear(3, 2), TrainConfig(optimizer=kind, learning_rate=0.1), World(torch.device("cpu")))
        made.optimizer.param_groups[0]["fused"] = fused
        return made

    def step(updater: Updater) -> list[Tensor]:
        for number, parameter in enumerate(updater.parameters):
            parameter.grad = torch.linspace(-1, number + 1, parameter.numel()).view_as(parameter)
        updater.step(0.1)
        return [parameter.detach().clone() for parameter in updater.parameters]

    old, new = updater(False), updater(True)
    step(old)
    step(new)
    new.restore(copy.deepcopy(old.state()))
    assert [group["fused"] for group in new.optimizer.param_groups] == [True]
    torch.testing.assert_close(step(old), step(new), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["ema", "swa", "asgd"])
def test_averages_are_the_means_they_say(kind: Any) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model, TrainConfig(average=kind, average_decay=0.9, average_start=0.5, average_patience=2))
    seen: list[float] = []
    for step in range(40):
        if step == 30:
            assert not average.hear([3.0, 2.0, 1.0])
            assert average.hear([3.0, 2.0, 1.0, 1.5, 2.5]) == (kind == "asgd")
        with torch.no_grad():
            model.weight.fill_(float(step**2))
        seen.append(float(step**2))
        average.update(step / 40)
    if kind == "ema":
        mean = seen[0]
        for count, value in enumerate(seen[1:], start=2):
            mean += max(0.1, 1 / count) * (value - mean)
    else:
        tail = seen[20:] if kind == "swa" else seen[30:]
        mean = sum(tail) / len(tail)
        assert average.count == len(tail)
    with average.applied():
        assert model.weight.item() == pytest.approx(mean, rel=1e-12)
    assert model.weight.item() == seen[-1]


def test_what_is_scored_and_kept_is_the_average_and_training_goes_on_from_the_last_weights(tmp_path: Path) -> None:
    plain, averaged = Line(), Line()
    fit(plain, tmp_path / "plain", max_steps=20)
    trainer, _ = fit(averaged, tmp_path / "averaged", max_steps=20, average="ema", average_decay=0.9)
    assert torch.equal(plain.model.weight, averaged.model.weight)
    scored = metrics_of(tmp_path / "averaged")[-1]
    tensors, about = trainer.run.load_model()
    assert about["step"] == scored["best_step"] == 20
    assert not torch.equal(tensors["weight"], averaged.model.weight)
    assert scored["loss"] == pytest.approx((tensors["weight"].item() - 2) ** 2)


def test_asgd_begins_when_validation_stalls(tmp_path: Path) -> None:
    job = Line([5, 4, 3, 2, 3, 4, 5, 6, 7, 8])
    trainer, shown = fit(job, tmp_path / "run", max_steps=20, average="asgd", average_patience=2)
    assert "step 12  validation stalls: from here on the weights are averaged" in shown
    assert trainer.average.count == 20 - 12


@pytest.mark.parametrize("options", [["--average", "swa"], ["--average", "asgd", "--average-patience", "1"]])
def test_averages_resume(tmp_path: Path, text_file: Path, options: list[str]) -> None:
    arguments = [
        "train",
        "lm",
        *SMALL,
        "--data",
        str(text_file),
        "--max-steps",
        "40",
        "--learning-rate",
        "0.1",
        *options,
    ]
    arguments += ["--keep", "9", "--optimizer", "sgd", "--evaluate-every", "5"]
    assert main([*arguments, "--run", str(tmp_path / "whole")]) == 0
    assert main([*arguments, "--run", str(tmp_path / "again")]) == 0
    for later in sorted((tmp_path / "again" / "checkpoints").iterdir())[7:]:
        later.unlink()
    assert main([*arguments, "--run", str(tmp_path / "again"), "--resume"]) == 0
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "again")
    assert same_model(tmp_path / "whole", tmp_path / "again")


def test_penalties_change_the_gradient_and_not_the_loss() -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    model = small(vocabulary=tokenizer.size).eval()
    other = copy.deepcopy(model)
    job = job_of(model, tokenizer, ar=2.0, tar=3.0)
    loss, _, _ = job.loss(Stretch(0, 0, 0, 20), None)
    loss.backward()
    inputs, targets = job.batches.window(0, 0, 0, 20)
    outputs, _ = other.read(inputs)
    plain = loss_of(other.logits(outputs), targets).mean()
    penalty = 2 * outputs.square().mean() + 3 * (outputs[1:] - outputs[:-1]).square().mean()
    (plain + penalty).backward()
    assert loss.item() == plain.item()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name, rtol=1e-4, atol=1e-7)
    one = torch.ones(1, 2, 3)
    assert activation_penalties(one, one, 1.0, 1.0).item() == 0  # a single step has no change
