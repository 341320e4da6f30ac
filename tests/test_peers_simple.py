"""The smaller gated cells against torchrecurrent's, and against loops written from the papers where it has none.

A row of `PEERS` says which of its cells a cell of ours equals, and what its parameters are in terms of ours; then all
outputs, states and gradients with respect to our parameters agree. Where it departs from the paper, the row says how,
and the departure is set to nothing: biases that the paper does not have are zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchrecurrent
from torch import Tensor, nn

from elman import Recurrent, cells, use_engine
from elman.cells.contract import Cell
from elman.testing import Case, compare, run_check

T, B, H, INPUTS = 5, 3, 8, 4
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Peer:
    """One cell of torchrecurrent.

    Attributes:
        cell: ours.
        name: theirs.
        parameters: theirs as a function of ours.
        arguments: of their constructor.
        states: our first states from what theirs returns.
    """

    cell: Cell
    name: str
    parameters: Callable[[Parameters], Parameters]
    arguments: dict[str, Any] = field(default_factory=dict)
    states: Callable[[Tensor, Any], tuple[Tensor, ...]] = lambda output, state: (state,)


def same(p: Parameters) -> Parameters:
    """Ours as they are, and no second bias."""
    return p | {"bias_hh": torch.zeros_like(p["weight_hh"][:, 0])}


def gate_bias(p: Parameters) -> Parameters:
    """Theirs has input biases where the paper has none."""
    return p | {"bias_ih": torch.zeros_like(p["weight_ih"][:, 0])}


def dsgu(p: Parameters) -> Parameters:
    return same({("weight_ho" if k == "weight_o" else k): v for k, v in p.items()})


def minimal_rnn(p: Parameters) -> Parameters:
    return {("weight_mm" if k == "weight_z" else k): v for k, v in p.items()}


def ran(p: Parameters) -> Parameters:
    return p | {"bias_ih": torch.zeros_like(p["bias_hh"])}


def strongly_typed(p: Parameters) -> Parameters:
    w, v = p["weight_ih"].chunk(2)
    bias = torch.cat([p["b_z"], p["b_f"], p["b_o"]])
    return {"weight_ih": w, "weight_hh": v, "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}


def trnn(p: Parameters) -> Parameters:
    return {"weight_ih": p["weight_ih"], "bias_ih": torch.cat([torch.zeros_like(p["b_f"]), p["b_f"]])}


def brc(p: Parameters) -> Parameters:
    gates = {"weight_hh": torch.cat([p["w_a"], p["w_c"]]), "bias_hh": torch.cat([p["b_a"], p["b_c"]])}
    return gate_bias({"weight_ih": p["weight_ih"]} | gates)


def fast_rnn(p: Parameters) -> Parameters:
    weights = {k: p[k] for k in ("weight_ih", "weight_hh", "alpha", "beta")}
    return weights | {"bias_ih": p["b"], "bias_hh": torch.zeros_like(p["b"])}


def fast_grnn(p: Parameters) -> Parameters:
    bias = torch.cat([p["b_z"], p["b_n"]])
    weights = {"weight_ih": dense(p, "ih", "w"), "weight_hh": dense(p, "hh", "hh"), "zeta": p["zeta"], "nu": p["nu"]}
    return weights | {"bias_ih": bias, "bias_hh": torch.zeros_like(bias)}


def dense(p: Parameters, whole: str, factored: str) -> Tensor:
    name = f"weight_{factored}_in"
    return p[f"weight_{factored}"] @ p[name] if name in p else p[f"weight_{whole}"]


def cell(name: str, **options: Any) -> Cell:
    return cells.get(name)(**options)


class HardSigmoid(nn.Module):
    """Ours: the derivative of torch.nn.Hardsigmoid has a slope of ⅙ in single precision only."""

    def forward(self, v: Tensor) -> Tensor:
        return (0.2 * v + 0.5).clamp(0, 1)


HARD = {"gate_nonlinearity": HardSigmoid()}
COEFFICIENTS = {"update_coefficient": 0.3, "reset_coefficient": 0.7}
PEERS = {
    "mgu": Peer(cell("mgu"), "MGU", same),
    "ligru": Peer(cell("ligru"), "LiGRU", same),
    "lightru": Peer(cell("lightru"), "LightRU", gate_bias),  # a bias of the candidate
    "minimal_rnn": Peer(cell("minimal_rnn"), "MinimalRNN", minimal_rnn),
    "miru": Peer(cell("miru", update=0.3, reset=0.7), "MiRU2", same, COEFFICIENTS),
    "miru_gate": Peer(cell("miru", update=0.3, reset="gate"), "MiRU1", same, {"update_coefficient": 0.3}),
    "atr": Peer(cell("atr"), "ATR", gate_bias),  # a bias of p
    "cfn": Peer(cell("cfn"), "CFN", gate_bias),  # a bias of the candidate
    "ran": Peer(cell("ran"), "RAN", ran, states=lambda output, state: state),
    "sgrn": Peer(cell("sgrn"), "SGRN", gate_bias),  # a bias of what enters the state
    "star": Peer(cell("star"), "STAR", same),
    "sgu": Peer(cell("sgu"), "SGU", same, HARD),  # a bias within the inner product
    "dsgu": Peer(cell("dsgu"), "DSGU", dsgu, HARD),  # the same
    "trnn": Peer(cell("trnn"), "TRNN", trnn),  # a bias of what enters the state
    "tgru": Peer(cell("tgru"), "TGRU", strongly_typed, states=lambda output, state: state[:1]),
    "tlstm": Peer(cell("tlstm"), "TLSTM", strongly_typed, states=lambda output, state: (output[-1:], state[0])),
    "brc": Peer(cell("brc"), "BR", brc),  # a bias of the candidate
    "nbrc": Peer(cell("nbrc"), "NBR", gate_bias),  # the same
    "fast_rnn": Peer(cell("fast_rnn"), "FastRNN", fast_rnn),  # α and β start at each other's values
    "fast_grnn": Peer(cell("fast_grnn"), "FastGRNN", fast_grnn, {"nonlinearity": "sigmoid"}),  # tanh for the gate
    "fast_grnn_low_rank": Peer(
        cell("fast_grnn", rank=2, input_rank=3), "FastGRNN", fast_grnn, {"nonlinearity": "sigmoid"}
    ),
    "taugru": Peer(cell("taugru", delay=2), "tauGRU", same, {"delay": 2}),  # forgets past states between calls
}


def random_layer(ours: Cell) -> tuple[Recurrent, Tensor]:
    """One layer of a cell with random parameters, and an input that takes gradients."""
    case = Case(ours, input_size=INPUTS, hidden_size=H, num_layers=1)
    return case.module(), case.input(T, B).requires_grad_()


def parameters_of(module: Recurrent) -> Parameters:
    return {name.removesuffix("_l0"): value for name, value in module.named_parameters()}


def assert_equal(module: Recurrent, x: Tensor, expected: Callable[[], list[Tensor]]) -> None:
    """Outputs, as many final states as `expected` gives after them, and all gradients."""

    def ours() -> list[Tensor]:
        with use_engine("reference"):
            output, state = module(x)
        states = [v.squeeze(0) for v in (state if isinstance(state, tuple) else (state,))]
        return [output, *states][: len(expected())]

    compare(module, [x], (ours, expected), type(module.cell).__name__)


@pytest.mark.parametrize("name", PEERS)
def test_equals_torchrecurrent(name: str) -> None:
    peer = PEERS[name]
    module, x = random_layer(peer.cell)
    theirs = getattr(torchrecurrent, peer.name)(INPUTS, H, dtype=torch.float64, **peer.arguments)

    def expected() -> list[Tensor]:
        parameters = {f"cells.0.{k}": v for k, v in peer.parameters(parameters_of(module)).items()}
        assert set(parameters) == {k for k, _ in theirs.named_parameters()}
        output, state = torch.func.functional_call(theirs, parameters, (x,))
        return [output, *(v.squeeze(0) for v in peer.states(output, state))]

    assert_equal(module, x, expected)


Loop = Callable[[Parameters, Tensor], list[Tensor]]


def zeros(width: int = H) -> Tensor:
    return torch.zeros(B, width, dtype=torch.float64)


def mgu_variant(gate: Callable[[Parameters, Tensor], Tensor]) -> Loop:
    """torchrecurrent has none of the variants."""

    def loop(p: Parameters, x: Tensor) -> list[Tensor]:
        h, outputs = zeros(), []
        for step in x:
            f = torch.sigmoid(gate(p, h))
            n = torch.tanh(step @ p["weight_ih"].T + p["bias_ih"] + (f * h) @ p["weight_hh"][-H:].T)
            h = h + f * (n - h)
            outputs.append(h)
        return [torch.stack(outputs), h]

    return loop


def scrn(p: Parameters, x: Tensor) -> list[Tensor]:
    """torchrecurrent's feeds tanh(y) back in the place of the hidden units."""
    h, s, outputs = zeros(), zeros(6), []
    alpha = torch.sigmoid(p["a"]) if "a" in p else 0.9
    for step in x:
        s = alpha * s + (1 - alpha) * (step @ p["weight_ih"][:6].T)
        h = torch.sigmoid(s @ p["weight_p"].T + step @ p["weight_ih"][6:].T + h @ p["weight_hh"].T)
        outputs.append(h @ p["weight_u"].T + s @ p["weight_v"].T)
    return [torch.stack(outputs), outputs[-1], h, s]


