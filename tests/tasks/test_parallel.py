"""Several processes: the same losses as one, and nothing lost when one of them dies. All on gloo, on the CPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elman.cli import main
from elman.train.checkpoint import load
from elman.train.run import RunFolder

from .conftest import SMALL, metrics_of
from .test_resume import same, wait_for_checkpoints

Start = Callable[..., "subprocess.Popen[str]"]
TIED = ["--tied", "--embedding-size", "16", "--average", "ema", "--clip", "0.1"]
UNTIED = ["--accumulate", "2", "--average", "swa", "--optimizer", "sgd", "--momentum", "0.5"]
TRAIN = ["train", "lm", *SMALL, "--num-layers", "2", "--log-every", "1", "--evaluate-every", "50"]


def assert_same_losses(ours: Path, theirs: Path, steps: int) -> None:
    left, right = metrics_of(ours), metrics_of(theirs)
    assert len([line for line in left if line["kind"] == "train"]) == steps
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in ("step", "kind", "tokens_seen", "epoch"):
            assert one[key] == other[key]
        for key in ("loss", "gradient_norm"):
            if key in one:
                assert one[key] == pytest.approx(other[key], rel=2e-5), one


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--truncation", "variable"], id="variable"),
        pytest.param(["--truncation", "randomized", "--accumulate", "2"], id="randomized", marks=pytest.mark.slow),
        pytest.param(["--shard", "--tokenizer", "word", *TIED], id="sharded"),
        pytest.param(["--shard", "--truncation", "randomized", *UNTIED], id="sharded-untied", marks=pytest.mark.slow),
        pytest.param(
            ["--shard", "--tokenizer", "word", "--softmax", "adaptive"], id="adaptive", marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_train_as_one_does(
    tmp_path: Path, text_file: Path, elman_process: Start, options: list[str]
) -> None:
    arguments = [*TRAIN, *options, "--max-steps", "100", "--data", str(text_file)]
    process = elman_process(*arguments, "--run", str(tmp_path / "two"), "--devices", "2")
    alone = [argument for argument in arguments if argument != "--shard"]
    assert main([*alone, "--run", str(tmp_path / "one")]) == 0
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert len([line for line in shown.splitlines() if line and not line.startswith("    ")]) < 20  # one process speaks
    assert_same_losses(tmp_path / "one", tmp_path / "two", 100)
    one, two = (load(RunFolder(tmp_path / name).checkpoints.files()[-1]) for name in ("one", "two"))
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-4)
    assert len(load_file(tmp_path / "two" / "model.safetensors")) == len(one["model"])
    assert main(["evaluate", str(tmp_path / "two")]) == 0


@pytest.mark.slow
def test_a_sharded_run_goes_on_sharded_or_not(
    tmp_path: Path, text_file: Path, elman_process: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TRAIN, *TIED, "--tokenizer", "word", "--data", str(text_file), "--schedule", "constant"]
    arguments += ["--warmup", "0", "--devices", "2", "--shard"]

    def run(name: str, *more: str) -> None:
        process = elman_process(*arguments, *more, "--run", str(tmp_path / name))
        _, shown = process.communicate(timeout=300)
        assert process.returncode == 0, shown

    run("whole", "--max-steps", "60")
    run("parts", "--max-steps", "30", "--no-shard")
    run("parts", "--max-steps", "50", "--resume")
    shutil.copytree(tmp_path / "parts", tmp_path / "same")
    run("same", "--max-steps", "60", "--resume", "--evaluate-every", "60")
    run("parts", "--max-steps", "60", "--resume", "--no-shard", "--evaluate-every", "60")
    steps = [
        [line for line in metrics_of(tmp_path / name) if line["kind"] == "train"] for name in ("whole", "parts", "same")
    ]
    for one, *others in zip(*steps, strict=True):
        assert one["loss"] == pytest.approx(others[0]["loss"], rel=2e-5)
        assert one["loss"] == pytest.approx(others[1]["loss"], rel=2e-5)
    assert main(["generate", str(tmp_path / "same"), "--length", "5"]) == 0
    # a process with all rows and one with half of them have the same optimiser in their files
    tree = load(RunFolder(tmp_path / "same").checkpoints.files()[-1])
    words = len(tree["model"]["embedding.weight"])
    assert {len(state["exp_avg"]) for state in tree["updater"]["optimizer"]["state"].values()} >= {words}
    assert len(tree["average"]["weights"]["head.bias"]) == words


@pytest.mark.slow
def test_torchrun(tmp_path: Path, text_file: Path) -> None:
    options = ["--length", "5", "--batch-size", "6", "--log-every", "1", "--max-steps", "20", "--hidden-size", "8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    done = subprocess.run(
        [*torchrun, "elman", "train", "adding", *options, "--run", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert main(["train", "adding", *options, "--run", str(tmp_path / "one")]) == 0
    assert_same_losses(tmp_path / "one", tmp_path / "two", 20)


def children(process: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(number) for number in found]


def gone(number: int) -> bool:
    """Whether a process has ended; one that nobody waits for counts as ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return True


@pytest.mark.slow
def test_whichever_process_dies_all_end_and_the_run_goes_on(
    tmp_path: Path, text_file: Path, elman_process: Start
) -> None:
    arguments = [*TRAIN, "--max-steps", "400", "--data", str(text_file), "--dropout", "0.1", "--devices", "2"]
    arguments += ["--checkpoint-every", "20"]
    undisturbed = elman_process(*arguments, "--run", str(tmp_path / "whole"))
    assert undisturbed.wait(timeout=300) == 0
    run = tmp_path / "killed"
    reached = 0
    for attempt, number in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM]):
        process = elman_process(*arguments, "--run", str(run), *(["--resume"] if attempt else []))
        wait_for_checkpoints(run, process, len(RunFolder(run).checkpoints.files()) + 3)
        (other,) = children(process)
        victim = process.pid if attempt % 2 == 0 else other
        os.kill(victim, number)
        _, shown = process.communicate(timeout=60)
        assert process.returncode != 0
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, shown
            assert "stopped by SIGTERM after step" in shown
        elif victim == other:
            assert "connection to the other processes is lost" in shown or process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 30
        while not gone(other):
            assert time.monotonic() < deadline, "a process was left behind"
            time.sleep(0.1)
        step = int(load(RunFolder(run).checkpoints.files()[-1])["position"]["step"])
        assert step >= reached
        reached = step
    process = elman_process(*arguments, "--run", str(run), "--resume")
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert same(tmp_path / "whole", run)


@pytest.mark.slow
def test_what_several_processes_refuse(tmp_path: Path, text_file: Path, elman_process: Start) -> None:
    options = ["--data", str(text_file), "--run", str(tmp_path / "run"), "--max-steps", "5"]
    _, shown = elman_process(*TRAIN, *options, "--devices", "3").communicate(timeout=60)
    assert "elman: --batch-size 4 is of all processes together and must be divisible by their number, 3" in shown
    process = elman_process("train", "adding", "--shard", "--devices", "2", "--run", str(tmp_path / "run"))
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2
    assert shown.count("\n") == 1
    assert "elman: --shard: the model has no token vectors and no softmax that could be divided" in shown
    assert not (tmp_path / "run").exists()
    assert elman_process(*TRAIN, *options, "--devices", "2").wait(timeout=60) == 0
    process = elman_process(*TRAIN, *options, "--resume", "--devices", "1")
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--devices (2 in the run, now 1)" in shown
