"""The problems of long memory: their data, and the commands from end to end."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import elman
from elman.cli import main
from elman.tasks.long_memory import AddingConfig, CopyConfig, DigitsConfig
from elman.tasks.long_memory.adding import Adding
from elman.tasks.long_memory.copying import BLANK, GO, Copying
from elman.tasks.long_memory.digits import Digits
from elman.tasks.long_memory.model import SequenceModel
from elman.tasks.long_memory.problem import Batch, Problem
from elman.tasks.long_memory.start import open_gates

from .conftest import metrics_of

PROBLEMS: dict[str, list[str]] = {
    "adding": ["--length", "20"],
    "copy": ["--delay", "5"],
    "mnist1d": [],
}
SMALL = ["--cell", "gru", "--hidden-size", "8", "--batch-size", "10"]


def pose(name: str, seed: int = 0) -> Problem:
    if name == "adding":
        return Adding(AddingConfig(seed=seed, length=21, batch_size=400))
    if name == "copy":
        return Copying(CopyConfig(seed=seed, delay=7, batch_size=400))
    return Digits(DigitsConfig(seed=seed, batch_size=700))


def same(left: Batch, right: Batch) -> bool:
    return torch.equal(left.inputs, right.inputs) and torch.equal(left.targets, right.targets)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_batch_depends_on_seed_epoch_and_index_alone_and_a_part_on_nothing(name: str) -> None:
    problem, again, other = pose(name), pose(name), pose(name, seed=1)
    assert same(problem.batch(3, 2), again.batch(3, 2))
    for batch in (problem.batch(3, 3), problem.batch(2, 2), other.batch(3, 2)):
        assert not same(problem.batch(3, 2), batch)
    assert same(problem.part("test"), other.part("test"))
    assert not same(problem.part("test"), problem.part("validation"))
    assert problem.batch(0, 0).inputs.shape[::2] == (problem.steps, problem.input_size)


def test_adding() -> None:
    problem = pose("adding")
    batch = problem.batch(0, 0)
    values, marks = batch.inputs.unbind(-1)
    assert ((values >= 0) & (values < 1)).all()
    assert set(marks.unique().tolist()) == {0, 1}
    for half, places in ((marks[:10], 10), (marks[10:], 11)):
        assert (half.sum(0) == 1).all()
        assert (half.sum(1) > 0).sum() == places  # each place occurs
    expected = [sum(v for v, m in zip(values[:, b], marks[:, b], strict=True) if m) for b in range(400)]
    torch.testing.assert_close(batch.targets, torch.tensor(expected))
    right = batch.targets[:, None]
    assert problem.loss(right + 0.1, batch.targets).item() == pytest.approx(0.01, rel=1e-4)
    assert problem.accuracy(right + 0.039, batch.targets) == 1
    assert problem.accuracy(right + 0.041, batch.targets) == 0
    test = problem.part("test")
    # answering 1: the variance of the squared error of a sum of two uniform numbers is 7/180
    error = math.sqrt(7 / 180 / len(test.targets))
    assert problem.loss(torch.ones(len(test.targets), 1), test.targets).item() == pytest.approx(1 / 6, abs=4 * error)
    assert problem.baseline == pytest.approx(1 / 6)


def test_copying() -> None:
    problem = pose("copy")
    batch = problem.batch(0, 0)
    shown = batch.inputs.argmax(-1)
    assert (batch.inputs.sum(-1) == 1).all()
    assert shown.shape == batch.targets.shape == (27, 400)
    assert set(shown[:10].unique().tolist()) == set(range(8))
    assert (shown[10:16] == BLANK).all()
    assert (shown[16] == GO).all()
    assert (shown[17:] == BLANK).all()
    assert (batch.targets[:17] == BLANK).all()
    assert torch.equal(batch.targets[17:], shown[:10])
    blind = torch.full((27, 400, 9), -100.0)
    blind[:17, :, BLANK] = 0
    blind[17:, :, :8] = 0
    assert problem.loss(blind, batch.targets).item() == pytest.approx(problem.baseline, rel=1e-6)
    assert problem.baseline == pytest.approx(10 * math.log(8) / 27)
    sure = torch.nn.functional.one_hot(batch.targets, 9).float()
    assert problem.accuracy(sure, batch.targets) == 1
    assert problem.accuracy(sure.roll(1, -1), batch.targets) == 0
    assert problem.accuracy(blind, batch.targets) == pytest.approx(1 / 8, abs=0.03)


def test_digits() -> None:
    problem = pose("mnist1d")
    seen = [problem.batch(5, index) for index in range(problem.steps_per_epoch)]
    assert [len(batch.targets) for batch in seen] == [700, 700, 700, 700, 700, 100]
    drawn = torch.cat([batch.inputs for batch in seen], 1)
    assert len(drawn[:, :, 0].T.unique(dim=0)) == 3600  # each training example once
    assert problem.part("validation").inputs.shape == (40, 400, 1)
    assert problem.part("test").inputs.shape == (40, 1000, 1)
    assert (
        sum(torch.bincount(b.targets, minlength=10) for b in (*seen, *map(problem.part, ("validation", "test"))))
        .eq(500)
        .all()
    )


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_an_answer_sees(every_step: bool, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = SequenceModel("gru", 2, 4, 3, every_step=every_step, bidirectional=bidirectional)
    inputs = torch.randn(6, 5, 2, requires_grad=True)
    answers, _ = model(inputs)
    assert answers.shape == ((6, 5, 3) if every_step else (5, 3))
    middle = answers[3] if every_step else answers
    seen = torch.autograd.grad(middle.sum(), inputs)[0].abs().sum((1, 2)) > 0
    assert seen.tolist() == [True] * 4 + [bidirectional or not every_step] * 2
    if not every_step:
        _, state = model.recurrent(inputs)
        torch.testing.assert_close(answers, model.head(torch.cat(list(state), -1)))


KEEPING = [name for name in elman.cells.names() if elman.cells.get(name)().keeping]


@pytest.mark.parametrize("cell", KEEPING)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_open_gates_keep_the_state(cell: str, bidirectional: bool) -> None:
    """With chrono initialisation, and all else at zero, what a state keeps in a step is 1 - 1/τ, τ from U(2, T)."""
    torch.manual_seed(0)
    longest, units = 200, 1000
    layer = elman.Recurrent(cell, 1, units, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert open_gates(layer, longest) == tuple(layer.cell.keeping)
    with elman.use_engine("reference"):
        rows = 2 * layer.num_directions
        state: Any = tuple(torch.zeros(rows, 1, units, dtype=torch.float64) for _ in layer.cell.State._fields)
        state[-1].fill_(1.0)  # the memory is the last entry
        _, final = layer(torch.zeros(1, 1, 1, dtype=torch.float64), state if len(state) > 1 else state[0])
    kept = final[-1] if len(state) > 1 else final
    for memory in kept[:, 0]:
        assert ((memory > 0.49) & (memory < 1)).all()
        forgetting = 1 / (1 - memory)
        assert forgetting.mean().item() == pytest.approx(longest / 2, rel=0.1)
        assert len(memory.unique()) > 0.9 * units


def test_other_cells_keep_their_own_initial_values() -> None:
    layer = elman.Recurrent("elman", 1, 4)
    before = [parameter.clone() for parameter in layer.parameters()]
    assert open_gates(layer, 100) == ()
    assert all(torch.equal(*pair) for pair in zip(before, layer.parameters(), strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_train_and_evaluate(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 0
        return capsys.readouterr().out

    folder = str(tmp_path / "run")
    options = ["--dropout", "0.1", "--evaluate-every", "6", "--max-steps", "12"]
    assert run("train", name, *SMALL, *PROBLEMS[name], *options, "--run", folder) == ""
    scored = [line for line in metrics_of(tmp_path / "run") if line["kind"] == "validation"]
    assert [line["step"] for line in scored] == [6, 12]
    for line in scored:
        assert {"loss", "accuracy", "baseline"} <= line.keys()
    found = json.loads(run("evaluate", folder, "--part", "validation", "--format", "json"))
    best = scored[-1]["best_step"]
    assert found["step"] == best
    assert found["loss"] in [line["loss"] for line in scored if line["step"] == best]
    test = json.loads(run("evaluate", folder, "--format", "json"))
    assert test["data"] == "test"
    assert test["loss"] != found["loss"]
    assert "test: " in run("evaluate", folder)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_resumed_run_equals_an_undisturbed_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    limits = ["--max-steps", "12", "--checkpoint-every", "5", "--keep", "100"]
    options = ["train", name, *SMALL, *PROBLEMS[name], "--dropout", "0.1", *limits, "--run", str(folder)]
    assert main(options) == 0
    whole = metrics_of(folder)
    for later in sorted((folder / "checkpoints").iterdir())[3:]:
        later.unlink()
    assert main([*options, "--resume"]) == 0
    assert metrics_of(folder) == whole


def test_without_a_limit_a_task_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddingConfig, "default_epochs", 1)
    monkeypatch.setattr(Adding, "steps_per_epoch", 3)
    assert main(["train", "adding", *SMALL, *PROBLEMS["adding"], "--run", str(tmp_path / "run")]) == 0
    assert metrics_of(tmp_path / "run")[-1]["step"] == 3
    assert "epochs: 1\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_short_adding_problem_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    options = ["--length", "10", "--cell", "gru", "--hidden-size", "32", "--learning-rate", "0.01"]
    assert main(["train", "adding", *options, "--max-steps", "400", "--run", run]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] < 0.01


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train adding --length 1", "--length must be at least 2"),
        ("train copy --length 7", "unknown option --length"),
        ("train adding --cell lstn", "lstm"),
        ("train mnist1d --validation-share 1", "--validation-share must be less than 1"),
        ("evaluate RUN --part train", "unknown --part 'train'"),
    ],
)
def test_bad_options(command: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("task: adding\n")
    assert main(command.replace("RUN", str(tmp_path)).split()) == 2
    assert words in capsys.readouterr().err
