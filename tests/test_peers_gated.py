"""Gated cells against torchrecurrent, and where it has none or another, against loops written from the papers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchrecurrent
from torch import Tensor
from torch.nn import functional as F
from torchrecurrent import base

from elman import Cell, Recurrent, cells, use_engine
from elman.testing import Case, compare

H = 8
DECOUPLED = (base.DecoupledSingleStateCellBase, base.DecoupledDoubleStateCellBase)  # give (output, state)

Weights = dict[str, Tensor]
Blocks = list[str]


def rows(parameter: str, gates: str) -> Blocks:
    """The names of a parameter's blocks of rows, one for each gate."""
    return [f"{parameter}.{gate}" for gate in gates.split()]


@dataclass(frozen=True)
class Peer:
    """A cell and the class in torchrecurrent that is the same.

    `parameters` names, for each parameter of the peer's, the blocks of Elman's that it is made of, in the peer's order;
    "0" is a bias of zeros and "1" the identity. What is not named stays as it starts, which for biases is zero.
    """

    cell: Cell
    name: str
    parameters: dict[str, Blocks]
    options: dict[str, Any] = field(default_factory=dict)


def plain(gates: str, *without: str) -> dict[str, Blocks]:
    """Parameters that are Elman's with the gates in another order, `without` some of them."""
    names = [n for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if n not in without]
    return {name: rows(name, gates) for name in names}


RESIDUAL = {
    **plain("i f g o", "bias_ih"),
    "weight_ph": ["p_i", "p_f", "p_o"],
    "weight_proj": ["weight_p"],
}
MUT1 = {
    "weight_hh": rows("weight_hh", "r n"),
    "bias_ih": ["b_z", "0", "0"],  # theirs has another bias within the tanh
    "bias_hh": rows("bias_hh", "r n"),
}

PEERS = {
    "lstm_1997_tanh": Peer(cells.get("lstm_1997")("tanh"), "OriginalLSTMCell", plain("i g o", "bias_hh")),
    "peephole_lstm": Peer(
        cells.get("peephole_lstm")(), "PeepholeLSTMCell", plain("i f g o") | {"weight_ph": ["p_i", "p_f", "p_o"]}
    ),
    "residual_lstm": Peer(
        cells.get("residual_lstm")(), "ResLSTMCell", RESIDUAL | {"weight_res": rows("weight_ih", "s")}
    ),
    "residual_lstm_direct": Peer(
        cells.get("residual_lstm")(projected=False), "ResLSTMCell", RESIDUAL | {"weight_res": ["1"]}
    ),
    "working_memory_lstm": Peer(
        cells.get("working_memory_lstm")(),
        "WMCLSTMCell",  # theirs has further biases within the tanh
        plain("i f g o", "bias_hh") | {"weight_mh": ["weight_m_i", "weight_m_f", "weight_m_o"]},
    ),
    "memory_controller_lstm": Peer(cells.get("memory_controller_lstm")(), "MCLSTMCell", plain("f i o m g", "bias_hh")),
    "multiplicative_lstm": Peer(
        cells.get("multiplicative_lstm")(),
        "MultiplicativeLSTMCell",  # theirs has further biases in the factors of m
        {
            "weight_ih": rows("weight_ih", "m i f g o"),
            "weight_hh": ["weight_m"],
            "weight_mh": rows("weight_hh", "i f g o"),
            "bias_mh": rows("bias_hh", "i f g o"),
        },
    ),
    "janet": Peer(cells.get("janet")(), "JANETCell", plain("f c", "bias_hh")),
    "janet_beta": Peer(cells.get("janet")(beta=0.5), "JANETCell", plain("f c", "bias_hh"), {"beta": 0.5}),
    "mut1": Peer(cells.get("mut1")(), "MUT1Cell", MUT1 | {"weight_ih": rows("weight_ih", "z r n")}),
    "mut1_direct": Peer(
        cells.get("mut1")(projected=False), "MUT1Cell", MUT1 | {"weight_ih": [*rows("weight_ih", "z r"), "1"]}
    ),
    "mut2": Peer(cells.get("mut2")(), "MUT2Cell", plain("z r n", "bias_ih")),
    "mut2_direct": Peer(
        cells.get("mut2")(projected=False),
        "MUT2Cell",
        plain("z r n", "bias_ih", "weight_ih") | {"weight_ih": ["weight_ih.z", "1", "weight_ih.n"]},
    ),
    "mut3": Peer(cells.get("mut3")(), "MUT3Cell", plain("z r n", "bias_hh")),
    "ugrnn": Peer(cells.get("ugrnn")(), "UGRNNCell", plain("c g", "bias_hh")),
    "intersection_rnn": Peer(
        cells.get("intersection_rnn")(projected=False), "IntersectionRNNCell", plain("y h gy gh", "bias_ih")
    ),
}


