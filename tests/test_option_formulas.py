"""What each option computes, against plain loops in torch on the masks that the layers' own generator gives."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import elman
from elman import Noise, Recurrent, use_engine
from elman.compiler.formulas import formulas
from elman.engine import draws
from elman.engine.packing import Packing
from elman.nn.wiring import weight_mask

T, B, H = 6, 3, 5
INPUTS = 4
ENGINES = ["reference", "cpu"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def chosen(noise: Noise, purpose: str, chance: float, width: int, moving: bool = True, place: int = 0) -> Tensor:
    """[T, B, width] bool: where the generator drops, or keeps back."""
    packing = Packing.dense(T, B, torch.device("cpu"))
    table = draws.rows(noise, purpose, place, packing)
    return draws.mask(table, moving, chance, packing, width, (1.0, 0.0), torch.float64).bool().view(T, B, width)


def layer(cell: str = "lstm", layers: int = 1, **options: Any) -> tuple[Recurrent, Tensor]:
    return Recurrent(cell, INPUTS, H, layers, dtype=torch.float64, **options), torch.randn(
        T, B, INPUTS, dtype=torch.float64
    )


def lstm(
    module: Any, x: Tensor, mask: Tensor | None = None, zones: tuple[Any, Any] = (None, None), weight: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM in a loop. `mask`: of what the products read, [T, B, H]. `zones`: what keeps back h and c."""
    h = c = x.new_zeros(x.shape[1], module.hidden_size)
    outputs = []
    for t in range(len(x)):
        read = h if mask is None else h * mask[t]
        gates = F.linear(x[t], module.weight_ih_l0, module.bias_ih_l0)
        gates = gates + F.linear(read, module.weight_hh_l0 if weight is None else weight, module.bias_hh_l0)
        i, f, g, o = gates.chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        h = _zoned(h, new_h, zones[0], t)
        c = _zoned(c, new_c, zones[1], t)
        outputs.append(h)
    return torch.stack(outputs), h, c


def _zoned(old: Tensor, new: Tensor, zone: Any, t: int) -> Tensor:
    if zone is None:
        return new
    return zone * old + (1 - zone) * new if isinstance(zone, float) else torch.where(zone[t], old, new)


