"""Dynamical systems, linear recurrences, irregular times: cells against other packages, or loops from the papers."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from elman import Cell, Recurrent, cells, use_engine
from elman.cells import Product
from elman.cells.structure import Antisymmetric
from elman.cells.wrapped import Wrapped
from elman.testing import SUITES, Case, compare, run_check

Parameters = dict[str, Tensor]
Results = list[Tensor]  # the output [T, B, H] and the final states [B, width] that are compared
I, H = 4, 8  # noqa: E741


def _rows(P: Parameters, name: str, count: int) -> list[Tensor]:
    """The gates' blocks of a stacked parameter."""
    return list(P[name].chunk(count))


def _stack(states: list[tuple[Tensor, ...]]) -> Results:
    return [torch.stack([s[0] for s in states]), *states[-1]]


def _zeros(x: Tensor, count: int) -> list[Tensor]:
    return [x.new_zeros(x.shape[1], H) for _ in range(count)]


def _through(cell: torch.nn.Module, parameters: Parameters, x: Tensor, count: int) -> Results:
    """A package's cell over all steps; `count` states."""
    state: Any = tuple(_zeros(x, count)) if count > 1 else _zeros(x, 1)[0]
    states = []
    for v in x:
        state = torch.func.functional_call(cell.double(), parameters, (v, state))
        states.append(state if count > 1 else (state,))
    return _stack(states)


def antisymmetric_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    peer = pytest.importorskip("torchrecurrent").AntisymmetricRNNCell
    return _through(peer(I, H, recurrent_bias=False, epsilon=cell.epsilon, gamma=cell.gamma), P, x, 1)


def gated_antisymmetric_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    peer = pytest.importorskip("torchrecurrent").GatedAntisymmetricRNNCell
    return _through(peer(I, H, recurrent_bias=False, epsilon=cell.epsilon, gamma=cell.gamma), P, x, 1)


def cornn_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    peer = pytest.importorskip("torchrecurrent").coRNNCell
    options = {"dt": cell.dt, "gamma": cell.gamma, "epsilon": cell.epsilon}
    peer = peer(I, H, recurrent_bias=False, cell_bias=False, **options)
    return _through(peer, P | {"weight_ch": P["weight_w"]}, x, 2)


