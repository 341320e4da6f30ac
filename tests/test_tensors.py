"""Tensors in compiled code: read by DLPack's functions in C or by its capsules alike, and refused without numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import elman
from elman import Recurrent, use_engine
from elman.engine.calls import fitting, form_function
from elman.engine.memory import Tensors
from elman.engine.packing import Packing
from elman.engine.program import Program
from elman.engine.tensors import torch_words


def _results(module: Recurrent, x: Tensor) -> list[Tensor]:
    """Outputs, states and gradients of three calls with as many forms, steps, and what a stepper gives."""
    found: list[Tensor] = []
    for lengths in (None, None, None, [2, 4, 1], [4, 3, 3], [1, 4, 2]):
        output, state = module(x, lengths=lengths)
        found += [output, *state, *torch.autograd.grad(output.sin().sum() + state[1].sum(), [x, *module.parameters()])]
    with torch.no_grad():
        stepper, state = module.stepper(3), None
        for step in x:
            output, state = module.step(step, state)
            found += [output, *state, stepper(step)]
    return found


def test_by_capsules_as_by_functions(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    module, x = elman.LSTM(5, 7, 2), torch.randn(4, 3, 5, requires_grad=True)
    with use_engine("cpu"):
        expected = _results(module, x)
        request.getfixturevalue("by_capsules")
        assert torch_words()[0] == 0
        found = _results(module, x)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture(params=["functions", "capsules"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "capsules":
        request.getfixturevalue("by_capsules")
    elif not torch_words()[0]:
        pytest.skip("this torch has no such functions")


def _form(x: Tensor, *states: Tensor, engine: str = "cpu", kind: int = 0, rows: int = 0) -> Any:
    return form_function()(engine, kind, rows, x.dim(), x, *states)


@pytest.mark.usefixtures("either")
def test_forms_of_calls() -> None:
    """Equal for calls that differ in numbers alone; whatever else differs makes another one."""
    x, h = torch.randn(4, 3, 5), torch.randn(1, 3, 7)
    known = _form(x, h)
    assert known is not None
    assert _form(torch.randn(4, 3, 5), h.clone()) == known
    others = [
        _form(x),
        _form(x, h, h),
        _form(x, h.clone().requires_grad_()),
        _form(x.clone().requires_grad_(), h),
        _form(x.double(), h),
        _form(torch.randn(4, 3, 6), h),
        _form(torch.randn(4, 5, 3).transpose(1, 2), h),
        _form(x, h, kind=1),
        _form(x, h, engine="auto"),
        _form(x, h, rows=3),
    ]
    with torch.no_grad():
        others.append(_form(x, h))
        assert _form(x.clone().requires_grad_(), h) == others[-1]  # which is nothing then
    assert len({known, *others}) == len(others) + 1
    assert _form(torch.randn(2, 3, 5), h, rows=3) == _form(x, h, rows=3)  # of packed rows the width alone counts
    assert _form(torch.randn(4, 3, 6), h, rows=3) != _form(x, h, rows=3)


@pytest.mark.usefixtures("either")
def test_no_form_where_torch_follows_operations() -> None:
    x = torch.randn(4, 3, 5)
    assert _form(x) is not None
    assert _form(x.to("meta")) is None
    assert form_function()("cpu", 0, 0, 2, x) is None
    with FakeTensorMode():
        assert _form(torch.randn(4, 3, 5)) is None
        fake = torch.randn(4, 3, 5)
    assert _form(fake) is None
    with torch.autocast("cpu"):
        assert _form(x) is None
    with torch.autograd.forward_ad.dual_level():
        assert _form(x) is None
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v):
        assert _form(x) is None
        with torch.no_grad():
            assert _form(x) is not None
    seen: list[Any] = []
    torch.func.vmap(lambda v: (seen.append(_form(v)), v)[1])(torch.randn(2, 4, 3, 5))
    assert seen == [None]


@pytest.mark.usefixtures("either")
def test_parameters_and_states_that_fit() -> None:
    w, b, h = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4)), torch.randn(1, 2, 4)
    look = fitting([("w", w), ("b", b)], [(1, 2, 4)], torch.float32)
    all_of_them: dict[str, Any] = {"b": b, "other": None, "w": w}
    found = look(all_of_them)
    assert found is not None
    assert found[0] is w
    assert found[1] is b
    assert look(all_of_them, h) is not None
    wrong: list[Any] = [torch.randn(1, 2, 3), h.double(), h.transpose(0, 1), torch.randn(1, 4, 2).mT, h.to("meta"), 3]
    for state in wrong:
        assert look(all_of_them, state) is None
    assert look(all_of_them, h, h) is None
    for other in (
        w.detach(),
        torch.nn.Parameter(torch.randn(4, 3), requires_grad=False),
        torch.nn.Parameter(w.mT),
        None,
    ):
        assert look({**all_of_them, "w": other}) is None
    assert look({"w": w}) is None


@pytest.mark.usefixtures("either")
def test_tensors_without_numbers_are_refused() -> None:
    module = elman.LSTM(5, 7)
    stepper = module.stepper(2)
    with FakeTensorMode():
        fake = torch.randn(2, 5)
    with pytest.raises(TypeError, match="a step takes plain tensors, got a FakeTensor"):
        stepper(fake)
    assert stepper.state is None
    with pytest.raises(TypeError, match="input must be a Tensor"):
        stepper([1.0])
    program = Program(torch.float32, Packing.dense(1, 1, torch.device("cpu")))
    program.copy(program.result("y", 1), program.given("x"), 1)
    x, y = torch.randn(1), torch.empty(1)
    program.alone.run(1, 1, [x, y])
    assert torch.equal(x, y)
    with pytest.raises((RuntimeError, BufferError)):
        program.alone.run(1, 1, [x.to("meta"), y])


def test_what_a_builtin_function_reads_lasts_as_long_as_it() -> None:
    make = [Tensors([(size,)], torch.float32).make for size in range(1, 50)]
    assert [one()[0].shape[0] for one in make] == list(range(1, 50))


def test_no_memory_is_one_line() -> None:
    with pytest.raises(MemoryError, match="no memory for 4611686018427387904 bytes"):
        Tensors([(1 << 60,)], torch.float32).make()


def test_steps_are_prepared_for_the_threads_that_there_are(set_threads: Callable[[int], None]) -> None:
    from elman.nn import stepper

    module, x = elman.GRU(3, 4), torch.randn(1, 3)
    with torch.no_grad(), use_engine("cpu"):
        set_threads(1)
        module.step(x)
        first = stepper._cache.kernels[module]
        module.step(x)
        assert stepper._cache.kernels[module] is first
        set_threads(2)
        module.step(x)
        assert stepper._cache.kernels[module] is not first
