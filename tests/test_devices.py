"""Tensors stay where they are, whatever the default device is."""

from typing import Any

import pytest
import torch
from torch import Tensor

import elman
from elman import Recurrent, cells
from elman.engine.draws import Noise
from elman.testing import Case, assert_near


def results(module: Recurrent, x: Tensor, extras: dict[str, Tensor], noise: Noise, **arguments: Any) -> list[Tensor]:
    """The outputs, and the gradients of a sum of their squares."""
    x = x.detach().requires_grad_()
    output, _ = module(x, extras=extras, noise=noise, **arguments)
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    found = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [output.detach(), *found]


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "clockwork", "min_gru", "echo_state", "cfn"])
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_the_default_device_is_not_asked(cell: str, engine: str) -> None:
    """On "meta" no tensor has numbers, so one that is made there by mistake fails or changes results."""
    case = Case(cells.get(cell)(), engine=engine, options={"zoneout": 0.2})
    module, x, noise = case.module(), case.input(6, 3), case.noise()
    with elman.use_engine(engine):
        wanted = results(module, x, {}, noise, lengths=[6, 2, 4])
        for _ in range(3):  # the first call, and those that take shorter ways
            with torch.device("meta"):
                found = results(module, x, {}, noise, lengths=[6, 2, 4])
            for a, b in zip(found, wanted, strict=True):
                assert torch.equal(a, b)
        with torch.no_grad():
            wanted_step, _ = module.eval().step(x[0])
            with torch.device("meta"):
                stepped, _ = module.step(x[0])
                prepared = module.stepper(3)(x[0])
        assert torch.equal(stepped, wanted_step)
        assert_near(prepared, wanted_step, "stepper")


def test_layers_are_made_on_meta_and_filled_later() -> None:
    with torch.device("meta"):
        module = Recurrent("lstm", 3, 8, num_layers=2, forget_bias=1.0)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    output, _ = module(torch.randn(5, 2, 3))
    assert output.isfinite().all()


def test_tensors_of_two_devices_are_refused() -> None:
    layer = elman.GRU(3, 8)
    with pytest.raises(ValueError, match="meta"):
        layer(torch.randn(5, 2, 3, device="meta"))
    with pytest.raises(ValueError, match=r"state entry 'h' is on meta, the input on cpu"):
        layer(torch.randn(5, 2, 3), torch.zeros(1, 2, 8, device="meta"))
