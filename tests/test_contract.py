"""Every registered cell is put to every check of the contract, on every engine that can run it."""

from typing import Any

import pytest
import torch

from elman import cells
from elman.cells.wrapped import Projected
from elman.testing import SUITES, Case, run_check, why_not

CELLS = {name: cells.get(name)() for name in cells.names()} | {
    "elman_relu": cells.get("elman")("relu"),
    "slstm_one_head": cells.get("slstm")(heads=1),
    "lstm_projected": Projected(cells.get("lstm")(), 5),
}


def _runs(engine: str) -> list[Any]:
    """Each cell that the engine can run, with each dtype and check of `SUITES`."""
    names = [name for name, cell in CELLS.items() if engine != "torch" or not why_not(Case(cell, engine=engine))]
    return [
        pytest.param(name, dtype, check, id=f"{name}-{dtype}-{check}")
        for name in names
        for (suite, dtype), checks in SUITES.items()
        if suite == engine
        for check in checks
    ]


@pytest.mark.parametrize(("name", "dtype", "check"), _runs("reference"))
def test_reference(name: str, dtype: torch.dtype, check: str) -> None:
    run_check(check, Case(CELLS[name], dtype=dtype))


@pytest.mark.parametrize(("name", "dtype", "check"), _runs("torch"))
def test_torch_kernels(name: str, dtype: torch.dtype, check: str) -> None:
    run_check(check, Case(CELLS[name], engine="torch", dtype=dtype))


@pytest.mark.parametrize(("name", "dtype", "check"), _runs("cpu"))
def test_compiled_kernels(name: str, dtype: torch.dtype, check: str) -> None:
    run_check(check, Case(CELLS[name], engine="cpu", dtype=dtype))
