"""The script that makes the table of cells: run by run, never a run twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_memory.py"


@pytest.mark.slow
def test_a_finished_run_is_not_made_again_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "results.md"

    def make(*options: str) -> "subprocess.CompletedProcess[str]":
        places = ("--runs", str(tmp_path / "runs"), "--output", str(output))
        return subprocess.run([sys.executable, str(SCRIPT), *places, *options], capture_output=True, text=True)

    first = make("--cells", "elman", "--tasks", "mnist1d", "--max-steps", "3")
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "runs").iterdir()
    accuracy = json.loads((run / "result.json").read_text())["test"]["accuracy"]
    assert f"| `elman` | {accuracy:.1%} | " in output.read_text()
    both = ("--cells", "elman,gru", "--tasks", "mnist1d", "--max-steps", "3")
    second = make(*both)
    assert "--cell gru" in second.stdout
    assert "--cell elman" not in second.stdout
    assert [line.split()[1] for line in output.read_text().splitlines()[-2:]] == ["`elman`", "`gru`"]
    (run / "result.json").unlink()
    third = make(*both)
    assert "going on after step 3" in third.stdout
    assert "--cell gru" not in third.stdout
    assert json.loads((run / "result.json").read_text())["test"]["accuracy"] == accuracy
    other = make("--cells", "elman", "--tasks", "mnist1d", "--max-steps", "4")
    assert other.returncode == 1
    assert "choose another --runs" in other.stderr
