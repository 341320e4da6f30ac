"""Initial values have the properties for which their papers want them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elman import Recurrent, cells, use_engine
from elman.cells.initial import Orthogonal, SpectralRadius

KEEPING = [name for name in cells.names() if cells.get(name)().keeping]


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "slstm"])
def test_orthogonal_matrices_keep_lengths(cell: str) -> None:
    """Saxe et al. 2014: UᵀU = I for each gate, so that neither states nor gradients grow or shrink in the product."""
    module = Recurrent(cell, 3, 32, 2, bidirectional=True, recurrent_init="orthogonal", dtype=torch.float64)
    found = 0
    for level, (_, parts) in enumerate(module.layers):
        blocks = getattr(parts.products[next(iter(parts.products))].structure, "blocks", 1)
        for suffix in (f"_l{level}", f"_l{level}_reverse"):
            for product in parts.products.values():
                for block in getattr(module, "weight_hh" + suffix)[product.rows].chunk(blocks):
                    torch.testing.assert_close(block.T @ block, torch.eye(len(block), dtype=torch.float64))
                    found += 1
    assert found == 4 * len(module.layers[0][1].products) * blocks


def test_a_linear_network_with_orthogonal_weights_neither_explodes_nor_vanishes() -> None:
    module = Recurrent("elman", 1, 64, bias=False, recurrent_init="orthogonal", dtype=torch.float64)
    state = 1e-8 * torch.randn(1, 1, 64, dtype=torch.float64)  # so small that tanh is linear
    state.requires_grad_()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    _, final = module(torch.zeros(1000, 1, 1, dtype=torch.float64), state)
    assert math.isclose(final.norm().item(), state.norm().item(), rel_tol=1e-9)
    (gradient,) = torch.autograd.grad((final * state.detach()).sum(), state)
    assert math.isclose(gradient.norm().item(), state.norm().item(), rel_tol=1e-9)


def test_the_identity_holds_its_state() -> None:
    """Le, Jaitly & Hinton 2015: with relu, no input and no bias, a state that is not negative stays as it is."""
    module = Recurrent(cells.get("elman")("relu"), 1, 16, bias=False, recurrent_init="identity")
    state = torch.rand(1, 2, 16)
    _, final = module(torch.zeros(50, 2, 1), state)
    assert torch.equal(final, state)


@pytest.mark.parametrize("radius", [0.5, 0.99, 1.2])
def test_spectral_radius(radius: float) -> None:
    """Jaeger 2001: below 1, two states under one input come together; the largest eigenvalue is what was asked for."""
    module = Recurrent("elman", 1, 60, bias=False, recurrent_init=SpectralRadius(radius, 0.2), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvals(module.weight_hh_l0.detach())
    assert math.isclose(eigenvalues.abs().max().item(), radius, rel_tol=1e-9)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        near = 1e-40 * torch.randn(1, 1, 60, dtype=torch.float64)
        _, final = module(torch.zeros(400, 1, 1, dtype=torch.float64), near)
    growth = (final.norm() / near.norm()).item() ** (1 / 400)
    assert abs(growth - radius) < 0.03


@pytest.mark.parametrize("cell", KEEPING)
def test_chrono_gives_time_constants_up_to_the_longest(cell: str) -> None:
    """Tallec & Ollivier 2018: units forget in as many steps as U(2, T) says, each in its own."""
    torch.manual_seed(0)
    module = Recurrent(cell, 1, 1000, chrono=200, dtype=torch.float64)
    keeping = _keeping(module)
    with torch.no_grad():
        before = [block.clone() for block in keeping]
        for parameter in module.parameters():
            parameter.zero_()
        for block, value in zip(keeping, before, strict=True):
            block.copy_(value)
        with use_engine("reference"):
            width = module.cell.State._fields
            state: Any = tuple(torch.zeros(1, 1, 1000, dtype=torch.float64) for _ in width)
            state[-1].fill_(1.0)
            _, final = module(torch.zeros(1, 1, 1, dtype=torch.float64), state if len(width) > 1 else state[0])
    kept = final[-1] if len(width) > 1 else final
    constants = 1 / (1 - kept.flatten())
    assert constants.min() > 1.9
    assert constants.max() < 201
    assert abs(constants.mean().item() - 101) < 8


def _keeping(module: Recurrent) -> list[Tensor]:
    """The biases of the lowest layer that decide about keeping."""
    found = []
    for name in module.cell.keeping:
        stored, _, gate = name.partition(".")
        parameter = next(p for p in module.layers[0][1].parameters if p.name == stored)
        found.append(getattr(module, f"{stored}_l0").detach()[parameter.blocks[gate] if gate else slice(None)])
    return found


@pytest.mark.parametrize("cell", KEEPING)
def test_forget_bias_sets_the_forget_gate_alone(cell: str) -> None:
    torch.manual_seed(0)
    plain = Recurrent(cell, 3, 8, 2)
    torch.manual_seed(0)
    module = Recurrent(cell, 3, 8, 2, forget_bias=1.5)
    name, sign = next(iter(module.cell.keeping.items()))
    stored, _, gate = name.partition(".")
    for level, (_, parts) in enumerate(module.layers):
        block = next(p for p in parts.parameters if p.name == stored).blocks.get(gate, slice(None))
        value = getattr(module, f"{stored}_l{level}").detach()
        assert torch.equal(value[block], torch.full((8,), 1.5 * sign))
        others = getattr(plain, f"{stored}_l{level}").detach().clone()
        others[block] = value[block]
        assert torch.equal(others, value)
        second = f"bias_hh_l{level}"
        if stored == "bias_ih" and hasattr(module, second):
            assert getattr(module, second)[block].abs().max() == 0


def test_layer_norm_keeps_the_forget_bias() -> None:
    module = Recurrent("lstm", 3, 8, layer_norm=True, forget_bias=2.0)
    assert torch.equal(module.bias_ih_f_l0.detach(), torch.full((8,), 2.0))
    assert module.bias_hh_f_l0.abs().max() == 0
    assert torch.equal(module.gain_hh_o_l0.detach(), torch.ones(8))


def test_learned_states_start_at_the_cells_own() -> None:
    module = Recurrent("nas", 3, 8, 2, learn_state=True)
    for entry, width in module.layers[0][1].states:
        value = getattr(module, f"initial_{entry.name}_l1").detach()
        assert torch.equal(value, torch.full((width,), entry.initial))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cell": "elman", "forget_bias": 1.0}, "forget_bias: Elman.* names no bias that decides"),
    ({"cell": "elman", "chrono": 10}, "chrono: Elman.* names no bias that decides"),
    ({"forget_bias": 1.0, "bias": False}, r"keeps its state by bias_ih\.f, which this layer does not have"),
    ({"chrono": 2}, "chrono must be the longest dependency in steps, above 2, got 2"),
    ({"chrono": 5, "forget_bias": 1.0}, "chrono and forget_bias exclude each other"),
    ({"recurrent_init": "zeros"}, "recurrent_init must be 'orthogonal' or 'identity', or an Initial, got 'zeros'"),
    ({"recurrent_init": "identity", "proj_size": 2}, r"identity needs square matrices; .* has \(4, 2\)"),
    ({"cell": "antisymmetric_rnn", "recurrent_init": "orthogonal"}, "that of AntisymmetricRNN.* is Antisymmetric"),
    ({"cell": "min_gru", "recurrent_init": Orthogonal()}, r"recurrent_init: MinGRU\(\) has no recurrent products"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_initialised(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recurrent(**{"cell": "lstm", "input_size": 3, "hidden_size": 4, **options})
