"""Stopped anywhere and resumed, a run gives bit for bit what it gives undisturbed."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elman.cli import main
from elman.train.run import RunFolder
from elman.train.trainer import Trainer

from .conftest import SMALL, metrics_of

Start = Callable[..., "subprocess.Popen[str]"]
DETAILS = ["--num-layers", "2", "--dropout", "0.2", "--log-every", "7", "--evaluate-every", "10"]


def train(run: Path, text: Path, *options: str) -> int:
    return main(["train", "lm", *SMALL, *DETAILS, "--data", str(text), "--run", str(run), *options])


def same(left: Path, right: Path) -> bool:
    assert metrics_of(left)
    return metrics_of(left) == metrics_of(right) and same_model(left, right)


def same_model(left: Path, right: Path) -> bool:
    """Bit for bit the same tensors; the files may differ in the order of their metadata."""
    (ours, about), (theirs, about_theirs) = (RunFolder(run).load_model() for run in (left, right))
    return about == about_theirs and ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam"],
        ["--optimizer", "sgd", "--momentum", "0.9", "--learning-rate", "0.5"],
        ["--cell", "clockwork"],
        pytest.param(["--truncation", "variable"], marks=pytest.mark.slow),
        ["--truncation", "randomized", "--cut-every", "4", "--burn-in", "3"],
        pytest.param(["--truncation", "fixed", "--backward", "21", "--burn-in", "2"], marks=pytest.mark.slow),
        pytest.param(["--state", "documents", "--document-end", "\n"], marks=pytest.mark.slow),
        pytest.param(["--state", "fresh"], marks=pytest.mark.slow),
        ["--minibatches", "random"],
    ],
    ids=lambda options: " ".join(options),
)
def test_from_any_checkpoint(
    tmp_path: Path, text_file: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    # two windows of a pass are left when the second epoch begins
    assert (
        train(
            whole,
            text_file,
            *["--max-steps", "30", "--batch-size", "44", "--checkpoint-every", "4", "--keep", "100"],
            *options,
        )
        == 0
    )
    checkpoints = sorted((whole / "checkpoints").iterdir())
    assert len(checkpoints) == 9
    for kept in checkpoints:
        copy = tmp_path / kept.stem
        shutil.copytree(whole, copy)
        for file in checkpoints:
            if file.name != kept.name:
                (copy / "checkpoints" / file.name).unlink()
        (copy / "model.safetensors").unlink()  # resuming restores or makes it again
        if kept != checkpoints[-1]:
            assert not same_metrics_before(copy, kept)
        assert main(["train", "lm", "--run", str(copy), "--resume"]) == 0
        assert metrics_of(copy) == metrics_of(whole), kept.name
        if (copy / "model.safetensors").exists():
            assert same_model(copy, whole)


def same_metrics_before(copy: Path, kept: Path) -> bool:
    """Whether the copy's metrics end at its checkpoint already: then the test would prove nothing."""
    return metrics_of(copy)[-1]["step"] == int(kept.stem.removeprefix("step-"))


def wait_for_checkpoints(run: Path, process: "subprocess.Popen[str]", count: int) -> None:
    deadline = time.monotonic() + 60
    seen: set[str] = set()
    while len(seen) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        seen |= {file.name for file in (run / "checkpoints").glob("*.safetensors")}
        time.sleep(0.005)


def test_killed_and_resumed(tmp_path: Path, text_file: Path, elman_process: Start) -> None:
    options = ["--max-steps", "300", "--checkpoint-every", "3", "--evaluate-every", "100"]
    arguments = ["train", "lm", *SMALL, *DETAILS, "--data", str(text_file), *options]
    undisturbed = elman_process(*arguments, "--run", str(tmp_path / "whole"))
    for attempt in range(2):
        process = elman_process(*arguments, "--run", str(tmp_path / "killed"), *(["--resume"] if attempt else []))
        wait_for_checkpoints(tmp_path / "killed", process, 8)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = elman_process(*arguments, "--run", str(tmp_path / "killed"), "--resume")
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "going on after step" in shown
    undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0
    assert same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, text_file: Path, elman_process: Start, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    arguments = ["--data", str(text_file), "--run", str(run), "--max-steps", "5000", "--checkpoint-every", "20"]
    process = elman_process("train", "lm", *SMALL, *arguments)
    wait_for_checkpoints(run, process, 1)
    process.send_signal(number)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step" in shown
    assert "Traceback" not in shown
    stopped = int(shown.split("after step ")[1].split(",")[0])
    assert (run / "checkpoints" / f"step-{stopped:09d}.safetensors").exists()
    assert train_more(run, stopped) == 0
    assert metrics_of(run)[-1]["step"] == stopped + 1


def train_more(run: Path, steps: int) -> int:
    return main(["train", "lm", "--run", str(run), "--resume", "--max-steps", str(steps + 1)])


def test_a_run_stopped_at_its_last_step_still_gets_its_last_evaluation(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, text_file, "--max-steps", "15") == 0

    def stop(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda trainer: trainer.at.step < 15 or stop(trainer))
        assert train(run, text_file, "--max-steps", "15", "--checkpoint-every", "15") == 130
    assert train(run, text_file, "--resume") == 0
    assert metrics_of(run)[-2:] == metrics_of(whole)[-2:]


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run"
    assert train(run, text_file, "--max-steps", "10") == 0
    assert main(["train", "lm", "--run", str(run), "--resume"]) == 0
    assert metrics_of(run)[-1]["step"] == 10
    assert main(["train", "lm", "--run", str(run), "--resume", "--max-steps", "20"]) == 0
    assert metrics_of(run)[-1]["step"] == 20
    assert "max_steps: 20" in (run / "config.yaml").read_text()


def test_another_configuration_is_refused_by_name(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, text_file, "--max-steps", "10") == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert train(run, text_file, "--max-steps", "20", "--resume", "--hidden-size", "17", "--learning-rate", "0.1") == 2
    shown = capsys.readouterr().err
    assert "--hidden-size (16 in the run, now 17)" in shown
    assert "--learning-rate (0.003 in the run, now 0.1)" in shown
    assert "--max-steps" not in shown
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text()[::-1])
    assert train(run, other, "--resume") == 2
    assert "not the data that the run was trained on" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_moved_text_is_the_same_text(tmp_path: Path, text_file: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text_file.read_bytes())
    assert train(tmp_path / "run", text_file, "--max-steps", "10") == 0
    assert train(tmp_path / "run", moved, "--max-steps", "12", "--resume") == 0


def test_without_a_checkpoint_it_starts_afresh_and_says_so(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, text_file, "--max-steps", "10", "--resume") == 0
    assert "has no checkpoint: starting afresh" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    model = (run / "model.safetensors").read_bytes()
    assert train(run, text_file, "--max-steps", "12", "--resume") == 0
    assert "has no checkpoint: starting afresh" in capsys.readouterr().err
    assert metrics_of(run)[0]["step"] == 7
    assert (run / "model.safetensors.before").read_bytes() == model


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, text_file, "--max-steps", "20") == 0
    expected = metrics_of(run)
    newest = max((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train(run, text_file, "--max-steps", "20", "--resume") == 0
    shown = capsys.readouterr().err
    assert f"{newest} is damaged" in shown
    assert "going on after step 10" in shown
    assert metrics_of(run) == expected


def test_a_model_lost_between_checkpoint_and_model_file_is_written_again(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run"
    assert train(run, text_file, "--max-steps", "10") == 0
    (run / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert train(run, text_file, "--resume") == 0
    assert same_model(run, tmp_path)
