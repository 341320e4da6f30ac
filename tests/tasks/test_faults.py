"""What goes wrong in a long run: each fault is told in a line, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elman.cli import main
from elman.errors import UserError
from elman.train.checkpoint import load
from elman.train.job import Stretch
from elman.train.run import RunFolder

from .conftest import SMALL, metrics_of
from .test_resume import same
from .test_training import Line, fit

Start = Callable[..., "subprocess.Popen[str]"]
LONG = ["--max-steps", "400", "--evaluate-every", "50", "--checkpoint-every", "20", "--log-every", "10"]


def loadable(run: Path) -> int:
    """The step of the newest checkpoint, which must be whole; 0 where none was written yet."""
    files = RunFolder(run).checkpoints.files()
    return int(load(files[-1])["position"]["step"]) if files else 0


def stop_and_resume(
    tmp_path: Path, text: Path, start: Start, number: signal.Signals, times: int, seed: int, *options: str
) -> None:
    """Stop a run ``times`` times at random moments, resume it each time, and compare it with an undisturbed one."""
    arguments = ["train", "lm", *SMALL, *LONG, *options, "--data", str(text)]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    began = time.monotonic()
    _, shown = start(*arguments, "--run", str(whole)).communicate(timeout=300)
    assert metrics_of(whole)[-1]["step"] == 400, shown
    training = time.monotonic() - began
    draw, reached, stops = random.Random(seed), 0, 0

    def go_on() -> subprocess.Popen[str]:
        # a run stopped before it wrote its configuration has nothing to resume
        begun = (stopped / "config.yaml").exists()
        return start(*arguments, "--run", str(stopped), *(["--resume"] if begun else []))

    while stops < times:
        process = go_on()
        try:
            # most stops fall into training, some into the start, some into the writing of a checkpoint
            process.wait(timeout=draw.uniform(0.3, 1.0) * training / 2)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, shown = process.communicate(timeout=300)
        stops += 1
        assert "Traceback" not in shown or number == signal.SIGKILL or not (stopped / "config.yaml").exists()
        step = loadable(stopped)
        assert step >= reached, "a run folder lost its last checkpoint"
        reached = step
        if reached == 400 and stops < times:
            shutil.rmtree(stopped)
            reached = 0
    _, shown = go_on().communicate(timeout=300)
    assert same(whole, stopped), shown


def test_killed_at_random_moments(tmp_path: Path, text_file: Path, elman_process: Start) -> None:
    stop_and_resume(tmp_path, text_file, elman_process, signal.SIGKILL, 2, 1, "--dropout", "0.1")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("options", [["--average", "ema"], ["--truncation", "randomized"]], ids=" ".join)
def test_stopped_at_twenty_random_moments(
    tmp_path: Path, text_file: Path, elman_process: Start, number: signal.Signals, options: list[str]
) -> None:
    stop_and_resume(tmp_path, text_file, elman_process, number, 20, 2, "--dropout", "0.1", *options)


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["afresh", "resumed"])
def test_killed_while_the_first_file_was_written(tmp_path: Path, text_file: Path, resume: list[str]) -> None:
    run = tmp_path / "run"
    arguments = ["train", "lm", *SMALL, "--max-steps", "2", "--data", str(text_file), "--run", str(run)]
    killed = "import os, sys, elman.cli; os.fsync = lambda _: os.kill(os.getpid(), 9); elman.cli.main(sys.argv[1:])"
    assert main([*arguments[:-1], str(tmp_path / "tokens_are_kept")]) == 0
    assert subprocess.run([sys.executable, "-c", killed, *arguments], capture_output=True).returncode == -signal.SIGKILL
    assert [file.name for file in run.iterdir()] == ["config.yaml.partial"]
    assert main([*arguments, *resume]) == 0
    assert metrics_of(run)[-1]["step"] == 2
    assert not list(run.rglob("*.partial"))


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    class Slow(Line):
        def evaluate(self) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("still here")

    with pytest.raises(KeyboardInterrupt):
        fit(Slow(), tmp_path / "run", max_steps=20, checkpoint_every=1)
    assert loadable(tmp_path / "run") == 1


def full_disk(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the disk be full after some files were made safe."""
    left = [writes]
    really = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writes", range(2, 14))
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, writes)
        with pytest.raises(UserError, match="No space left on device") as caught:
            fit(Line(), run, max_steps=20, checkpoint_every=1)
    step = loadable(run)
    assert ("there is no checkpoint yet" if step == 0 else f"step-{step:09d}") in str(caught.value)
    assert step >= (writes - 5) // 3
    assert not list(run.rglob("*.partial"))


