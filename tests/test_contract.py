"""Every registered cell is put to every check of the contract, on every engine that can run it."""

import pytest
import torch

from elman import Recurrent, cells, explain, use_engine
from elman.cells.wrapped import Projected
from elman.testing import CHECKS, Case, run_check

CELLS = {name: cells.get(name)() for name in cells.names()} | {
    "elman_relu": cells.get("elman")("relu"),
    "slstm_one_head": cells.get("slstm")(heads=1),
    "lstm_projected": Projected(cells.get("lstm")(), 5),
}


def _on_torch(name: str) -> bool:
    try:
        with use_engine("torch"):
            return bool(explain(Recurrent(CELLS[name], 3, 8)).engines)
    except RuntimeError:
        return False


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CELLS)
def test_reference(name: str, check: str) -> None:
    run_check(check, Case(CELLS[name]))


# Resets are not for torch's kernels; the numerical derivatives of the reference and its equality cover theirs.
@pytest.mark.parametrize("check", [c for c in CHECKS if "reset" not in c and c != "derivatives"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in CELLS if _on_torch(name)])
def test_torch_kernels(name: str, check: str, dtype: torch.dtype) -> None:
    run_check(check, Case(CELLS[name], engine="torch", dtype=dtype))


@pytest.mark.parametrize("check", [c for c in CHECKS if c != "derivatives"])
@pytest.mark.parametrize("name", CELLS)
def test_compiled_kernels(name: str, check: str) -> None:
    run_check(check, Case(CELLS[name], engine="cpu"))


@pytest.mark.parametrize("name", CELLS)
def test_reference_in_float32(name: str) -> None:
    run_check("lengths_bidirectional", Case(CELLS[name], dtype=torch.float32))
