"""One definition of the options for Python, YAML and the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import yaml

from elman import tasks
from elman.errors import UsageError
from elman.train.options import Options, dashed, option, parse, read_yaml, to_yaml


@dataclasses.dataclass(frozen=True)
class Example(Options):
    size: int = option(3, "a size", low=1)
    rate: float = option(0.5, "a rate", above=0, below=1)
    limit: float | None = option(None, "a limit", low=0)
    kind: Literal["red", "green"] = option("red", "a colour")
    fast: bool = option(False, "a switch")
    word: str | None = option(None, "a text")
    file: str | None = option(None, "a file", path=True)
    here: str | None = option(None, "not kept", saved=False)


def read(*arguments: str) -> Example:
    return Example(**parse(Example, arguments, program="p", description="d", header={"task": "t"}))  # type: ignore[arg-type]


def test_each_type_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--size 4 --rate 1e-3 --limit 2 --kind green --fast --word 007 --file a/b --here x"
    assert read(*line.split()) == Example(4, 0.001, 2.0, "green", True, "007", str(tmp_path / "a/b"), "x")
    assert read("--no-fast", "--limit", "none") == Example()
    assert read("--word=--dashed") == Example(word="--dashed")


def test_the_command_line_wins_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("task: t\nsize: 5\nrate: 1e-2\nfast: true\n")
    assert read("--config", str(file), "--size", "6") == Example(size=6, rate=0.01, fast=True)


def test_what_is_saved_reads_back(tmp_path: Path) -> None:
    example = Example(4, 0.25, 1e-30, "green", True, "yes: no", "/tmp/ä", None)
    (tmp_path / "c.yaml").write_text(to_yaml(example, {"task": "t"}), encoding="utf-8")
    assert read("--config", str(tmp_path / "c.yaml")) == example
    assert "here" not in yaml.safe_load((tmp_path / "c.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sise", "4"], "unknown option --sise; did you mean --size"),
        (["--siz", "4"], "unknown option --siz; did you mean --size"),
        (["--qqqqqq=4"], "unknown option --qqqqqq; choose from --size"),
        (["word"], "unexpected argument 'word'"),
        (["--size"], "--size: expected one argument"),
        (["--size", "4.5"], "--size must be a whole number, got '4.5'"),
        (["--size", "0"], "--size must be at least 1, got 0"),
        (["--rate", "0"], "--rate must be more than 0, got 0"),
        (["--rate", "1"], "--rate must be less than 1, got 1"),
        (["--rate", "nan"], "--rate must be a finite number, got 'nan'"),
        (["--kind", "gren"], "unknown --kind 'gren'; did you mean green"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sise: 4", "unknown option 'sise'; did you mean size"),
        ("size: big", "--size must be a whole number, got 'big'"),
        ("fast: 1", "--fast must be true or false, got 1"),
        ("kind: 3", "unknown --kind 3"),
        ("task: other", "is for task 'other', not 't'"),
        ("- size", "must hold options"),
        ("a: [", "is not valid YAML at line"),
        (None, "No such file"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read("--config", str(file))
    assert message in str(caught.value)


def test_options_made_in_python_are_checked_too() -> None:
    with pytest.raises(UsageError, match="--size must be at least 1"):
        Example(size=0)


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_every_option_of_every_task_has_help_and_a_sound_default(task: tasks.Task) -> None:
    for kind in (task.config, *task.options.values()):
        for field in dataclasses.fields(kind):
            assert field.metadata["help"], dashed(field.name)
    assert task.config() is not None
    for name in (task.name, *task.aliases):
        assert tasks.get(name) is task


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_ready_made_configurations_are_valid(file: Path) -> None:
    task = tasks.get(yaml.safe_load(file.read_text())["task"])
    given = read_yaml(file, task.config, {"task": task.name})
    assert len(given) > 4
    task.config(**given)  # type: ignore[arg-type]
