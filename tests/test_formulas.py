"""Printed formulas: read back and computed, they give what the step gives; and how they are written."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from elman import Cell, cells
from elman.catalogue.facts import _choices, _fields
from elman.cells import Extra, StateEntry
from elman.cells import math as functions
from elman.cells.layout import Layout, layout
from elman.cells.structure import Antisymmetric, LowRank
from elman.cells.wrapped import Projected
from elman.compiler.formulas import Formulas, formulas
from elman.compiler.graph import CannotCompile
from elman.compiler.notation import Name, Plain
from elman.engine import reference
from formula_reader import evaluate

H = 24


class Phrases(Cell):
    """What no cell of the collection says: powers, roots, nested choices, an absolute value, a value used twice."""

    gates = ("b",)
    state = ("h", StateEntry("age", 1), "t")
    vectors = ("b_b", "v")
    extras = (Extra("gap"),)

    def step(self, x, u, s, p):
        from elman.cells.math import absolute, floor, mean, relu, rsqrt, sin, sqrt, where

        y = -(x.b - (u.b(s.h) - p.b_b)) * 2.0
        v = where(y > 0.5, y**2, where(s.t % 3 == 0, -y, absolute(y) ** 3))
        h = sin(v) / (1 + sqrt(p.v * p.v + 1.0)) - relu(v) * rsqrt(2.0 + mean(v * v)) - mean(y) * 1e-7
        h = h + sin(y * y - floor(x.gap * y)) * sin(y * y - floor(x.gap * y)) * (-0.5)
        return self.State(h=h, age=s.age + x.gap, t=s.t + 1)


def _all() -> dict[str, Cell]:
    found: dict[str, Cell] = {name: cells.get(name)() for name in cells.names()}
    for name, cell in list(found.items()):
        for option, hint in _fields(cell):
            for choice in _choices(hint):
                found[f"{name} {option}={choice}"] = dataclasses.replace(cell, **{option: choice})  # type: ignore[type-var]
    found["low rank"] = cells.get("fast_grnn")(rank=3, input_rank=2)
    found["leaky reservoir"] = cells.get("echo_state")(alpha=0.3)
    found["projected"] = Projected(cells.get("lstm")(), 5)
    found["phrases"] = Phrases()
    return found


CELLS = _all()


def _values(cell: Cell, parts: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Any]:
    """Random parameters, inputs, constants and state; what equations divide by or take the logarithm of is positive."""
    torch.manual_seed(0)
    parameters = {p.name: torch.randn(p.shape, dtype=torch.float64) / math.sqrt(H) for p in parts.parameters}
    parameters |= {name: parameters[name].abs() + 0.3 for name in parts.vectors}
    sources = {"raw": torch.randn(3, parts.input_size, dtype=torch.float64)}
    sources |= {e.name: torch.rand(3, e.width, dtype=torch.float64) + 0.5 for e in parts.extras}
    sources |= {f"below.{name}": torch.randn(3, H, dtype=torch.float64) for name in cell.below}
    constants = reference.constants(cell, H, sources["raw"])
    state = [
        torch.tensor([[0], [1], [6]]) if e.name == "t" else torch.rand(3, width, dtype=torch.float64) + 0.1
        for e, width in parts.states
    ]
    return parameters, sources, constants, cell.State(*state)


def _names(parts: Layout, parameters: Any, sources: Any, constants: Any, state: Any) -> dict[str, Any]:
    """What each name of a formula stands for, by the rules that docs/cells.md gives."""
    write = Plain().name
    names: dict[str, Any] = {"e": math.e, "x_t": sources["raw"]}
    names |= {write(Name(k)): v for k, v in {**constants, **{n: parameters[n] for n in parts.vectors}}.items()}
    for name, value in zip(state._fields, state, strict=True):
        names["t" if name == "t" else write(Name(name, time="t-1"))] = value
    for name, value in sources.items():
        kind, _, rest = name.partition(".")
        if kind == "below":
            names[write(Name(rest, time="t", above="below"))] = value
        elif kind != "raw":
            names["Δt" if name == "dt" else write(Name(name, time="t"))] = value

    def give(letter: str, of: str, weight: Any, bias: Tensor | None) -> None:
        names[write(Name(letter, of=of))] = weight
        if bias is not None:
            mark = ""
            while write(Name("b", of=of, mark=mark)) in names:
                mark += "'"
            names[write(Name("b", of=of, mark=mark))] = bias

    for gate, rows in parts.input_gates.items():
        bias = parameters["bias_ih"][rows] if parts.input_bias else None
        give("W", gate, lambda v, w=parameters["weight_ih"][rows]: F.linear(v, w), bias)
    for name, product in parts.products.items():
        bare = dataclasses.replace(product, bias=None)
        run = reference._product(bare, constants if product.fixed else parameters)
        letter = "U" if product.weight == "weight_hh" else "V"
        bias = parameters[product.bias][product.rows] if product.bias else None
        if product.fixed:
            names[write(Name(name))] = run
        elif isinstance(product.structure, LowRank):
            inner = parameters[f"{product.weight}_in"]
            names[write(Name(letter, of="" if letter == "U" else name, above="in"))] = lambda v, w=inner: F.linear(v, w)
            give(letter, name, lambda v, w=parameters[product.weight][product.rows]: F.linear(v, w), bias)
        else:
            give("A" if isinstance(product.structure, Antisymmetric) else letter, name, run, bias)
    return names


@pytest.mark.parametrize("name", CELLS)
def test_what_is_printed_is_what_is_computed(name: str) -> None:
    cell = CELLS[name]
    parts = layout(cell, H, H)
    parameters, sources, constants, state = _values(cell, parts)
    values = SimpleNamespace(**constants, **{n: parameters[n] for n in parts.vectors})
    x = reference.step_inputs({**sources, **reference.input_gates(parts, parameters, sources["raw"])})
    expected = cell.step(x, reference.Products(parts, parameters, constants), state, values)

    printed = formulas(cell, parts, dict.fromkeys(cell.below, H))
    names = _names(parts, parameters, sources, constants, state)
    for left, right in printed.plain:
        value = evaluate(right, names)
        together = [left] if not isinstance(value, tuple) else left.split(", ")
        names |= dict(zip(together, value if isinstance(value, tuple) else (value,), strict=True))
    for entry, wanted in zip(state._fields, expected, strict=True):
        if entry != "t":
            got = names[Plain().name(Name(entry, time="t"))]
            torch.testing.assert_close(got.expand_as(wanted), wanted, rtol=1e-4, atol=1e-5)  # six digits are printed


@pytest.mark.parametrize("name", CELLS)
def test_latex_is_well_formed(name: str) -> None:
    printed = formulas(CELLS[name], layout(CELLS[name], H, H), dict.fromkeys(CELLS[name].below, H))
    assert len(printed.latex) == len(printed.plain)
    text = printed.markdown()
    assert text.startswith("$$\n\\begin{aligned}\n")
    assert text.endswith("\n\\end{aligned}\n$$")
    for opening, closing in ("{}", "()", (r"\left", r"\right"), (r"\begin", r"\end")):
        assert text.count(opening) == text.count(closing)
    assert not set("∘σ²·⌊√⁽") & set(text)
    assert r"\operatorname" not in text


def _of(cell: Cell) -> Formulas:
    return formulas(cell, layout(cell, H, H))


def test_an_equation_reads_like_the_paper() -> None:
    assert str(_of(cells.get("gru")())).splitlines() == [
        "r   = σ(W_r x_t + U_r h_{t-1} + b_r + b'_r)",
        "z   = σ(W_z x_t + U_z h_{t-1} + b_z + b'_z)",
        "n   = tanh(W_n x_t + r ∘ (U_n h_{t-1} + b'_n) + b_n)",
        "h_t = (1 - z) ∘ n + z ∘ h_{t-1}",
    ]
    assert _of(cells.get("lem")(dt=0.5)).latex[0] == (
        r"\delta_{z}",
        r"0.5\,\sigma(W_{\delta_{z}}\,x_{t} + U_{\delta_{z}}\,y_{t-1} + b_{\delta_{z}})",
    )


def test_functions_of_several_operations_are_recognised() -> None:
    lines = str(_of(cells.get("layer_norm_lstm")())).splitlines()
    assert lines[0] == "x_i, x_f, x_g, x_o = LN(W_i x_t, W_f x_t, W_g x_t, W_o x_t)"
    assert any(line.endswith("= LN(c_t)") for line in lines)
    assert "log σ(W_f x_t" in str(_of(cells.get("slstm")()))
    assert "softplus(τ)" in str(_of(cells.get("ltc")()))


def test_values_of_a_loop_are_counted() -> None:
    assert [left for left, _ in _of(cells.get("recurrent_highway")(depth=3)).plain] == [
        *("a⁽¹⁾", "z⁽¹⁾", "h⁽¹⁾"),
        *("a⁽²⁾", "z⁽²⁾", "h⁽²⁾"),
        *("a⁽³⁾", "z⁽³⁾", "h_t"),
    ]


def test_what_is_used_twice_gets_a_name() -> None:
    class Nameless(Cell):
        gates = ("a",)
        state = ("h", "c")

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            return self.State(functions.tanh(u.a(s.h)) * s.c, functions.tanh(u.a(s.h)) + x.a)

    assert [left for left, _ in _of(Nameless()).plain] == ["v", "h_t", "c_t"]


def test_a_step_that_cannot_be_traced_says_why() -> None:
    class Branching(Cell):
        gates = ("h",)

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            return self.State(h=x.h if x.h > 0 else u.h(s.h))

    with pytest.raises(CannotCompile, match="branches on a value"):
        _of(Branching())


def test_tracing_leaves_a_debugger_as_it_was() -> None:
    import sys

    def watch(*arguments: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        _of(cells.get("gru")())
        assert sys.gettrace() is watch
    finally:
        sys.settrace(before)
