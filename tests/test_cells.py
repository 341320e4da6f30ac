"""What single cells promise beyond the contract that all share."""

import dataclasses
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import elman
from elman import Cell, Recurrent, cells
from elman.cells import Extra, Product, StateEntry
from elman.cells.discretise import zero_order_hold
from elman.cells.layout import layout
from elman.cells.math import exp, log_sigmoid, mean, softplus, tanh
from elman.cells.structure import BlockDiagonal, BlockTriangular, LowRank
from elman.testing import SUITES, Case, run_check


def test_definitions_need_no_torch() -> None:
    import subprocess

    code = "import sys, elman; [elman.cells.get(n)() for n in elman.cells.names()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_cell_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown cell 'peephole'; did you mean 'peephole_lstm'"):
        cells.get("peephole")


@pytest.mark.parametrize("name", cells.names())
def test_parameter_count_is_the_documented_one(name: str) -> None:
    """The formula after "Parameters" in a cell's docstring, evaluated."""
    cell = cells.get(name)()
    text = " ".join((type(cell).__doc__ or "").split())
    formula = text.split("Parameters: ")[-1] if "Parameters: " in text else text.split("Parameters in use: ")[-1]
    formula = formula.split(" in each layer")[0].rstrip(".").replace("²", "**2").replace("·", "*")
    expression = re.sub(r"(?<![A-Za-z_\d])(\d+)(?=[A-Za-z_])", r"\1*", formula)  # 4H is 4*H
    options = vars(cell) if dataclasses.is_dataclass(cell) else {}
    sizes = options | {"I": 6, "H": 8, "g": 4}
    parts = layout(cell, sizes["I"], sizes["H"])
    count = sum(math.prod(p.shape) for p in parts.parameters)
    if isinstance(cell.recurrent_structure, BlockTriangular):
        count -= 8 * 8 * 3 // 8  # below the diagonal of 4 × 4 blocks
    assert eval(expression, {}, sizes) == count, expression