def setting(cell: Cell) -> tuple[Recurrent, Weights, Tensor]:
    """A layer of the cell with all parameters random, the blocks of its parameters, and input, [T, B, I]."""
    case = Case(cell, input_size=4, hidden_size=H, num_layers=1)
    module = case.module()
    weights: Weights = {"0": torch.zeros(H, dtype=case.dtype), "1": torch.eye(H, dtype=case.dtype)}
    for parameter in module.layers[0][1].parameters:
        tensor = getattr(module, f"{parameter.name}_l0")
        weights |= {f"{parameter.name}.{gate}": tensor[block] for gate, block in parameter.blocks.items()}
        weights[parameter.name] = tensor
    return module, weights, case.input(5, 3).requires_grad_()


def assert_equal(module: Recurrent, x: Tensor, other: Callable[[], list[Tensor]], engine: str, what: str) -> None:
    """Outputs, final states and the gradients of input and parameters are those of `other`."""

    def ours() -> list[Tensor]:
        output, state = module(x)
        return [output, *(v.squeeze(0) for v in (state if isinstance(state, tuple) else (state,)))]

    with use_engine(engine):
        compare(module, [x], (ours, lambda: other()[: len(module.cell.state) + 1]), what)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", PEERS)
def test_equals_torchrecurrent(name: str, engine: str) -> None:
    peer = PEERS[name]
    module, weights, x = setting(peer.cell)
    theirs = getattr(torchrecurrent, peer.name)(x.shape[-1], H, dtype=x.dtype, **peer.options)
    decoupled = isinstance(theirs, DECOUPLED)
    parameters = {key: torch.cat([weights[block] for block in blocks]) for key, blocks in peer.parameters.items()}

    def loop() -> list[Tensor]:
        outputs, state = [], None
        for step in x:
            result = torch.func.functional_call(theirs, parameters, (step, state))
            output, state = result if decoupled else (result[0] if isinstance(result, tuple) else result, result)
            outputs.append(output)
        final = state if isinstance(state, tuple) else (state,)
        return [torch.stack(outputs), *((output, *final) if decoupled else final)]

    assert_equal(module, x, loop, engine, f"{name} against {peer.name}")


def affine(w: Weights, gate: str, x: Tensor, h: Tensor) -> Tensor:
    """W x + U h + b of one gate, with the bias that there is."""
    bias = w[f"bias_ih.{gate}"] if f"bias_ih.{gate}" in w else w.get(f"bias_hh.{gate}", 0)
    return x @ w[f"weight_ih.{gate}"].T + h @ w[f"weight_hh.{gate}"].T + bias