@pytest.mark.parametrize("engine", ENGINES)
def test_zoneout(engine: str) -> None:
    """Krueger et al. 2017: h̃ is made of the whole c̃, and each state keeps its own units back."""
    module, x = layer(zoneout={"h": 0.3, "c": 0.5})
    noise = Noise(3)
    zones = chosen(noise, "zoneout_h", 0.3, H), chosen(noise, "zoneout_c", 0.5, H)
    with use_engine(engine):
        output, (_, c) = module(x, noise=noise)
        average, _ = module.eval()(x)
    expected, _, expected_c = lstm(module, x, zones=zones)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(c[0], expected_c)
    torch.testing.assert_close(average, lstm(module, x, zones=(0.3, 0.5))[0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_step", [False, True])
def test_recurrent_dropout(engine: str, per_step: bool) -> None:
    module, x = layer(recurrent_dropout=0.4, recurrent_dropout_per_step=per_step)
    mask = (~chosen(Noise(3), "recurrent_dropout", 0.4, H, per_step)).double() / 0.6
    assert per_step != torch.equal(mask[0], mask[1])
    with use_engine(engine):
        output, _ = module(x, noise=Noise(3))
    torch.testing.assert_close(output, lstm(module, x, mask)[0])


@pytest.mark.parametrize("engine", [*ENGINES, "torch"])
def test_weight_dropout(engine: str) -> None:
    module, x = layer(weight_dropout=0.4)
    mask = weight_mask(module.weight_hh_l0, 0.4, 0, Noise(3))
    assert abs((mask == 0).double().mean().item() - 0.4) < 0.15
    with use_engine(engine):
        output, _ = module(x, noise=Noise(3, step=7, row=2))  # which have no say in it
    torch.testing.assert_close(output, lstm(module, x, weight=module.weight_hh_l0 * mask)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_layer_norm(engine: str) -> None:
    module, x = layer("gru", layer_norm=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    p = dict(module.named_parameters())

    def normal(side: str, gate: str, v: Tensor) -> Tensor:
        rows = slice(H * "rzn".index(gate), H * ("rzn".index(gate) + 1))
        a = F.linear(v, p[f"weight_{side}_l0"][rows])
        return F.layer_norm(a, (H,), p[f"gain_{side}_{gate}_l0"], p[f"bias_{side}_{gate}_l0"])

    h, outputs = x.new_zeros(B, H), []
    for t in range(T):
        r = (normal("ih", "r", x[t]) + normal("hh", "r", h)).sigmoid()
        z = (normal("ih", "z", x[t]) + normal("hh", "z", h)).sigmoid()
        n = (normal("ih", "n", x[t]) + r * normal("hh", "n", h)).tanh()
        h = (1 - z) * n + z * h
        outputs.append(h)
    with use_engine(engine):
        torch.testing.assert_close(module(x)[0], torch.stack(outputs))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rank", [0, 2])
def test_mogrifier(engine: str, rank: int) -> None:
    """Five rounds as the paper has them, with gradients; the LSTM's equations are torch's."""
    module, x = layer("lstm", mogrify=5, mogrify_rank=rank)
    p = dict(module.named_parameters())

    def gate(number: int, v: Tensor) -> Tensor:
        inner = v if not rank else v @ p[f"weight_mogrify_{number}_in_l0"].T
        return 2 * torch.sigmoid(inner @ p[f"weight_mogrify_{number}_l0"].T)

    h = c = x.new_zeros(B, H)
    outputs = []
    for x_t in x:
        x_1 = gate(1, h) * x_t
        h_2 = gate(2, x_1) * h
        x_3 = gate(3, h_2) * x_1
        h_4 = gate(4, x_3) * h_2
        x_5 = gate(5, h_4) * x_3
        weights = (module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0)
        h, c = torch._VF.lstm_cell(x_5, (h_4, c), *weights)
        outputs.append(h)
    expected = torch.stack(outputs)
    with use_engine(engine):
        found, (last, memory) = module(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close((last[0], memory[0]), (h, c))
    away = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((v * away).sum(), list(p.values())) for v in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_mogrifiers_formulas() -> None:
    cell, parts = Recurrent("gru", 6, H, mogrify=2).layers[0]
    printed = str(formulas(cell, parts))
    assert "2 σ(V_{mogrify_1} h_{t-1}) ∘ x_t" in printed
    assert "W_z raw + U_z h + b_z + b'_z" in printed


def test_a_mogrifier_with_zero_matrices_is_the_cell_itself() -> None:
    """2 σ(0) = 1; whatever reads the input or the state reads what the plain cell does."""
    for cell in ("gru", "sru", "indrnn", "lstm"):
        plain, x = layer(cell)
        module = Recurrent(cell, INPUTS, H, mogrify=4, dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.zeros(()) if "mogrify" in name else plain.get_parameter(name))
        torch.testing.assert_close(module(x)[0], plain(x)[0])


def test_dropout_by_the_generator() -> None:
    module, x = layer(layers=2, dropout=0.4)
    lower, upper = _parts(module)
    mask = (~chosen(Noise(3), "dropout", 0.4, H)).double() / 0.6
    torch.testing.assert_close(module(x, noise=Noise(3))[0], upper(lower(x)[0] * mask)[0])


def _parts(module: Recurrent) -> list[Recurrent]:
    """Each layer as a module of its own, without options."""
    found = []
    for level, (_, parts) in enumerate(module.layers):
        one = Recurrent(
            module.cell, parts.input_size, parts.hidden_size, bidirectional=module.bidirectional, dtype=torch.float64
        )
        names = {n: n.replace("_l0", f"_l{level}") for n in one.state_dict()}
        one.load_state_dict({n: module.state_dict()[m] for n, m in names.items()})
        found.append(one)
    return found


@pytest.mark.parametrize("merge", ["concatenate", "sum", "mean"])
def test_merge(merge: str) -> None:
    module, x = layer("gru", 2, bidirectional=True, merge=merge)
    expected = x
    for part in _parts(module):
        forward, backward = part(expected)[0].chunk(2, -1)
        both = torch.cat([forward, backward], -1)
        expected = both if merge == "concatenate" else (forward + backward) / (2 if merge == "mean" else 1)
    assert expected.shape[-1] == module.output_size == (2 * H if merge == "concatenate" else H)
    torch.testing.assert_close(module(x)[0], expected)
    torch.testing.assert_close(module.unroll(x)[0].h, expected)


def test_residual_and_dense() -> None:
    with pytest.warns(UserWarning, match="residual: layer 2 has no skip, since 5 in are 7 out"):
        module = Recurrent("gru", H, [H, H, 7], residual=True, dtype=torch.float64)
    x = torch.randn(T, B, H, dtype=torch.float64)
    a, b, c = _parts(module)
    first = x + a(x)[0]
    second = first + b(first)[0]
    torch.testing.assert_close(module(x)[0], c(second)[0])
    module = Recurrent("gru", 4, [5, 6, 7], dense=True, dtype=torch.float64)
    x = torch.randn(T, B, 4, dtype=torch.float64)
    a, b, c = _parts(module)
    first = torch.cat([x, a(x)[0]], -1)
    second = torch.cat([first, b(first)[0]], -1)
    assert second.shape[-1] == 15
    torch.testing.assert_close(module(x)[0], c(second)[0])
    assert module.output_size == 7


def test_cells_and_sizes_of_each_layer() -> None:
    module = Recurrent(["gru", "lstm"], INPUTS, (5, 7), bidirectional=True)
    x = torch.randn(T, B, INPUTS)
    output, state = module(x)
    assert output.shape == (T, B, 14)
    assert state[0].shape == (2, B, 5)
    assert state[1].c.shape == (2, B, 7)
    again, _ = module(x, state)
    assert not torch.equal(again, output)
    module = Recurrent(["gru", "lstm"], INPUTS, (5, 7))
    output, state = module(x)
    first, middle = module(x[:3])
    second, final = module(x[3:], middle)
    torch.testing.assert_close(torch.cat([first, second]), output)
    torch.testing.assert_close(final[1].c, state[1].c)
    stepper = module.stepper(B)
    torch.testing.assert_close(torch.stack([stepper(x[t]) for t in range(T)]), output)
    with pytest.raises(ValueError, match="state must have an entry for each of 2 layers, got Tensor"):
        module(x, state[0])


def test_the_first_state_is_learned() -> None:
    module, x = layer("lstm", 2, learn_state=True)
    with torch.no_grad():
        module.initial_h_l0.normal_()
        module.initial_c_l1.normal_()
    plain = Recurrent("lstm", INPUTS, H, 2, dtype=torch.float64)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("initial")})
    state = tuple(
        torch.stack([getattr(module, f"initial_{e}_l{k}").expand(B, H) for k in range(2)]).detach() for e in "hc"
    )
    torch.testing.assert_close(module(x)[0], plain(x, state)[0])
    stepper = module.stepper(B)
    torch.testing.assert_close(torch.stack([stepper(x[t]) for t in range(T)]), module(x)[0].detach())
    module(x)[0].sum().backward()
    assert module.initial_c_l1.grad.abs().min() > 0


@pytest.mark.parametrize("option", ["zoneout", "recurrent_dropout", "weight_dropout", "locked_dropout", "layer_norm"])
def test_recompute_sees_the_same_masks(option: str) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        module, x = layer(layers=2, recompute=recompute, **{option: True if option == "layer_norm" else 0.3})
        output, _ = module(x)
        found.append((output, torch.autograd.grad(output.square().sum(), list(module.parameters()))))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_seeds_follow_torch_and_calls_differ() -> None:
    module, x = layer(zoneout=0.3)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], first)  # masks are for training, with gradients or without


def test_engines_that_cannot_say_why() -> None:
    module, x = layer(zoneout=0.3)
    assert "torch has no kernel for Zoneout(cell=LSTM()" in elman.explain(module, x).refusals[0]["torch"]
    before = torch.get_rng_state()
    elman.explain(module, x)
    assert torch.equal(torch.get_rng_state(), before)
    outside = Recurrent("lstm", INPUTS, H, 2, locked_dropout=0.2, weight_dropout=0.1, learn_state=True, residual=True)
    with use_engine("torch"):
        assert elman.explain(outside).engines == ("torch", "torch")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"zoneout": 1.0}, "zoneout must be a probability, at least 0 and below 1, got 1.0"),
    ({"zoneout": {"m": 0.1}}, r"zoneout names the state 'm'; LSTM\(\) has h, c"),
    ({"zoneout": {"h": -0.1}}, r"zoneout\['h'\] must be a probability"),
    ({"recurrent_dropout": True}, "recurrent_dropout must be a probability"),
    ({"weight_dropout": 0.2, "cell": "sru"}, r"weight_dropout: SRU.* has no recurrent products \(weight_hh\)"),
    ({"locked_dropout": (0.1, 0.2, 0.3)}, "locked_dropout must be a probability, or 2 of them"),
    ({"merge": "max"}, "merge must be one of concatenate, sum, mean, got 'max'"),
    ({"residual": True}, "residual: no layer's input is as wide as its output"),
    ({"residual": True, "dense": True}, "residual and dense exclude each other"),
    ({"hidden_size": [4, 5], "num_layers": 3}, "hidden_size must have a value for each layer"),
    ({"hidden_size": [4, 5], "cell": ["gru"]}, "must have a value for each layer"),
    ({"mogrify": -1}, "mogrify must be a whole number, 0 or more, got -1"),
    ({"mogrify": 2.0}, "mogrify must be a whole number, 0 or more, got 2.0"),
    ({"mogrify_rank": 3}, "mogrify_rank = 3 needs mogrify, the number of rounds"),
    ({"hidden_size": []}, "hidden_size must have a value for each layer"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recurrent(**{"cell": "lstm", "input_size": 3, "hidden_size": 4, **options})


def test_noise_must_be_one() -> None:
    module, x = layer(zoneout=0.1)
    with pytest.raises(TypeError, match=r"noise must be an elman\.Noise, got int"):
        module(x, noise=7)


class AWD(nn.Module):
    """The layers of AWD-LSTM as in its paper, plain torch, on masks that are handed in.

    Merity, Keskar & Socher, "Regularizing and optimizing LSTM language models", ICLR 2018, sections 2-4: weight-dropped
    LSTMs, variational dropout of their inputs and outputs with one mask for all steps, layers of different sizes,
    activation regularisation α · L2(m ∘ h_t) and temporal activation regularisation β · L2(h_t - h_{t+1}).
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.LSTM(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, weights: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = x * masks[0]
        for rnn, weight, mask in zip(self.rnns, weights, masks[1:], strict=True):
            dropped = {"weight_hh_l0": rnn.weight_hh_l0 * weight}
            raw, _ = torch.func.functional_call(rnn, dropped, (x,))
            x = raw * mask
        return x, 2.0 * x.pow(2).mean(), 1.0 * (raw[1:] - raw[:-1]).pow(2).mean()


def test_the_regularisers_of_awd_lstm() -> None:
    """AWD-LSTM with this library's options equals the paper's definition on the same masks, gradients included."""
    sizes, chances, drop = [6, 10, 10, 6], (0.4, 0.25, 0.25, 0.0), 0.5
    ours = Recurrent("lstm", 6, sizes[1:], locked_dropout=chances, weight_dropout=drop)
    output_dropout = elman.nn.LockedDropout(0.4)
    theirs, noise = AWD(sizes), Noise(11)
    for level, rnn in enumerate(theirs.rnns):
        rnn.load_state_dict({n: ours.state_dict()[n.replace("_l0", f"_l{level}")] for n in rnn.state_dict()})
    packing = Packing.dense(1, B, torch.device("cpu"))
    masks = []
    places = [("locked_dropout", k, c) for k, c in enumerate(chances[:3])] + [("locked_dropout_module", 0, 0.4)]
    for (purpose, place, chance), width in zip(places, sizes, strict=True):
        table = draws.rows(noise, purpose, place, packing)
        masks.append(draws.mask(table, False, chance, packing, width, (0.0, 1 / (1 - chance)), torch.float32))
    weights = [weight_mask(rnn.weight_hh_l0, drop, 2 * k, noise) for k, rnn in enumerate(theirs.rnns)]
    x = torch.randn(T, B, 6, requires_grad=True)
    expected = theirs(x, weights, masks)

    raw, _ = ours(x, noise=noise)
    dropped = output_dropout(raw, noise=noise)
    found = dropped, 2.0 * dropped.pow(2).mean(), 1.0 * (raw[1:] - raw[:-1]).pow(2).mean()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    loss, wanted = (v[0].sum() + v[1] + v[2] for v in (found, expected))
    mine = torch.autograd.grad(loss, [x, *ours.parameters()])
    peer = torch.autograd.grad(wanted, [x, *(p for rnn in theirs.rnns for p in rnn.parameters())])
    for a, b in zip(mine, peer, strict=True):
        torch.testing.assert_close(a, b)
