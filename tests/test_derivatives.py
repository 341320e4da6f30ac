"""Derivatives of what has corners and jumps: remainders, floor, chains of choices; kernels, reference, and numbers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elman import Cell, Recurrent, use_engine
from elman.cells import Extra
from elman.cells.math import absolute, exp, floor, maximum, minimum, relu, sin, tanh, where
from elman.testing import Case, compare

LINKS = 200


class OneValue(Cell):
    """h_t = f(W x_t + b, U h_{t-1}, q) with a per-unit value q and a time gap."""

    gates = ("h",)
    vectors = ("q",)
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=tanh(self.value(x.h, u.h(s.h), p.q)))

    def value(self, a: Any, b: Any, q: Any) -> Any:
        raise NotImplementedError


class RemainderOfANumber(OneValue):
    def value(self, a: Any, b: Any, q: Any) -> Any:
        return (3 * a + b) % 1.5 + q


class RemainderByANegativeNumber(OneValue):
    def value(self, a: Any, b: Any, q: Any) -> Any:
        return (3 * a + b) % -0.7 + q


class RemainderByAValue(OneValue):
    """Divisors of both signs, away from zero: the derivative with respect to them is -⌊a / b⌋."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        divisor = where(q > 0, 0.4 + absolute(b), -0.4 - absolute(b))
        return (2 * a) % divisor


class RemainderOfAWidthOfOne(OneValue):
    """A divisor that all units share receives the sum of what they give."""

    extras = (Extra("gap"),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=tanh((4 * x.h) % (x.gap + 0.1) + u.h(s.h) % x.gap))


class Steps(OneValue):
    """floor has no slope, and what it is multiplied with has."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        return floor(2 * a + b) * b + a * floor(3 * q) + 4 * a - floor(4 * a)


class StepsAlone(OneValue):
    """Nothing but a staircase: no derivative at all, not even with respect to the old state."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        return floor(3 * a + 3 * b + q)


class Corners(OneValue):
    def value(self, a: Any, b: Any, q: Any) -> Any:
        inner = where((a > b) == (q > 0), maximum(a, q) * b, minimum(a, b) + relu(q * b))
        return where(inner % 0.5 < 0.25, inner, where(floor(4 * a) % 2 == 0, sin(inner), -2 * inner))


class Ladder(OneValue):
    """Each choice falls through to the next: a table of values by range."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        result = b
        for k in range(LINKS):
            result = where(a > 4 * k / LINKS - 2, (k % 7 - 3) * a + 0.1 * q, result)
        return result


class Chain(OneValue):
    """Each choice is read by the next twice, as its condition and as its value; written out it had 2²⁰⁰ parts."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        result = a
        drift = 0.05 * b
        for _ in range(LINKS):
            result = where(result > 0, 0.97 * result, 1.02 * result) + drift
        return result


class Masked(OneValue):
    """Both sides of a choice are computed; a side that is not taken may be infinite and must not reach the gradient."""

    def value(self, a: Any, b: Any, q: Any) -> Any:
        safe = where(a > 0, a, 1.0)
        return where(a > 0, exp(-1 / safe), b) * q


CELLS = [
    *(RemainderOfANumber, RemainderByANegativeNumber, RemainderByAValue, RemainderOfAWidthOfOne),
    *(Steps, StepsAlone, Corners, Masked, Ladder, Chain),
]


def setting(cell: type[Cell], steps: int = 4) -> tuple[Case, Recurrent, Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
    """Two layers with random parameters, an input, a state and extras, all of which take gradients."""
    case = Case(cell(), input_size=3, hidden_size=5)
    module = case.module()
    extras = {k: v.requires_grad_() for k, v in case.extras(steps, 3).items()}
    return case, module, case.input(steps, 3).requires_grad_(), case.state(module, 3), extras


@pytest.mark.parametrize("cell", CELLS)
def test_kernels_have_the_derivatives_of_the_reference(cell: type[Cell]) -> None:
    case, module, x, state, extras = setting(cell)

    def on(engine: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with use_engine(engine):
                return list(module(x, case.pass_in(state), lengths=[4, 2, 3], extras=extras))

        return run

    compare(module, [x, *state, *extras.values()], (on("cpu"), on("reference")), cell.__name__)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("cell", [c for c in CELLS if c is not Chain])  # whose corners lie close together
def test_derivatives_are_those_of_differences(cell: type[Cell], engine: str) -> None:
    """No input, state or parameter is left out; jumps lie nowhere near these values."""
    case, module, x, state, extras = setting(cell, steps=2 if cell is Ladder else 4)
    names = [n for n, _ in module.named_parameters()]

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        entered, given = case.pass_in(next(rest) for _ in state), {k: next(rest) for k in extras}
        parameters = dict(zip(names, rest, strict=True))
        with use_engine(engine):
            return torch.func.functional_call(module, parameters, (x, entered), {"extras": given})

    tensors = (x, *state, *extras.values(), *(p.detach().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(run, tensors, fast_mode=cell is Ladder)


@pytest.mark.parametrize("cell", [Ladder, Chain])
def test_long_chains_compile_in_seconds(cell: type[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace, derivatives, source and compiler: both kernels are built anew. What walks all paths would never end."""
    monkeypatch.setenv("ELMAN_CACHE", str(tmp_path))
    module = Recurrent(cell, 3, 5)
    x = torch.randn(4, 3, 3)
    start = time.perf_counter()
    with use_engine("cpu"):
        module(x)[0].sum().backward()
    assert time.perf_counter() - start < 60
    assert list(tmp_path.glob("**/*.so"))
