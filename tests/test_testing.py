"""`check_cell` finds what is wrong with a cell, and says what it ran."""

from typing import Any

import pytest
import torch

from elman import Cell
from elman.cells.math import tanh
from elman.testing import CHECKS, SUITES, check_cell


class Sound(Cell):
    gates = ("h",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=tanh(x.h + u.h(s.h)))


class Remembers(Cell):
    """Its sixth step differs from the others, whatever sequence it belongs to."""

    gates = ("h",)
    steps = 0

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        Remembers.steps += 1
        return self.State(h=tanh(x.h + u.h(s.h)) * (2.0 if Remembers.steps % 6 == 0 else 1.0))


class Detached(Cell):
    gates = ("h",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        old = s.h.detach() if isinstance(s.h, torch.Tensor) else s.h
        return self.State(h=tanh(x.h + u.h(old)))


class TwoFaced(Cell):
    """Another cell when it is traced."""

    gates = ("h",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        h = tanh(x.h + u.h(s.h))
        return self.State(h=h if isinstance(h, torch.Tensor) else 0.5 * h)


class MixesRows(Cell):
    """A row of the batch that sees the others."""

    gates = ("h",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=tanh(x.h + u.h(s.h) - x.h.mean(0)))


def test_a_sound_cell_gets_a_report() -> None:
    report = check_cell(Sound)
    assert {engine for engine, _ in report.ran} == {"reference", "cpu"}
    assert {dtype for engine, dtype in report.ran} == {torch.float32, torch.float64}
    assert report.ran == {run: checks for run, checks in SUITES.items() if run[0] != "torch"}
    assert list(report.refused) == ["torch"]
    text = str(report).splitlines()
    assert text[0] == f"Sound() keeps the contract: {sum(map(len, report.ran.values()))} checks passed"
    assert text[-1] == "  not run: the engine 'torch' cannot run this layer: torch has no kernel for Sound()"


def test_every_engine_that_can_run_a_cell_is_checked() -> None:
    report = check_cell("gru", hidden_size=5, num_layers=1)
    assert report.ran == SUITES
    assert not report.refused
    assert {check for checks in SUITES.values() for check in checks} == set(CHECKS)


@pytest.mark.parametrize(
    ("cell", "check", "engine"),
    [
        (Detached, "derivatives", "reference"),
        (MixesRows, "lengths", "reference"),
        (TwoFaced, "engine", "cpu"),
    ],
)
def test_a_failure_names_check_engine_and_difference(cell: type[Cell], check: str, engine: str) -> None:
    with pytest.raises(AssertionError) as failure:
        check_cell(cell)
    text = str(failure.value)
    assert text.startswith(f"{cell.__name__}() fails the check '{check}' on the engine {engine}, torch.float64: ")
    assert text.endswith(")")
    assert "the check: " in text


def test_a_cell_that_keeps_something_to_itself_is_found() -> None:
    with pytest.raises(AssertionError, match=r"Remembers\(\) fails the check"):
        check_cell(Remembers)


def test_a_cell_that_cannot_be_compiled_is_checked_on_the_reference() -> None:
    class Branching(Cell):
        gates = ("h",)

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            return self.State(h=tanh(x.h + u.h(s.h)) if x.h.shape[-1] else x.h)

    report = check_cell(Branching)
    assert {engine for engine, _ in report.ran} == {"reference"}
    assert "'shape'" in report.refused["cpu"]
    assert "cannot be compiled" in str(report)