def lstm_1997(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, g, o = (affine(w, gate, x, h).sigmoid() for gate in "igo")
    c = c + i * 4 * (g - 0.5)
    return o * 2 * (c.sigmoid() - 0.5), c


def coupled_lstm(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i = (affine(w, "i", x, h) + w.get("p_i", 0) * c).sigmoid()
    c = torch.lerp(c, affine(w, "g", x, h).tanh(), i)
    return (affine(w, "o", x, h) + w.get("p_o", 0) * c).sigmoid() * c.tanh(), c


def multiplicative_rnn(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    recurrent = torch.einsum("hf,bf,fk->bhk", w["weight_h"], x @ w["weight_ih.f"].T, w["weight_hh.f"])
    return (torch.tanh(x @ w["weight_ih.h"].T + torch.einsum("bhk,bk->bh", recurrent, h) + w["bias_h"]),)


def nas(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    inputs = [x @ w[f"weight_ih.v{k}"].T for k in range(8)]
    hidden = [h @ w[f"weight_hh.v{k}"].T + w[f"bias_hh.v{k}"] for k in range(8)]
    first = [
        f(a * b if k == 3 else a + b)  # torchrecurrent adds in all eight
        for k, (f, a, b) in enumerate(
            zip(
                (torch.sigmoid, torch.relu, torch.sigmoid, torch.relu, *(torch.tanh, torch.sigmoid) * 2),
                inputs,
                hidden,
                strict=True,
            )
        )
    ]
    left = torch.tanh(first[0] * first[1]), torch.tanh(first[2] + first[3])
    right = torch.tanh(first[4] * first[5]), torch.sigmoid(first[6] + first[7])
    c = torch.tanh(left[0] + c) * left[1]
    return torch.tanh(c * torch.tanh(right[0] + right[1])), c


def recurrent_highway(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    for level in range(3):
        a, z = (h @ w[f"weight_hh.{gate}{level}"].T + w[f"bias_hh.{gate}{level}"] for gate in "az")
        if level == 0:
            a, z = (v + x @ w[f"weight_ih.{gate}"].T + w[f"bias_ih.{gate}"] for v, gate in ((a, "a"), (z, "z")))
        h = torch.lerp(h, a.tanh(), z.sigmoid())
    return (h,)


def relu_ugrnn(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.lerp(affine(w, "c", x, h).relu(), h, affine(w, "g", x, h).sigmoid()),)


def projected_intersection_rnn(w: Weights, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    g_y, g_h = affine(w, "gy", x, h).sigmoid(), affine(w, "gh", x, h).sigmoid()
    y = torch.lerp(affine(w, "y", x, h).relu(), x @ w["weight_ih.s"].T, g_y)
    return y, torch.lerp(affine(w, "h", x, h).tanh(), h, g_h)


def min_lstm(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    f, i, n = (F.linear(x, w[f"weight_ih.{gate}"], w[f"bias_ih.{gate}"]) for gate in "fin")
    f, i = f.sigmoid(), i.sigmoid()
    return (f / (f + i) * h + i / (f + i) * n,)


def layer_norm_gru(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    def normal(gates: str, v: Tensor, weight: str, gain: str) -> tuple[Tensor, ...]:
        product = v @ torch.cat([w[f"{weight}.{gate}"] for gate in gates]).T
        return F.layer_norm(
            product, product.shape[-1:], torch.cat([w[f"{gain}_{gate}"] for gate in gates]), eps=1e-5
        ).chunk(len(gates), -1)

    x_r, x_z, x_n = *normal("rz", x, "weight_ih", "beta"), *normal("n", x, "weight_ih", "beta")
    u_r, u_z, u_n = *normal("rz", h, "weight_hh", "alpha"), *normal("n", h, "weight_hh", "alpha")
    r, z = (x_r + u_r + w["b_r"]).sigmoid(), (x_z + u_z + w["b_z"]).sigmoid()
    return (torch.lerp(h, torch.tanh(x_n + w["b_n"] + r * (u_n + w["b_un"])), z),)


# Cells that torchrecurrent has not, has otherwise (NAS) or cannot import (recurrent highway).
LOOPS: dict[str, tuple[Cell, Callable[..., tuple[Tensor, ...]]]] = {
    "lstm_1997": (cells.get("lstm_1997")(), lstm_1997),
    "coupled_lstm": (cells.get("coupled_lstm")(), coupled_lstm),
    "coupled_lstm_without_peepholes": (cells.get("coupled_lstm")(peepholes=False), coupled_lstm),
    "multiplicative_rnn": (cells.get("multiplicative_rnn")(), multiplicative_rnn),
    "multiplicative_rnn_factors": (cells.get("multiplicative_rnn")(factors=5), multiplicative_rnn),
    "nas": (cells.get("nas")(), nas),
    "recurrent_highway": (cells.get("recurrent_highway")(), recurrent_highway),
    "ugrnn_relu": (cells.get("ugrnn")("relu"), relu_ugrnn),
    "intersection_rnn_projected": (cells.get("intersection_rnn")(), projected_intersection_rnn),
    "min_lstm": (cells.get("min_lstm")(), min_lstm),
    "layer_norm_gru": (cells.get("layer_norm_gru")(), layer_norm_gru),
}


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", LOOPS)
def test_equals_the_paper(name: str, engine: str) -> None:
    cell, step = LOOPS[name]
    module, weights, x = setting(cell)

    def loop() -> list[Tensor]:
        state = tuple(x.new_zeros(x.shape[1], H) for _ in cell.state)
        outputs = []
        for v in x:
            state = step(weights, v, *state)
            outputs.append(state[0])
        return [torch.stack(outputs), *state]

    assert_equal(module, x, loop, engine, name)


def test_janet_starts_with_open_gates() -> None:
    torch.manual_seed(0)
    ones = Recurrent("janet", 4, H).bias_ih_l0
    assert ones.tolist() == [1.0] * H + [0.0] * H
    chrono = Recurrent(cells.get("janet")(t_max=100), 4, 1000).bias_ih_l0
    steps = chrono[:1000].detach().exp()
    assert 1 <= steps.min() < 3
    assert 97 < steps.max() <= 99 * (1 + 1e-6)
    assert abs(steps.mean() - 50) < 5
    assert not chrono[1000:].any()


def test_min_lstm_survives_closed_gates() -> None:
    module = Recurrent("min_lstm", 2, H)
    with torch.no_grad():
        module.bias_ih_l0[: 2 * H] -= 500.0
    output, _ = module(torch.randn(20, 2, 2))
    output.sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstm_1997", {"squashing": "relu"}, "squashing must be 'logistic' or 'tanh', got 'relu'"),
        ("multiplicative_rnn", {"factors": 0}, "factors must be at least 1, or None for H, got 0"),
        ("janet", {"t_max": 1}, "t_max must be a number of steps from 2, or None, got 1"),
        ("ugrnn", {"nonlinearity": "sin"}, "nonlinearity must be 'tanh' or 'relu', got 'sin'"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells.get(name)(**options)