def test_a_full_disk_in_a_process_of_its_own(tmp_path: Path, text_file: Path) -> None:
    """A limit on the size of files ends the metrics and the checkpoints alike, TensorBoard's events too."""
    command = [sys.executable, "-m", "elman", "train", "lm", *SMALL, "--data", str(text_file), "--run"]
    first = [*command, str(tmp_path / "first"), "--max-steps", "1"]
    subprocess.run(first, check=True, capture_output=True)  # so that the tokens are kept
    command.append(str(tmp_path / "run"))
    limit = 12_000  # the first lines of metrics fit, a checkpoint does not
    process = subprocess.run(
        [*command, "--max-steps", "100000", "--log-every", "1", "--evaluate-every", "100000"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("elman: ")
    assert "File too large; there is no checkpoint yet" in process.stderr


def test_data_that_vanish_while_they_are_read(tmp_path: Path) -> None:
    class Vanishing(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            if len(self.asked) == 7:
                open(tmp_path / "shard-3")  # noqa: SIM115
            return super().loss(stretch, carry)

    with pytest.raises(UserError, match=r"shard-3: No such file or directory; the last checkpoint is kept, step-0*6\."):
        fit(Vanishing(), tmp_path / "run", max_steps=20, checkpoint_every=2)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    class Working(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            if len(self.asked) == 7:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    pool.submit(os._exit, 1).result()
            return super().loss(stretch, carry)

    with pytest.raises(UserError, match=r"a worker process died.*; the last checkpoint is kept, step-0*6\."):
        fit(Working(), tmp_path / "run", max_steps=20, checkpoint_every=2)


class Diverging(Line):
    """Its loss grows without end where the learning rate is not small."""

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        self.asked.append((0, 0, 0))
        return 50 * (self.model.weight - 2).square().sum(), 1, carry


STEEP = {"optimizer": "sgd", "learning_rate": 0.03, "clip": 0, "warmup": 0, "schedule": "constant", "max_steps": 60}


def test_a_diverging_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss diverges: .* at step \d+, and was at most .*--roll-back N"):
        fit(Diverging(), tmp_path / "run", checkpoint_every=5, **STEEP)
    assert loadable(tmp_path / "run") >= 5
    with pytest.raises(
        UserError, match=r"the loss is (inf|nan)|the norm of the gradient is (inf|nan)|no longer finite"
    ):
        fit(Diverging(), tmp_path / "unwatched", checkpoint_every=500, diverged=0, **{**STEEP, "max_steps": 2000})


def test_rolling_back_with_half_the_learning_rate(tmp_path: Path) -> None:
    job = Diverging()
    trainer, shown = fit(job, tmp_path / "run", checkpoint_every=5, roll_back=3, **STEEP)
    assert "the loss diverges" in shown
    assert "with the learning rate halved 1 times" in shown
    assert trainer.at.step == 60
    assert 1 <= trainer.at.rollbacks <= 3
    assert trainer.at.learning_rate == 0.03 / 2**trainer.at.rollbacks
    assert job.model.weight.item() == pytest.approx(2, abs=1e-3)
    steps = [line["step"] for line in metrics_of(tmp_path / "run") if line["kind"] == "validation"]
    assert steps == sorted(set(steps))  # what was undone is not in the metrics either
    with pytest.raises(UserError, match="the loss diverges"):
        fit(Diverging(), tmp_path / "again", checkpoint_every=5, roll_back=1, **{**STEEP, "learning_rate": 0.3})


def test_a_loss_that_is_never_a_number_ends_however_often_one_may_go_back(tmp_path: Path) -> None:
    class Bad(Line):
        def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
            loss, count, carry = super().loss(stretch, carry)
            return loss * (math.nan if stretch.epoch == 2 else 1), count, carry

    with pytest.raises(UserError, match="the loss is nan at step 9"):
        fit(Bad(), tmp_path / "run", max_steps=20, checkpoint_every=1, roll_back=3)
    assert loadable(tmp_path / "run") == 8


def test_a_checkpoint_holds_everything(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run"
    options = ["--data", str(text_file), "--run", str(run), "--max-steps", "10", "--average", "ema", "--keep", "1"]
    assert main(["train", "lm", *SMALL, *options]) == 0
    tree = load(RunFolder(run).checkpoints.files()[-1])
    assert set(tree) == {*("model", "updater", "average", "place", "position", "processes", "fingerprint", "keepsakes")}
    assert set(tree["average"]["weights"]) == set(tree["model"])
    assert tree["processes"][0]["carry"].h.shape == (1, 4, 16)
    assert isinstance(tree["processes"][0]["random"]["cpu"], torch.Tensor)
    # the tokenizer comes back from it
    tokenizer = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").unlink()
    assert main(["train", "lm", "--run", str(run), "--resume", "--max-steps", "12"]) == 0
    assert (run / "tokenizer.json").read_bytes() == tokenizer
