"""Whatever torch does around a call: transforms, forward mode, traces, checkpoints, inference first, other threads."""

import copy
import gc
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.fx.experimental.proxy_tensor
from torch import Tensor
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import elman
from elman import Recurrent, explain, use_engine
from elman.engine import dispatch

# What torch itself does for derivatives in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
CELLS = ("elman", "lstm", "gru", "peephole_lstm")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layer(cell: str, *sizes: int, **options: Any) -> Recurrent:
    """A layer that has taken the shorter way already."""
    torch.manual_seed(0)
    made = Recurrent(cell, *(sizes or (5, 7)), dtype=torch.float64, **options)
    for _ in range(3):
        made(sequence(made.input_size))
    return made


def sequence(width: int = 5) -> Tensor:
    return torch.randn(4, 3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tangent(module: Recurrent, x: Tensor) -> Tensor:
    module.requires_grad_(False)
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(module(forward_ad.make_dual(x, torch.ones_like(x)))[0]).tangent


def jvp(module: Recurrent, x: Tensor) -> Tensor:
    return torch.func.jvp(lambda v: module(v)[0], (x,), (torch.ones_like(x),))[1]


def vmap(module: Recurrent, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda v: module(v)[0])(torch.stack([x, 2 * x]))


def gradient(module: Recurrent, x: Tensor) -> Tensor:
    return torch.func.grad(lambda v: module(v)[0].sin().sum())(x)


def of_parameters(module: Recurrent, x: Tensor) -> Tensor:
    given = {name: p.detach() for name, p in module.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,))[0].sin().sum())(given)
    return torch.cat([v.flatten() for v in found.values()])


def jacobian(module: Recurrent, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda v: module(v)[0], x, vectorize=True)