def ran_identity(p: Parameters, x: Tensor) -> list[Tensor]:
    """torchrecurrent's output is always the tanh."""
    c, outputs = zeros(), []
    for step in x:
        content, i, f = (step @ p["weight_ih"].T).chunk(3, 1)
        gates = torch.sigmoid(torch.cat([i, f], 1) + c @ p["weight_hh"].T + p["bias_hh"])
        c = gates[:, :H] * content + gates[:, H:] * c
        outputs.append(c)
    return [torch.stack(outputs), c, c]


def jordan(width: int, function: Callable[[Tensor], Tensor], decay: float) -> Loop:
    def loop(p: Parameters, x: Tensor) -> list[Tensor]:
        s, outputs = zeros(width), []
        for step in x:
            h = torch.tanh(step @ p["weight_ih"].T + p["bias_ih"] + s @ p["weight_hh"].T)
            y = function(h @ p["weight_v"].T + p["bias_v"])
            s = decay * s + y
            outputs.append(y)
        return [torch.stack(outputs), outputs[-1], *([s] if decay else [])]

    return loop


LOOPS: dict[str, tuple[Cell, Loop]] = {
    "mgu1": (cell("mgu1"), mgu_variant(lambda p, h: h @ p["weight_hh"][:H].T + p["b_f"])),
    "mgu2": (cell("mgu2"), mgu_variant(lambda p, h: h @ p["weight_hh"][:H].T)),
    "mgu3": (cell("mgu3"), mgu_variant(lambda p, h: p["b_f"])),
    "scrn": (cell("scrn", context=6, alpha=0.9), scrn),
    "scrn_adaptive": (cell("scrn", context=6, adaptive=True), scrn),
    "ran_identity": (cell("ran", output="identity"), ran_identity),
    "jordan": (cell("jordan"), jordan(H, torch.sigmoid, 0.0)),
    "jordan_narrow": (cell("jordan", output="identity", width=3), jordan(3, lambda v: v, 0.0)),
    "jordan_decay": (cell("jordan", output="tanh", width=3, decay=0.5), jordan(3, torch.tanh, 0.5)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_equals_the_paper(name: str) -> None:
    ours, loop = LOOPS[name]
    module, x = random_layer(ours)
    assert_equal(module, x, lambda: loop(parameters_of(module), x))


OPTIONS = {name: row.cell for name, row in PEERS.items() if name not in cells.names()} | {
    name: ours for name, (ours, _) in LOOPS.items() if name not in cells.names()
}


@pytest.mark.parametrize("check", ["step", "reset_bidirectional"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_keep_the_contract_compiled(name: str, check: str) -> None:
    run_check(check, Case(OPTIONS[name], engine="cpu"))


def test_strongly_typed_cells_stack_whatever_the_input_size() -> None:
    output, state = Recurrent("tlstm", 3, 8, num_layers=2, bidirectional=True)(torch.randn(T, B, 3))
    assert output.shape == (T, B, 16)
    assert state.v_z.shape == (4, B, 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("miru", {"update": 1.5}, "update must be from 0 to 1, got 1.5"),
        ("miru", {"reset": "gates"}, "reset must be from 0 to 1, or 'gate', got 'gates'"),
        ("ran", {"output": "relu"}, "output must be 'tanh' or 'identity', got 'relu'"),
        ("sgu", {"slope": 0.0}, "slope must be positive, got 0.0"),
        ("scrn", {"context": 0}, "context must be at least 1, got 0"),
        ("scrn", {"alpha": 2.0}, "alpha must be from 0 to 1, got 2.0"),
        ("fast_grnn", {"rank": 0}, "rank must be at least 1, or None for a dense matrix, got 0"),
        ("taugru", {"delay": 0}, "delay must be at least 1, got 0"),
        ("jordan", {"output": "relu"}, "output must be 'sigmoid', 'tanh' or 'identity', got 'relu'"),
        ("jordan", {"width": 0}, "width must be at least 1, or None for the hidden size, got 0"),
        ("jordan", {"decay": 1.0}, "decay must be from 0 to less than 1, got 1.0"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        cell(name, **options)


@pytest.mark.parametrize(
    ("name", "parameter", "values"),
    [
        ("cfn", "bias_hh", (1.0, -1.0)),
        ("star", "bias_ih", (0.0, -1.0)),
        ("brc", "w_c", (1.0,)),
        ("brc", "b_a", (0.0,)),
        ("nbrc", "bias_hh", (0.0, 0.0)),
        ("fast_rnn", "alpha", (-3.0,)),
        ("fast_rnn", "beta", (3.0,)),
        ("fast_grnn", "b_n", (1.0,)),
        ("fast_grnn", "nu", (-4.0,)),
    ],
)
def test_initial_values(name: str, parameter: str, values: tuple[float, ...]) -> None:
    blocks = parameters_of(Recurrent(name, INPUTS, H))[parameter].chunk(len(values))
    for block, value in zip(blocks, values, strict=True):
        assert torch.equal(block, torch.full_like(block, value))


@pytest.mark.parametrize("name", ["ligru", "star", "nbrc"])
def test_recurrent_weights_start_orthogonal(name: str) -> None:
    for block in parameters_of(Recurrent(name, INPUTS, H, dtype=torch.float64))["weight_hh"].split(H):
        torch.testing.assert_close(block @ block.T, torch.eye(H, dtype=torch.float64))