def cornn_implicit(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """The peer damps z_{t-1} only: the paper's other choice, as a linear system in z_t."""
    y, z = _zeros(x, 2)
    states = []
    for v in x:
        force = torch.tanh(F.linear(v, P["weight_ih"], P["bias_ih"]) + y @ P["weight_hh"].T + z @ P["weight_w"].T)
        right = z + cell.dt * force - cell.dt * cell.gamma * y
        z = torch.linalg.solve((1 + cell.dt * cell.epsilon) * torch.eye(H).double(), right.T).T
        y = y + cell.dt * z
        states.append((y, z))
    return _stack(states)


def unicornn_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    peer = pytest.importorskip("torchrecurrent").UnICORNNCell
    named = P | {"weight_hh": P["w"], "weight_ch": P["c"]}
    return _through(peer(I, H, dt=cell.dt, alpha=cell.alpha), named, x, 2)


def lem_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """The peer's y sees z_{t-1} where the paper's sees z_t, so each step runs it again with the new z for y.

    It has the time steps of y before those of z.
    """
    peer = pytest.importorskip("torchrecurrent").LEMCell
    order = torch.arange(4 * H).view(4, H)[[1, 0, 2, 3]].flatten()
    named = {n: P[n][order[: len(P[n])]] for n in ("weight_ih", "bias_ih", "weight_hh")}
    named["weight_ch"] = P["weight_y"]
    peer = peer(I, H, recurrent_bias=False, cell_bias=False, dt=cell.dt).double()
    y, z = _zeros(x, 2)
    states = []
    for v in x:
        _, z = torch.func.functional_call(peer, named, (v, (y, z)))
        y, _ = torch.func.functional_call(peer, named, (v, (y, z)))
        states.append((y, z))
    return _stack(states)


def indrnn_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    peer = pytest.importorskip("torchrecurrent").IndRNNCell
    peer = peer(I, H, recurrent_bias=False, nonlinearity=cell.nonlinearity)
    return _through(peer, P | {"vector_u": P["u"]}, x, 1)


def cfc_peer(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    pytest.importorskip("ncps")
    from ncps.torch import CfCCell

    peer = CfCCell(I, H, backbone_units=cell.backbone).double()
    named = {
        "backbone.0.weight": torch.cat([P["weight_ih"], P["weight_hh"]], 1),
        "backbone.0.bias": P["bias_ih"] + P["bias_hh"],
    }
    for name in ("ff1", "ff2", "time_a", "time_b"):
        named |= {f"{name}.weight": P[f"weight_{name}"], f"{name}.bias": P[f"bias_{name}"]}
    (h,) = _zeros(x, 1)
    states = []
    for v, gap in zip(x, dt, strict=True):
        h, _ = torch.func.functional_call(peer, named, (v, h, gap))
        states.append((h,))
    return _stack(states)


def ltc_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """ncps has a sigmoid for each synapse, so that its cell is another; this is the paper's algorithm 1."""
    f = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[cell.nonlinearity]
    tau = F.softplus(P["tau"])
    (h,) = _zeros(x, 1)
    states = []
    for v, gap in zip(x, dt, strict=True):
        for _ in range(cell.unfolds):
            rate = f(v @ P["weight_ih"].T + h @ P["weight_hh"].T + P["bias_ih"])
            small = gap / cell.unfolds
            h = (h + small * rate * P["a"]) / (1 + small * (1 / tau + rate))
        states.append((h,))
    return _stack(states)


def leaky_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    (h,) = _zeros(x, 1)
    bias = P.get("bias_ih", torch.zeros(H).double())
    activation = {"tanh": torch.tanh, "relu": torch.relu}[getattr(cell, "nonlinearity", "tanh")]
    states = []
    for v in x:
        drive = activation(F.linear(v, P["weight_ih"], bias) + F.linear(h, P["weight_hh"]))
        h = torch.lerp(h, drive, cell.alpha)
        states.append((h,))
    return _stack(states)


def delta_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    outer = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda v: v}[cell.outer]
    (h,) = _zeros(x, 1)
    states = []
    for v in x:
        W_x, V_h = v @ P["weight_ih"].T, h @ P["weight_hh"].T
        d1 = P["alpha"] * V_h * W_x
        d2 = P["beta_1"] * V_h + P["beta_2"] * W_x
        z, r = torch.tanh(d1 + d2 + P["b"]), torch.sigmoid(W_x + P["b_r"])
        h = outer((1 - r) * z + r * h)
        states.append((h,))
    return _stack(states)


def rwa_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """The average over all steps written out, without a running sum or a stabiliser."""
    W_u, W_g, W_a = _rows(P, "weight_ih", 3)
    U_g, U_a = _rows(P, "weight_hh", 2)
    h = torch.tanh(P["s_0"]).expand(x.shape[1], H)
    values, weights, outputs = [], [], []
    for v in x:
        values.append((v @ W_u.T + P["b_u"]) * torch.tanh(v @ W_g.T + h @ U_g.T + P["b_g"]))
        weights.append(v @ W_a.T + h @ U_a.T)
        h = torch.tanh((torch.stack(weights).softmax(0) * torch.stack(values)).sum(0))
        outputs.append(h)
    return [torch.stack(outputs), h]


def sru_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    W_f, W_r, W_c, W_x = _rows(P, "weight_ih", 4)
    zero = x.new_zeros(H)
    (c,) = _zeros(x, 1)
    states = []
    for v in x:
        f = torch.sigmoid(v @ W_f.T + P.get("v_f", zero) * c + P["b_f"])
        r = torch.sigmoid(v @ W_r.T + P.get("v_r", zero) * c + P["b_r"])
        c = f * c + (1 - f) * (v @ W_c.T)
        if cell.version == 1:
            h = r * torch.tanh(c) + (1 - r) * (v @ W_x.T)
        else:
            h = r * c + (1 - r) * (v @ W_x.T) * math.sqrt(1 + math.exp(cell.highway_bias) * 2)
        states.append((h, c))
    return _stack(states)


def qrnn_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """With torch's convolution over time, padded with zeros on the left."""
    kernel = P["weight_ih"].view(cell.window, 3 * H, I).permute(1, 2, 0).flip(2)  # [3H, I, window]
    padded = F.pad(x.permute(1, 2, 0), (cell.window - 1, 0))  # [B, I, T + window - 1]
    (c,) = _zeros(x, 1)
    states = []
    for gates in F.conv1d(padded, kernel).unbind(2):
        z, f, o = gates.chunk(3, 1)
        c = torch.sigmoid(f) * c + (1 - torch.sigmoid(f)) * torch.tanh(z)
        states.append((torch.sigmoid(o) * c, c))
    return _stack(states)


def gilr_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    (h,) = _zeros(x, 1)
    states = []
    for v in x:
        g, i = F.linear(v, P["weight_ih"], P["bias_ih"]).chunk(2, 1)
        h = torch.lerp(torch.tanh(i), h, torch.sigmoid(g))
        states.append((h,))
    return _stack(states)


def gilr_lstm_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    c, surrogate = _zeros(x, 2)
    states = []
    for v in x:
        *gates, g, j = F.linear(v, P["weight_ih"], P["bias_ih"]).chunk(6, 1)
        i, f, o, z = (a + b for a, b in zip(gates, (surrogate @ P["weight_hh"].T).chunk(4, 1), strict=True))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        surrogate = torch.lerp(torch.tanh(j), surrogate, torch.sigmoid(g))
        states.append((torch.sigmoid(o) * c, c, surrogate))
    return _stack(states)


def lru_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    """In complex numbers, with the powers of λ in place of a recurrence."""
    N = cell.state_size
    B = torch.complex(P["weight_ih"][:N], P["weight_ih"][N : 2 * N])
    C = torch.complex(P["weight_c_re"], P["weight_c_im"])
    exponent = torch.complex(-P["nu"].exp(), P["theta"].exp())
    written = (x.to(B.dtype) @ B.T) * P["gamma"].exp()
    states = [
        sum(torch.exp(exponent * (t - k)) * written[k] for k in range(t + 1)) for t in range(len(x))
    ]  # λ^(t - k) = exp((t - k) log λ)
    output = torch.stack([(s @ C.T).real for s in states]) + x @ P["weight_ih"][2 * N :].T
    return [output, output[-1], states[-1].real, states[-1].imag]


def rg_lru_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    (h,) = _zeros(x, 1)
    states = []
    for v in x:
        r, i, value = F.linear(v, P["weight_ih"], P["bias_ih"]).chunk(3, 1)
        a = torch.sigmoid(P["decay"]) ** (8 * torch.sigmoid(r))
        h = a * h + (1 - a**2).sqrt() * torch.sigmoid(i) * value
        states.append((h,))
    return _stack(states)


def phased_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    h, c = _zeros(x, 2)
    time = x.new_zeros(x.shape[1], 1)
    states = []
    for v, gap in zip(x, dt, strict=True):
        i, f, g, o = (F.linear(v, P["weight_ih"], P["bias_ih"]) + h @ P["weight_hh"].T).chunk(4, 1)
        whole = torch.sigmoid(f + P["p_f"] * c) * c + torch.sigmoid(i + P["p_i"] * c) * torch.tanh(g)
        output = torch.sigmoid(o + P["p_o"] * whole) * torch.tanh(whole)
        time = time + gap
        phi = torch.remainder(time - P["shift"], P["period"]) / P["period"]
        r = P["share"]
        k = torch.where(phi < r / 2, 2 * phi / r, torch.where(phi < r, 2 - 2 * phi / r, cell.leak * phi))
        h, c = k * output + (1 - k) * h, k * whole + (1 - k) * c
        states.append((h, c, time))
    return _stack(states)


def time_aware_loop(P: Parameters, x: Tensor, dt: Tensor, cell: Any) -> Results:
    h, c = _zeros(x, 2)
    states = []
    for v, gap in zip(x, dt, strict=True):
        short = torch.tanh(F.linear(c, P["weight_d"], P["bias_d"]))
        long = c - short
        adjusted = long + short * (1 / torch.log(math.e + gap) if cell.decay == "logarithmic" else 1 / gap)
        i, f, g, o = (F.linear(v, P["weight_ih"], P["bias_ih"]) + h @ P["weight_hh"].T).chunk(4, 1)
        c = torch.sigmoid(f) * adjusted + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append((h, c))
    return _stack(states)


OTHERS: list[tuple[str, dict[str, Any], Callable[..., Results]]] = [
    ("antisymmetric_rnn", {"epsilon": 0.5, "gamma": 0.2}, antisymmetric_peer),
    ("gated_antisymmetric_rnn", {"epsilon": 0.5, "gamma": 0.2}, gated_antisymmetric_peer),
    ("cornn", {}, cornn_peer),
    ("cornn", {"dt": 0.5, "damping": "implicit"}, cornn_implicit),
    ("unicornn", {}, unicornn_peer),
    ("lem", {"dt": 0.7}, lem_peer),
    ("indrnn", {}, indrnn_peer),
    ("indrnn", {"nonlinearity": "tanh"}, indrnn_peer),
    ("cfc", {}, cfc_peer),
    ("ltc", {}, ltc_loop),
    ("ltc", {"unfolds": 1, "nonlinearity": "tanh"}, ltc_loop),
    ("leaky_rnn", {}, leaky_loop),
    ("leaky_rnn", {"alpha": 0.5, "nonlinearity": "relu"}, leaky_loop),
    ("echo_state", {}, leaky_loop),
    ("echo_state", {"alpha": 0.3, "input_bias": True}, leaky_loop),
    ("delta_rnn", {}, delta_loop),
    ("delta_rnn", {"outer": "identity"}, delta_loop),
    ("delta_rnn", {"outer": "relu"}, delta_loop),
    ("rwa", {}, rwa_loop),
    ("sru", {"highway_bias": -1.0}, sru_loop),
    ("sru", {"version": 1}, sru_loop),
    ("qrnn", {"window": 1}, qrnn_loop),
    ("qrnn", {}, qrnn_loop),
    ("qrnn", {"window": 4}, qrnn_loop),
    ("gilr", {}, gilr_loop),
    ("gilr_lstm", {}, gilr_lstm_loop),
    ("lru", {"state_size": 5}, lru_loop),
    ("rg_lru", {}, rg_lru_loop),
    ("phased_lstm", {"leak": 0.1}, phased_loop),
    ("time_aware_lstm", {}, time_aware_loop),
    ("time_aware_lstm", {"decay": "inverse"}, time_aware_loop),
]


@pytest.mark.parametrize(
    ("name", "options", "other"), OTHERS, ids=["-".join([n, *map(str, o.values())]) for n, o, _ in OTHERS]
)
@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_equals_the_other(engine: str, name: str, options: dict[str, Any], other: Callable[..., Results]) -> None:
    """Outputs, final states and the gradients of the input and all parameters, in float64."""
    case = Case(cells.get(name)(**options), input_size=I, hidden_size=H, num_layers=1)
    module = case.module().requires_grad_()  # frozen parameters are compared too
    x = case.input(6, 3).requires_grad_()
    dt = 3 * torch.rand(6, 3, 1, dtype=torch.float64) + 0.1

    def theirs() -> Results:
        parameters = {n.removesuffix("_l0"): p for n, p in module.named_parameters()}
        return other(parameters, x, dt, module.cell)

    count = len(theirs())

    def ours() -> Results:
        with use_engine(engine):
            output, state = module(x, extras={"dt": dt} if module.cell.extras else None)
        states = state if isinstance(state, tuple) else (state,)
        return [output, *(v[0] for v in states)][:count]

    compare(module, [x], (ours, theirs), name)


BAD_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("antisymmetric_rnn", {"epsilon": 0.0}, "epsilon must be positive and gamma not negative, got 0.0 and 0.01"),
    ("gated_antisymmetric_rnn", {"gamma": -1.0}, "gamma not negative"),
    ("cornn", {"dt": -1.0}, "dt, gamma and epsilon must be positive"),
    ("cornn", {"damping": "none"}, "damping must be 'explicit' or 'implicit', got 'none'"),
    ("unicornn", {"alpha": -1.0}, "dt must be positive and alpha not negative"),
    ("lem", {"dt": 0.0}, "dt must be positive, got 0.0"),
    ("indrnn", {"nonlinearity": "gelu"}, "nonlinearity must be 'relu' or 'tanh', got 'gelu'"),
    ("indrnn", {"limit": 0.0}, "limit must be positive"),
    ("leaky_rnn", {"alpha": 1.5}, "alpha must be above 0 and at most 1, got 1.5"),
    ("leaky_rnn", {"nonlinearity": "gelu"}, "nonlinearity must be 'tanh' or 'relu'"),
    ("echo_state", {"radius": 0.0}, "radius and input_scale must be positive"),
    ("echo_state", {"density": 0.0}, "density and alpha must be above 0 and at most 1"),
    ("ltc", {"unfolds": 0}, "unfolds must be at least 1, got 0"),
    ("ltc", {"nonlinearity": "relu"}, "nonlinearity must be 'sigmoid' or 'tanh', got 'relu'"),
    ("sru", {"version": 3}, "version must be 1 or 2, got 3"),
    ("qrnn", {"window": 0}, "window must be at least 1, got 0"),
    ("lru", {"state_size": 0}, "state_size must be at least 1, got 0"),
    ("lru", {"r_min": 0.9, "r_max": 0.5}, "r_min and r_max must be 0 ≤ r_min < r_max ≤ 1, got 0.9 and 0.5"),
    ("lru", {"max_phase": 0.0}, "max_phase must be positive"),
    ("delta_rnn", {"outer": "gelu"}, "outer must be 'tanh', 'relu' or 'identity', got 'gelu'"),
    ("phased_lstm", {"open_share": 0.0}, "open_share and leak shares from 0 to 1"),
    ("time_aware_lstm", {"decay": "linear"}, "decay must be 'logarithmic' or 'inverse', got 'linear'"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_OPTIONS)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells.get(name)(**options)


class Swirl(Cell):
    """Antisymmetric matrices as the recurrent one, read twice, and as a product with a bias."""

    gates = ("h",)
    recurrent_structure = Antisymmetric(0.3)
    products = (Product("turn", input="H", structure=Antisymmetric()),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        h = x.h + u.h(s.h)
        return self.State(h=0.5 * u.turn(h) + 0.1 * u.h(h))


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_antisymmetric_matrices_meet_the_contract(engine: str) -> None:
    for check in SUITES[engine, torch.float64]:
        run_check(check, Case(Swirl(), engine=engine))


def test_antisymmetric_matrices_are_square() -> None:
    with pytest.raises(ValueError, match="must be square, got 4 outputs and 2 inputs"):
        Recurrent("antisymmetric_rnn", 3, 4, proj_size=2)


def test_frozen_parameters_are_stored_and_not_trained() -> None:
    module = Recurrent("echo_state", 3, 20, num_layers=2, bidirectional=True)
    assert not any(p.requires_grad for p in module.parameters())
    assert "weight_hh_l1_reverse" in module.state_dict()
    mixed = Recurrent(Half(), 3, 4)
    mixed(torch.randn(5, 2, 3))[0].sum().backward()
    assert {n for n, p in mixed.named_parameters() if p.grad is None} == {"weight_hh_l0"}
    assert [p.frozen for p in mixed.layers[0][1].parameters] == [False, True, False, False]
    assert not Recurrent(Wrapped(Half()), 3, 4).weight_hh_l0.requires_grad


class Half(Cell):
    gates = ("h",)
    frozen = ("weight_hh",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=torch.tanh(x.h + u.h(s.h)))


class Misspelt(Half):
    frozen = ("weight_hi",)


def test_frozen_parameters_must_exist() -> None:
    with pytest.raises(ValueError, match="the frozen parameters 'weight_hi' do not exist"):
        Recurrent(Misspelt(), 3, 4)
    biased = cells.get("echo_state")(input_bias=True)
    assert not hasattr(Recurrent(biased, 3, 20, bias=False), "bias_ih_l0")


@pytest.mark.parametrize(("density", "fed_by"), [(0.1, 5), (1.0, 50), (0.001, 1)])
def test_reservoirs_have_their_radius_and_density(density: float, fed_by: int) -> None:
    module = Recurrent(cells.get("echo_state")(radius=0.7, density=density, input_scale=0.2), 3, 50)
    weight = module.weight_hh_l0.double()
    assert torch.linalg.eigvals(weight).abs().max().item() == pytest.approx(0.7, rel=1e-5)
    assert ((weight != 0).sum(1) == fed_by).all()
    assert 0.15 < module.weight_ih_l0.abs().max() <= 0.2


def test_a_reservoir_forgets_its_start() -> None:
    module, x = Recurrent("echo_state", 2, 40), torch.randn(300, 1, 2)
    a, b = (module(x, 5 * torch.randn(1, 1, 40))[0] for _ in range(2))
    assert (a[0] - b[0]).abs().max() > 0.1
    torch.testing.assert_close(a[-1], b[-1])


def test_antisymmetric_matrices_turn_and_fade_by_gamma() -> None:
    """Where tanh is linear, steps of ε follow h' = A h, for which |h| is exp(-γ t) times what it was."""
    module = Recurrent(cells.get("antisymmetric_rnn")(epsilon=1e-4, gamma=0.3), 1, 10, dtype=torch.float64)
    start = 1e-3 * torch.randn(1, 1, 10).double()
    _, end = module(torch.zeros(10000, 1, 1).double(), start)
    torch.testing.assert_close(end.norm() / start.norm(), torch.tensor(math.exp(-0.3)).double(), rtol=0.01, atol=0)


def test_oscillators_without_input_keep_their_energy() -> None:
    """UnICORNN's steps are symplectic: without a force the amplitude neither grows nor fades."""
    module = Recurrent("unicornn", 1, 6, dtype=torch.float64)
    with torch.no_grad():
        module.w_l0.zero_()
    state = torch.randn(1, 1, 6).double(), torch.zeros(1, 1, 6).double()
    output, _ = module(torch.zeros(20000, 1, 1).double(), state)
    early, late = output[:10000].abs().amax(0), output[10000:].abs().amax(0)
    torch.testing.assert_close(early, late, rtol=1e-3, atol=0)


def test_linear_recurrent_units_start_on_their_ring() -> None:
    cell = cells.get("lru")(state_size=200, r_min=0.4, r_max=0.9, max_phase=0.5)
    module = Recurrent(cell, 3, 8)
    modulus = torch.exp(-module.nu_l0.exp())
    assert 0.4 < modulus.min() < 0.42
    assert 0.89 < modulus.max() < 0.9
    torch.testing.assert_close(module.gamma_l0.exp(), (1 - modulus**2).sqrt())
    assert module.theta_l0.exp().min() > 0
    assert 0.4 < module.theta_l0.exp().max() < 0.5


def test_real_gated_units_start_with_slow_decay() -> None:
    decay = torch.sigmoid(Recurrent("rg_lru", 3, 500).decay_l0) ** 8
    assert 0.9 < decay.min() < 0.91
    assert 0.98 < decay.max() < 0.9991


def test_real_gated_units_survive_a_closed_gate() -> None:
    """Where a is 1 the root's derivative would be infinite."""
    module = Recurrent("rg_lru", 2, 4)
    with torch.no_grad():
        module.bias_ih_l0[:4] = -100.0
    output, _ = module(torch.randn(5, 3, 2))
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_phased_units_start_with_their_shift_within_the_period() -> None:
    module = Recurrent("phased_lstm", 3, 100)
    assert 1 < module.period_l0.min() < 1.1
    assert 19 < module.period_l0.max() < math.exp(3)
    share = module.shift_l0 / module.period_l0
    assert 0 <= share.min() < 0.2
    assert 0.8 < share.max() < 1


def test_closed_phased_units_hold_their_state() -> None:
    module = Recurrent(cells.get("phased_lstm")(leak=0.0), 2, 4)
    with torch.no_grad():
        module.period_l0.copy_(torch.tensor([4.0, 4.0, 8.0, 1e9]))
        module.shift_l0.copy_(torch.tensor([1.0, -2.0, 1.0, 5e8]))
        module.share_l0.fill_(0.5)
    output, state = module(torch.randn(12, 1, 2))
    moves = (output[1:] != output[:-1]).squeeze(1)  # at times 2 to 12
    phases = [[(t - shift) % period / period for shift, period in ((1, 4), (-2, 4), (1, 8))] for t in range(2, 13)]
    opened = [[0 < phase < 0.5 for phase in at_time] for at_time in phases]
    assert moves[:, :3].tolist() == opened
    assert not output[:, :, 3].any()
    assert state.time.item() == 12


def test_phased_units_are_right_at_late_times() -> None:
    case = Case(replace(cells.get("phased_lstm")(), leak=0.1), num_layers=1)
    module, x = case.module(), case.input(4, 2)
    h, c = (torch.randn(1, 2, 8).double() for _ in range(2))
    with torch.no_grad():
        module.period_l0.fill_(2.0)
    early, late = (module(x, (h, c, torch.full((1, 2, 1), time).double()))[0] for time in (10.0, 2.0**20 + 10.0))
    torch.testing.assert_close(early, late)


def test_weighted_averages_survive_large_attention() -> None:
    module = Recurrent("rwa", 2, 4)
    with torch.no_grad():
        module.weight_ih_l0[8:] *= 1000
    output, state = module(100 * torch.randn(50, 3, 2))
    output.sum().backward()
    assert output.isfinite().all()
    assert state.n.isfinite().all()
    assert module.weight_ih_l0.grad.isfinite().all()


@pytest.mark.parametrize("name", ["ltc", "phased_lstm", "time_aware_lstm"])
def test_time_gaps_are_one_unless_given(name: str) -> None:
    module, x = Recurrent(name, 2, 8), torch.randn(5, 3, 2)
    default, ones = module(x)[0], module(x, extras={"dt": torch.ones(5, 3)})[0]
    assert torch.equal(default, ones)
    assert not torch.allclose(module(x, extras={"dt": torch.full((5, 3), 0.3)})[0], ones)


def test_long_gaps_let_liquid_units_settle() -> None:
    """After a long time v = τ f A / (1 + τ f), whatever it was before."""
    module, x = Recurrent("ltc", 2, 8, dtype=torch.float64), torch.randn(1, 3, 2).double()
    long = {"dt": torch.full((1, 3), 1e9).double()}
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    a, b = (module(x, torch.randn(1, 3, 8).double(), extras=long)[0] for _ in range(2))
    torch.testing.assert_close(a, b)
    f = torch.sigmoid(F.linear(x, module.weight_ih_l0, module.bias_ih_l0))
    tau = F.softplus(module.tau_l0)
    torch.testing.assert_close(a, tau * f * module.a_l0 / (1 + tau * f))
