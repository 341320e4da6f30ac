"""What declarations promise of a layer: biases that can be left out, and sizes that must be equal."""

import re
from typing import Any

import pytest
import torch

from elman import Cell, Recurrent, cells, explain, use_engine
from elman.catalogue.facts import facts
from elman.cells.math import tanh
from elman.testing import Case, check_cell, compare

# Cells that can add their input to their state, and the number of parameters then.
DIRECT = {
    "mut1": "H·(4H + 3)",
    "mut2": "H·(5H + 3)",
    "residual_lstm": "H·(9H + 7)",
    "intersection_rnn": "4H·(2H + 1)",
}


KERNELS = ("gru", "sru", "mgu3", "layer_norm_gru")  # which show all ways in which a kernel meets a missing bias


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, "reference") for name in cells.names()]
    + [pytest.param(name, "cpu", marks=[] if name in KERNELS else pytest.mark.slow) for name in cells.names()],
)
def test_without_biases_is_with_biases_of_zero(name: str, engine: str) -> None:
    """Outputs, states and gradients; what is left out is a vector each, and nothing called a bias is left."""
    case = Case(cells.get(name)(), num_layers=2)
    whole, without = case.module(), case.module(bias=False)
    left_out = dict(whole.named_parameters()).keys() - dict(without.named_parameters()).keys()
    assert not [n for n, _ in without.named_parameters() if re.match(r"b(ias)?(_|$)", n)]
    with torch.no_grad():
        for key, parameter in whole.named_parameters():
            if key in left_out:
                assert parameter.dim() == 1
                parameter.zero_()
            else:
                parameter.copy_(without.get_parameter(key))
    x, extras = case.input(5, 3).requires_grad_(), case.extras(5, 3)
    kept = dict(without.named_parameters())

    def flat(module: Recurrent) -> list[torch.Tensor]:
        values = {key: kept.get(key, parameter) for key, parameter in module.named_parameters()}
        output, state = torch.func.functional_call(module, values, (x,), {"extras": extras})
        return [output, *(state if isinstance(state, tuple) else (state,))]

    with use_engine(engine):
        compare(without, [x], (lambda: flat(without), lambda: flat(whole)), f"{name} without biases")


def test_biases_of_ones_own() -> None:
    class Own(Cell):
        gates = ("h",)
        biases = ("shift",)
        input_bias = recurrent_bias = False

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            return self.State(h=tanh(x.h + u.h(s.h)) + p.shift)

    assert [n for n, _ in Recurrent(Own, 2, 3).named_parameters()] == ["weight_ih_l0", "weight_hh_l0", "shift_l0"]
    assert [n for n, _ in Recurrent(Own, 2, 3, bias=False).named_parameters()] == ["weight_ih_l0", "weight_hh_l0"]
    projected = Recurrent(Own, 2, 3, bias=False, proj_size=2)
    assert "shift_l0" not in projected.state_dict()
    assert explain(projected, torch.randn(4, 1, 2)).engines == ("cpu",)


@pytest.mark.parametrize("input_size", [1, 3])
@pytest.mark.parametrize("name", DIRECT)
def test_a_cell_that_adds_its_input_needs_as_many_inputs_as_units(name: str, input_size: int) -> None:
    cell = cells.get(name)(projected=False)
    message = re.escape(f"{cell!r} needs as many inputs as units in each layer, got {input_size} inputs and 8 units")
    with pytest.raises(ValueError, match=f"^{message}$"):
        Recurrent(cell, input_size, 8)
    with pytest.raises(ValueError, match="got 16 inputs and 8 units"):
        Recurrent(cell, 8, 8, num_layers=2, bidirectional=True)
    assert Recurrent(cell, 8, 8, num_layers=2)(torch.randn(2, 1, 8))[0].shape == (2, 1, 8)
    assert Recurrent(cells.get(name), input_size, 8)(torch.randn(2, 1, input_size))[0].shape == (2, 1, 8)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "mut1" else pytest.mark.slow) for n in DIRECT])
def test_such_a_cell_is_checked_and_described_at_equal_sizes(name: str) -> None:
    cell = cells.get(name)(projected=False)
    assert ("cpu", torch.float64) in check_cell(cell, hidden_size=4).ran
    found = facts(cell)
    assert found.parameter_count == DIRECT[name]
    assert not isinstance(found.formulas, str)
