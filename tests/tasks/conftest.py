"""Real texts, a small model, and the command line as a function."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elman.cli import main

SMALL = ["--hidden-size", "16", "--batch-size", "4", "--window", "16", "--embedding-size", "8"]
CLOCKS = ("seconds", "tokens_per_second", "memory_mb", "cuda_memory_mb")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real text of some 20,000 characters."""
    file = tmp_path_factory.mktemp("text") / "text.py"
    file.write_text(Path(argparse.__file__).read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """The run folder of a model trained for a moment; not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = ["--data", str(text_file), "--run", str(run), "--max-steps", "30", "--test-share", "0.1"]
    assert main(["train", "lm", *SMALL, *options]) == 0
    return run


def metrics_of(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without the clocks, the only fields that may differ between equal runs."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


@pytest.fixture
def elman_process() -> "Iterator[Callable[..., subprocess.Popen[str]]]":
    """Starts ``python -m elman ARGUMENTS`` as a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "elman", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
