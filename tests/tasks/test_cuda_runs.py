"""Training, resuming and evaluating on CUDA."""

import json
from pathlib import Path

import pytest
import torch

from elman.cli import main

from .conftest import SMALL, metrics_of

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

# See docs/status.md.
pytestmark = pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous")


def loss_of(run: Path, device: str, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--device", device, "--format", "json"]) == 0
    return float(json.loads(capsys.readouterr().out)["loss"])


@pytest.mark.parametrize("cell", ["lstm", "min_gru"])  # torch's kernels, the reference engine
def test_language_model(cell: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--cell", cell, "--data", str(text_file), "--device", "cuda"]
    often = ["--checkpoint-every", "10", "--log-every", "5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", "lm", *options, *often, "--run", str(whole), "--max-steps", "40"]) == 0
    assert main(["train", "lm", *options, *often, "--run", str(parts), "--max-steps", "20"]) == 0
    assert main(["train", "lm", "--run", str(parts), "--resume", "--max-steps", "40"]) == 0
    assert loss_of(whole, "cuda", capsys) == pytest.approx(loss_of(whole, "cpu", capsys), abs=1e-3)
    assert max(line["step"] for line in metrics_of(parts)) == 40
    assert loss_of(parts, "cuda", capsys) < 5  # a model that knows nothing has the logarithm of some 90 characters
    assert main(["generate", str(whole), "--device", "cuda", "--length", "20"]) == 0


def test_long_memory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "copy", "--run", str(run), "--device", "cuda", "--max-steps", "20"]) == 0
    assert metrics_of(run)
