"""`elman runs` and `elman sweep`."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from elman.cli import main
from elman.train import sweep
from elman.train.run import RunFolder

from .conftest import metrics_of

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """Three runs, one of them damaged."""
    for name in ("a", "deep/b", "broken"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    other = tmp_path / "runs" / "deep" / "b"
    config = (other / "config.yaml").read_text().replace("hidden_size: 16", "hidden_size: 99")
    (other / "config.yaml").write_text(config)
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    (other / "metrics.jsonl").write_text(
        "".join(json.dumps({**line, "loss": line["loss"] - 1}) + "\n" for line in lines)
    )
    (tmp_path / "runs" / "broken" / "metrics.jsonl").write_text("{\n")
    return tmp_path / "runs"


def test_runs_in_a_table(folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder), "--format", "json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [row["run"] for row in rows] == ["deep/b", "a"]  # the best first
    scores = [line["loss"] for line in metrics_of(trained) if line["kind"] == "validation"]
    assert rows[1]["best"] == min(scores)
    assert rows[0]["best"] == min(scores) - 1
    assert (rows[0]["hidden_size"], rows[1]["hidden_size"]) == (99, 16)
    assert f"{folder / 'broken' / 'metrics.jsonl'} is damaged in line 1; left out" in shown.err
    assert main(["runs", str(folder)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "hidden_size" in first
    assert "cell" not in first  # it is the same in both
    assert len(lines) == 2


def test_curves(folder: Path, tmp_path: Path) -> None:
    for file, start in (("curves.png", b"\x89PNG"), ("curves.html", b"<!doctype html>")):
        assert main(["runs", str(folder), "--plot", str(tmp_path / file)]) == 0
        assert (tmp_path / file).read_bytes().startswith(start)
    page = (tmp_path / "curves.html").read_text()
    assert "<svg" in page
    assert "<td>deep/b</td>" in page


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("runs TMP/missing", 1, "no such folder: TMP/missing"),
        ("runs TMP", 1, "TMP has no run folders"),
        ("runs RUNS --metric los", 1, "no run in RUNS has the metric 'los'"),
        ("runs RUNS --plot curves.gif", 2, "--plot must end in .png or .html"),
        ("runs RUNS --plot TMP/missing/curves.png", 1, "cannot write TMP/missing/curves.png"),
        ("sweep", 2, "a task comes first"),
        ("sweep lm", 2, "--space FILE is missing"),
        ("sweep lm --space TMP/good.yaml --pruner medium", 2, "unknown --pruner 'medium'; did you mean median?"),
        ("sweep lm --space TMP/missing.yaml", 2, "cannot read TMP/missing.yaml"),
        ("sweep lm --space TMP/typo.yaml", 2, "unknown option 'hiden_size'; did you mean hidden_size?"),
        ("sweep lm --space TMP/type.yaml", 2, "--hidden-size must be a whole number, got 'big'"),
        ("sweep lm --space TMP/range.yaml", 2, "dropout must have low <= high"),
        ("sweep lm --space TMP/good.yaml -- --dropout 0.2", 2, "--dropout is both searched and given"),
        ("sweep lm --space TMP/good.yaml -- --hiden-size 3", 2, "unknown option --hiden-size"),
        ("sweep lm --space TMP/good.yaml --folder TMP/s --storage nosuch://x", 1, "cannot open the storage"),
    ],
)
def test_bad_input(
    command: str, status: int, words: str, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, text in (
        ("typo", "hiden_size: [1, 2]"),
        ("type", "hidden_size: [8, big]"),
        ("range", "dropout: {low: 0.5, high: 0.1}"),
        ("good", "dropout: {low: 0.0, high: 0.5}"),
    ):
        (empty / f"{name}.yaml").write_text(text)
    words, command = (text.replace("RUNS", str(trained)).replace("TMP", str(empty)) for text in (words, command))
    assert main(command.split()) == status
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.splitlines()[-1].startswith("elman: ")
    assert shown.out == "" or "--plot" in command


SPACE = "learning_rate: {low: 0.001, high: 0.1, log: true}\nhidden_size: [4, 8]\nnum_layers: {low: 1, high: 2}\n"
ADDING = ["--", "--length", "6", "--max-steps", "30", "--evaluate-every", "10"]


def test_a_sweep_tries_options_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    command = ["sweep", "adding", "--space", str(tmp_path / "space.yaml"), "--folder", str(tmp_path / "sweep")]
    assert main([*command, "--trials", "2", *ADDING]) == 0
    first = capfd.readouterr()
    assert sorted(path.name for path in (tmp_path / "sweep").glob("trial-*")) == ["trial-00000", "trial-00001"]
    assert main([*command, "--trials", "3", *ADDING]) == 0
    second = capfd.readouterr()
    assert second.err.count("trial-") == 1
    costs = [float(line.rsplit(" ", 1)[1]) for line in (first.err + second.err).splitlines() if "trial-" in line]
    value, run, options = second.out.strip().split("\t")
    assert float(value) == min(costs)
    config = (Path(run) / "config.yaml").read_text()
    for word in options.split():
        name, setting = word.removeprefix("--").split("=")
        assert f"{name.replace('-', '_')}: {setting}" in config


def test_bad_trials_are_pruned_told_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []  # evaluations of each trial

    def run_trial(task: str, words: Sequence[str], run: Path, hear: Callable[[Path], bool]) -> tuple[int, str, bool]:
        width = int(next(word for word in words if word.startswith("--hidden-size")).split("=")[1])
        run.mkdir()
        lengths.append(0)
        lines = ""
        for number in range(1, 5):
            lines += json.dumps({"kind": "train", "loss": 0}) + "\n"
            lines += json.dumps({"kind": "validation", "cost": width / number}) + "\n"
            (run / "metrics.jsonl").write_text(lines + '{"kind": "valid')  # the next line is on its way
            lengths[-1] = number
            if hear(run):
                return 143, "", True
        RunFolder(run).save_model({}, {"cost": width / 4})
        return 0, "", False

    monkeypatch.setattr(sweep, "run_trial", run_trial)
    (tmp_path / "space.yaml").write_text("hidden_size: {low: 1, high: 99}")
    command = ["sweep", "adding", "--space", str(tmp_path / "space.yaml"), "--folder", str(tmp_path / "sweep")]
    command += ["--pruner", "median", "--startup-trials", "3", "--startup-evaluations", "2"]
    assert main([*command, "--trials", "8"]) == 0
    first = capfd.readouterr()
    assert main([*command, "--trials", "12"]) == 0  # those that were pruned count, and the study goes on
    second = capfd.readouterr()
    lines = [line for line in (first.err + second.err).splitlines() if line.startswith("trial-")]
    assert len(lines) == len(lengths) == 12
    widths = [int(line.split("hidden_size ")[1].split(":")[0]) for line in lines]
    finished: list[int] = []
    for line, width, length in zip(lines, widths, lengths, strict=True):
        bad = len(finished) >= 3 and width > statistics.median(finished)
        assert length == (3 if bad else 4), lines
        assert (f": pruned at {width / 3:.6g}, evaluation 3" in line) == bad
        if not bad:
            finished.append(width)
    assert 3 <= len(finished) < 12
    assert float(second.out.split("\t")[0]) == min(finished) / 4


@pytest.mark.slow
def test_a_pruned_run_is_stopped_and_could_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text("learning_rate: [0.01, 0.0000001]")
    command = ["sweep", "adding", "--space", str(tmp_path / "space.yaml"), "--folder", str(tmp_path / "sweep")]
    command += ["--pruner", "median", "--startup-trials", "1", "--trials", "5", "--", "--length", "6"]
    assert main([*command, "--max-steps", "1500", "--evaluate-every", "30", "--hidden-size", "64"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("trial-")]
    assert len(lines) == 5
    pruned = [line for line in lines if "pruned at" in line]
    assert pruned
    assert all("learning_rate 1e-07" in line for line in pruned)
    run = tmp_path / "sweep" / pruned[0].split(":")[0]
    step = metrics_of(run)[-1]["step"]
    assert step < 1500  # type: ignore[operator]
    assert main(["train", "adding", "--run", str(run), "--resume"]) == 0
    assert metrics_of(run)[-1]["step"] == 1500


@pytest.mark.slow
def test_a_sweep_that_is_stopped_takes_its_trial_up_again(tmp_path: Path, elman_process: Start) -> None:
    (tmp_path / "space.yaml").write_text("dropout: {low: 0.0, high: 0.1}")
    command = ["sweep", "adding", "--space", str(tmp_path / "space.yaml"), "--folder", str(tmp_path / "sweep")]
    command += ["--trials", "1", "--", "--length", "6", "--max-steps", "3000", "--checkpoint-every", "5"]
    process = elman_process(*command)
    checkpoints = tmp_path / "sweep" / "trial-00000" / "checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoints.is_dir() or not list(checkpoints.glob("*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    _, shown = elman_process(*command).communicate(timeout=300)
    assert "trial-00000: dropout" in shown
    assert metrics_of(tmp_path / "sweep" / "trial-00000")[-1]["step"] == 3000