def made_graph(module: Recurrent, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.fx.experimental.proxy_tensor.make_fx(lambda v: module(v)[0])(x)(2 * x)


def traced(module: Recurrent, x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module.eval(), (x,))(2 * x)[0]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("way", [tangent, jvp, vmap, gradient, of_parameters, jacobian, made_graph, traced])
def test_what_follows_operations_gets_operations(way: Any, cell: str) -> None:
    with use_engine("reference"):
        expected = way(layer(cell), sequence())
    torch.testing.assert_close(way(layer(cell), sequence()), expected)


def test_the_reason_is_said() -> None:
    module = layer("peephole_lstm")
    with forward_ad.dual_level():
        assert "derivatives are taken in forward mode" in str(explain(module))
        with use_engine("cpu"), pytest.raises(RuntimeError, match="derivatives are taken in forward mode"):
            module(sequence())
    assert explain(module).engines == ("cpu",)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
@pytest.mark.parametrize("lengths", [None, [4, 1, 3]])
def test_checkpoints_around_the_call_that_makes_a_route(options: dict[str, Any], lengths: Any) -> None:
    torch.manual_seed(0)
    module = Recurrent("lstm", 5, 7, dtype=torch.float64, **options)
    x = sequence().requires_grad_()

    def run(v: Tensor) -> Tensor:
        return module(v, lengths=lengths)[0]

    expected = torch.autograd.grad(run(x).sum(), x)[0]
    for _ in range(4):
        torch.testing.assert_close(torch.autograd.grad(checkpoint(run, x, use_reentrant=False).sum(), x)[0], expected)
        torch.testing.assert_close(torch.autograd.grad(run(x).sum(), x)[0], expected)


@pytest.mark.parametrize(("hidden_size", "lengths"), [(160, None), (160, [4, 3, 1]), (7, [4, 3, 1])])
def test_backward_on_fewer_threads_than_forward(hidden_size: int, lengths: Any) -> None:
    module = Recurrent("lstm", 5, hidden_size, bidirectional=True, dtype=torch.float64)
    found = {}
    for engine in ("cpu", "reference"):
        with use_engine(engine):
            torch.set_num_threads(2)
            output, _ = module(sequence(), lengths=lengths)
            torch.set_num_threads(1)
            found[engine] = torch.autograd.grad(output.sum(), list(module.parameters()))
    for ours, expected in zip(found["cpu"], found["reference"], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("cell", ["peephole_lstm", "lmu"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_training_behind_inference(cell: str, bidirectional: bool) -> None:
    """What evaluation was the first to ask for serves training too."""
    module = Recurrent(cell, 5, 9, bidirectional=bidirectional, dtype=torch.bfloat16)
    x = torch.randn(6, 5, 5, dtype=torch.bfloat16)
    with torch.inference_mode():
        module(x, lengths=[6, 2, 3, 6, 1])
        module(x)
    module(x, lengths=[6, 2, 3, 6, 1])[0].sum().backward()
    module(x)[0].sum().backward()


@pytest.mark.parametrize("forward", ["reference", "auto"])
def test_recomputing_takes_the_engine_of_forward(forward: str) -> None:
    module = Recurrent("lstm", 5, 7, recompute=True, dtype=torch.float64)
    x = sequence().requires_grad_()
    with use_engine(forward):
        output = module(x)[0].sum()
    with use_engine("reference" if forward == "auto" else "auto"):
        output.backward()
    assert x.grad is not None


def test_contexts_and_decorators_go_back_to_what_was_before() -> None:
    @use_engine("reference")
    def inner(again: bool = False) -> str:
        return inner() and dispatch.wanted() if again else dispatch.wanted()

    with use_engine("cpu"):
        assert inner() == inner(again=True) == "reference"
        assert dispatch.wanted() == "cpu"
        entered = use_engine("reference")
        with entered:
            with entered:
                pass
            assert dispatch.wanted() == "reference"
        assert dispatch.wanted() == "cpu"
    assert dispatch.wanted() == "auto"


# ---- parameters and hooks


def test_parameters_of_another_shape_are_named() -> None:
    module, x = layer("lstm"), sequence()
    kept = module.weight_hh_l0
    module.weight_hh_l0 = torch.nn.Parameter(torch.randn(28, 3, dtype=torch.float64))
    for call in (lambda: module(x), lambda: module.step(x[0]), lambda: module.stepper(3)):
        with torch.no_grad(), pytest.raises(ValueError, match=r"weight_hh_l0 must be \(28, 7\), got \(28, 3\)"):
            call()
    module.weight_hh_l0 = kept
    module.weight_hh_l0.data = torch.empty(0, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weight_hh_l0 must be \(28, 7\), got \(0,\)"):
        module(x)


def test_a_parameter_elsewhere_is_named() -> None:
    module, x = layer("lstm"), sequence()
    module.bias_hh_l0 = torch.nn.Parameter(torch.empty(28, dtype=torch.float64, device="meta"))
    for call in (lambda: module(x), lambda: module.step(x[0]), lambda: module.stepper(3)):
        with torch.no_grad(), pytest.raises(ValueError, match="bias_hh_l0 is on meta, other parameters on cpu"):
            call()


@pytest.mark.parametrize("way", ["pruned", "weight_norm"])
def test_steps_see_weights_that_hooks_make(way: str) -> None:
    module, x = layer("lstm"), sequence()[0]
    if way == "pruned":
        prune.l1_unstructured(module, "weight_hh_l0", 0.5)
        made_of = module.weight_hh_l0_orig
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.nn.utils.weight_norm(module, "weight_hh_l0")
        made_of = module.weight_hh_l0_g
    state = (torch.randn(1, 3, 7, dtype=torch.float64),) * 2
    with torch.no_grad():
        module.step(x, state)
        made_of.mul_(1.5)
        stepped, _ = module.step(x, state)
        stepper = module.stepper(3)
        stepper.state = state
    expected, _ = module.step(x, state)
    assert torch.equal(stepped, expected)
    assert torch.equal(stepper(x), expected)


def test_hooks_act_in_steps_too() -> None:
    module = layer("gru")
    module.register_forward_hook(lambda _, __, result: (result[0] + 1, result[1]))
    with torch.no_grad():
        output, state = module.step(sequence()[0])
    torch.testing.assert_close(output, state[0] + 1)


# ---- copies of steppers


@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", {}), ("gru_reset_before", {}), ("lmu", {}), ("lstm", {"num_layers": 2}), (["lstm", "gru"], {})],
)
def test_copies_of_steppers_go_on_by_themselves(cell: Any, options: dict[str, Any]) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Recurrent(cell, 5, 8, **options)
            self.stepper = self.layer.stepper(3)

    model, x = Model(), torch.randn(3, 5)
    first = model.stepper(x)
    copies = [copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model.stepper))]
    expected = model.stepper(x)
    assert not torch.equal(first, expected)
    assert copies[0].stepper._module is copies[0].layer
    shallow = copy.copy(model.stepper)
    assert torch.equal(shallow(x), model.stepper(x))
    del model
    gc.collect()
    junk = [torch.full((n,), 1e9) for n in range(100, 20_000, 97)]
    assert torch.equal(copies[0].stepper(x), expected)
    assert torch.equal(copies[2](x), expected)
    assert junk
    assert elman.LSTM(5, 7).stepper(2).state is copy.deepcopy(elman.LSTM(5, 7).stepper(2)).state is None