def test_the_opposite_update_gate_is_the_same_cell_negated() -> None:
    """Texts that write h = z ∘ n + (1 - z) ∘ h mean GRU with the weights and biases of z negated."""
    torch.manual_seed(0)
    module = Recurrent("gru_reset_before", 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    w, u, b, d = (p.detach() for p in module.parameters())
    rows = {"r": slice(0, 4), "z": slice(4, 8), "n": slice(8, 12)}
    h, outputs = torch.zeros(2, 4, dtype=torch.float64), []
    for step in x:

        def affine(gate: str, v: torch.Tensor, step: torch.Tensor = step) -> torch.Tensor:
            k = rows[gate]
            return step @ w[k].T + b[k] + v @ u[k].T + d[k]

        r, z = affine("r", h).sigmoid(), affine("z", h).sigmoid()
        h = z * affine("n", r * h).tanh() + (1 - z) * h
        outputs.append(h)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[rows["z"]] *= -1
    torch.testing.assert_close(module(x)[0], torch.stack(outputs))


def test_gru_conventions_differ() -> None:
    torch.manual_seed(0)
    after, before = Recurrent("gru", 3, 4), Recurrent("gru_reset_before", 3, 4)
    before.load_state_dict(after.state_dict())
    x = torch.randn(5, 2, 3)
    assert (after(x)[0] - before(x)[0]).abs().max() > 1e-4


def test_clockwork_blocks_hold_until_they_are_due() -> None:
    module = Recurrent(cells.get("clockwork")(periods=(1, 3)), 2, 4)
    output, state = module(torch.randn(7, 1, 2))
    moves = (output[1:] != output[:-1]).squeeze(1)
    assert moves[:, :2].all()
    assert moves[:, 2:].all(1).tolist() == [False, False, True, False, False, True]
    assert not moves[[0, 1, 3, 4], 2:].any()
    assert state.t.tolist() == [[[7]]]


def test_clockwork_fast_blocks_do_not_reach_slow_ones() -> None:
    module = Recurrent(cells.get("clockwork")(periods=(1, 1)), 2, 4)
    output, _ = module(torch.randn(5, 1, 2))
    output[:, :, 2:].sum().backward()
    gradient = module.weight_hh_l0.grad
    assert gradient[2:, :2].abs().max() == 0
    assert gradient[2:, 2:].abs().max() > 0


def test_zero_order_hold_equals_the_matrix_exponential() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 5)) * 3, rng.normal(size=5)
    a_bar, b_bar = zero_order_hold(a, b)
    expected = torch.linalg.matrix_exp(torch.tensor(a)).numpy()
    np.testing.assert_allclose(a_bar, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(b_bar, np.linalg.solve(a, (expected - np.eye(5)) @ b), rtol=1e-9)


def test_lmu_memory_holds_the_delayed_signal() -> None:
    """The Legendre polynomials at the far end of the window, all 1 up to sign, read the signal θ steps ago."""
    theta, order = 50.0, 12
    constants = cells.get("lmu")(order=order, theta=theta).constants(8)
    signal = np.sin(np.arange(200) * 2 * np.pi / 100)
    m, read = np.zeros(order), []
    for value in signal:
        m = constants["A_bar"] @ m + constants["B_bar"] * value
        read.append(m.sum())
    np.testing.assert_allclose(np.array(read)[100:], signal[100 - 50 + 1 : 151], atol=0.05)


def test_depth_gate_reads_the_memory_below() -> None:
    module = Recurrent("depth_gated_lstm", 3, 4, num_layers=2)
    assert not hasattr(module, "w_l_l0")
    module(torch.randn(5, 2, 3))[0].sum().backward()
    assert module.w_l_l1.grad.abs().max() > 0


def test_layer_norm_lstm_ignores_the_scale_of_its_input_weights() -> None:
    module = Recurrent("layer_norm_lstm", 3, 16, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = module(x)[0]
    with torch.no_grad():
        module.weight_ih_l0 *= 1000
        module.weight_hh_l0 *= 1000
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=0.02)


def test_slstm_survives_large_gates() -> None:
    module = Recurrent("slstm", 2, 8)
    with torch.no_grad():
        module.bias_ih_l0[:8] += 500.0
    output, state = module(torch.randn(50, 2, 2))
    output.sum().backward()
    assert output.isfinite().all()
    assert state.c.isfinite().all()
    assert module.weight_ih_l0.grad.isfinite().all()


def test_cfc_uses_its_time_gaps() -> None:
    module, x = Recurrent("cfc", 2, 8), torch.randn(5, 3, 2)
    default, ones = module(x)[0], module(x, extras={"dt": torch.ones(5, 3)})[0]
    assert torch.equal(default, ones)
    assert not torch.allclose(module(x, extras={"dt": torch.full((5, 3), 2.0)})[0], ones)
    with pytest.raises(ValueError, match="extra input 'dt' must be"):
        module(x, extras={"dt": torch.ones(3, 5)})
    with pytest.raises(ValueError, match="unknown extra input 'gap'; the cell has: dt"):
        module(x, extras={"gap": torch.ones(5, 3)})


def test_log_sigmoid_and_softplus_never_overflow() -> None:
    v = torch.tensor([-1000.0, -3.0, 0.0, 3.0, 1000.0], requires_grad=True)
    torch.testing.assert_close(log_sigmoid(v), nn.functional.logsigmoid(v))
    torch.testing.assert_close(softplus(v), nn.functional.softplus(v))
    (gradient,) = torch.autograd.grad(log_sigmoid(v).sum(), v)
    torch.testing.assert_close(gradient, torch.sigmoid(-v))


class Everything(Cell):
    """A cell that uses each way to say something, in one step that means nothing."""

    input_gates = ("a",)
    recurrent_gates = ("a", "b")
    recurrent_structure = LowRank(3)
    state = (StateEntry("h", width=4), StateEntry("slow", initial=0.5), StateEntry("last", width="I"), "t")
    vectors = ("scale",)
    products = (
        Product("out", input="H", output="R"),
        Product("mix", input="H", structure=BlockDiagonal(2)),
        Product("past", input="I", bias=False),
    )
    extras = (Extra("gap", width=2),)

    def constants(self, hidden_size: int) -> dict[str, np.ndarray]:
        return {"rate": np.linspace(0.1, 1.0, hidden_size)}

    def step(self, x, u, s, p):
        a = tanh(x.a + u.a(s.h) + u.past(s.last))
        b = u.mix(a * p.scale) + u["b"](s.h) * mean(x.gap)
        slow = s.slow + p.rate * (b - s.slow) * exp(-x.gap[..., :1]) / (s.t + 1)
        return self.State(h=tanh(u.out(slow)), slow=slow, last=x.raw, t=s.t + 1)


@pytest.mark.parametrize("check", SUITES["reference", torch.float64])
def test_the_contract_stretches(check: str) -> None:
    run_check(check, Case(Everything(), num_layers=1))


def test_states_of_width_i_must_agree_between_layers() -> None:
    with pytest.raises(ValueError, match="same states in every layer"):
        Recurrent(Everything(), 3, 8, num_layers=2)


class Broken(Cell):
    gates = ("h",)

    def step(self, x, u, s, p):
        return self.State(h=mean(x.h))


def test_a_step_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"step must return h as \[B, width\] = \(2, 4\), got \(2, 1\)"):
        Recurrent(Broken, 3, 4)(torch.zeros(5, 2, 3))


class NoTuple(Cell):
    gates = ("h",)

    def step(self, x, u, s, p):
        return x.h


def test_a_step_that_returns_no_state_is_named() -> None:
    with pytest.raises(ValueError, match=r"step must return self.State\(h\)"):
        Recurrent(NoTuple, 3, 4)(torch.zeros(5, 2, 3))


class Unknown(Cell):
    gates = ("h",)

    def step(self, x, u, s, p):
        return self.State(h=u.wrong(s.h))


def test_an_undeclared_product_is_named() -> None:
    with pytest.raises(AttributeError, match="declares no product 'wrong'; declared: h"):
        Recurrent(Unknown, 3, 4)(torch.zeros(5, 2, 3))


class Twice(Cell):
    gates = ("h", "h")


class Reserved(Cell):
    gates = ("raw",)


@pytest.mark.parametrize("cell", [Twice, Reserved])
def test_names_declared_twice_or_reserved(cell: type[Cell]) -> None:
    with pytest.raises(ValueError, match="declared twice"):
        Recurrent(cell, 3, 4)


def test_blocks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"multiple of the number of blocks \(4\), got 6"):
        Recurrent("slstm", 3, 6)


def test_registering_a_cell() -> None:
    cells.register("test_only", Everything)
    try:
        assert "test_only" in cells.names()
        assert type(elman.Recurrent("test_only", 3, 4).cell) is Everything
        with pytest.raises(ValueError, match="taken by Everything"):
            cells.register("test_only", Broken)
    finally:
        cells._registry.pop("test_only")
