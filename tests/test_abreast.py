"""Both directions of a layer at once: the same numbers as one after the other, however many threads there are."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elman import Recurrent, use_engine
from elman.engine import cpu, form, reference
from elman.engine.call import DirectionResult, LayerCall
from elman.engine.packing import Packing
from elman.engine.program import Program
from elman.engine.runs import Runs, run_all

pytestmark = pytest.mark.usefixtures("poison")

CELLS = ["elman", "lstm", "gru_reset_before", "sru", "clockwork", "slstm", "layer_norm_lstm", "lmu", "tlstm", "janet"]


@pytest.fixture(params=[2, 4], ids=["two threads", "four threads"])
def threads(request: pytest.FixtureRequest, set_threads: Callable[[int], None]) -> int:
    set_threads(request.param)
    count: int = request.param
    return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each run of programs, how many ran at once."""
    found: list[int] = []

    def run(self: Runs) -> Callable[..., object]:
        def counting(*given: Any) -> object:
            found.append(self.abreast)
            return self.__dict__["run"](*given)

        return counting

    def to_be_run(self: Runs, run: Callable[..., object]) -> None:
        self.__dict__["run"] = run

    monkeypatch.setattr(Runs, "run", property(run, to_be_run), raising=False)
    return found


def _numbers(module: Recurrent, x: Tensor, **arguments: Any) -> list[Tensor]:
    """Output, final states and all gradients."""
    output, final = module(x, **arguments)
    results = [output, *(final if isinstance(final, tuple) else (final,))]
    loss = sum(((k + 1) * v.sin()).sum() for k, v in enumerate(results))
    return [*results, *torch.autograd.grad(loss, [x, *module.parameters()])]  # type: ignore[arg-type]


def _one_after_the_other(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch", ["dense", "lengths", "resets"])
@pytest.mark.parametrize("name", CELLS)
def test_equals_one_after_the_other(name: str, batch: str, threads: int, counted: list[int]) -> None:
    """At sizes at which crews of two share out products too; the first calls, and those that come again."""
    module = Recurrent(name, 24, 48, 2, bidirectional=True).double()
    x = torch.randn(9, 7, 24, dtype=torch.float64, requires_grad=True)
    arguments: dict[str, Any] = {}
    if batch == "lengths":
        arguments["lengths"] = [4, 9, 1, 7, 7, 3, 8]
    if batch == "resets":
        arguments["reset"] = torch.rand(9, 7) < 0.2
    with use_engine("cpu"):
        expected = _one_after_the_other(lambda: _numbers(module, x, **arguments))
        assert not any(counted)
        counted.clear()
        seen = [_numbers(module, x, **arguments) for _ in range(3)]
    assert counted == [2] * len(counted), "both ways at once, forward and backward"
    for found in seen:
        for a, b, c in zip(found, expected, seen[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
            assert torch.equal(a, c)


def test_random_choices(threads: int) -> None:
    module = Recurrent("lstm", 24, 48, 2, bidirectional=True, recurrent_dropout=0.4, zoneout=0.2, locked_dropout=0.3)
    x = torch.randn(9, 7, 24, requires_grad=True)

    def run() -> list[Tensor]:
        torch.manual_seed(3)
        return _numbers(module, x)

    with use_engine("cpu"):
        expected = _one_after_the_other(run)
        for _ in range(3):
            for a, b in zip(run(), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _gradients(module: Recurrent, x: Tensor, of: Callable[[Tensor, Any], Tensor], **arguments: Any) -> list[Any]:
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(of(*module(x, **arguments)), wanted, allow_unused=True))


ALONE: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "the forward direction's output": lambda output, _: output[..., :6].sin().sum(),
    "the backward direction's output": lambda output, _: output[..., 6:].sin().sum(),
    "a final state": lambda _, final: final.c[1].sin().sum(),
    "both final states": lambda _, final: (final.c[0] * final.h[1]).sum(),
}


@pytest.mark.parametrize("lengths", [None, [3, 5, 1]], ids=["dense", "lengths"])
@pytest.mark.parametrize("of", ALONE.values(), ids=ALONE)
def test_gradients_of_one_result(of: Any, lengths: Any, threads: int) -> None:
    """What a direction has no part in gives it zeros or nothing."""
    module = Recurrent("lstm", 4, 6, bidirectional=True).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    with use_engine("reference"):
        expected = _gradients(module, x, of, lengths=lengths)
    with use_engine("cpu"):
        for _ in range(3):
            for a, b in zip(_gradients(module, x, of, lengths=lengths), expected, strict=True):
                zero = torch.zeros(())
                torch.testing.assert_close(
                    zero if a is None else a, (zero if b is None else b).expand_as(zero if a is None else a)
                )


@pytest.mark.parametrize("lengths", [None, [3, 5, 1]], ids=["dense", "lengths"])
def test_a_frozen_direction(lengths: Any, threads: int, counted: list[int]) -> None:
    """Its output needs no gradient; so the directions are operations of their own."""
    module = Recurrent("gru", 4, 6, bidirectional=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("reverse" not in name)
    x = torch.randn(5, 3, 4)
    with use_engine("cpu"):
        for _ in range(3):
            final = module(x, lengths=lengths)[1]
            assert final.requires_grad
            found = torch.autograd.grad(final[0].sin().sum(), [p for p in module.parameters() if p.requires_grad])
        assert not any(counted)
    with use_engine("reference"):
        final = module(x, lengths=lengths)[1]
        expected = torch.autograd.grad(final[0].sin().sum(), [p for p in module.parameters() if p.requires_grad])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_again_and_twice(threads: int) -> None:
    module = Recurrent("lstm", 3, 4, 2, bidirectional=True).double()
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    with use_engine("cpu"):
        for _ in range(3):
            loss = module(x)[0].sin().sum()
            first = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
            second = torch.autograd.grad(loss, [x, *module.parameters()])
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            assert torch.autograd.gradgradcheck(lambda v: module(v)[0], (x,), fast_mode=True)
    loss = Recurrent("lstm", 3, 4, bidirectional=True)(torch.randn(5, 3, 3))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_which_layers(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two directions, unless threads are odd in number, or few rows meet matrices that caches do not hold."""
    calls: list[LayerCall] = []
    real = form.abreast
    monkeypatch.setattr("elman.engine.cpu.abreast", lambda call: calls.append(call) or real(call))

    def decided(module: Recurrent, batch: int) -> bool:
        with use_engine("cpu"), torch.no_grad():
            module(torch.randn(1, batch, module.input_size))
        return real(calls[-1])

    fewer: int | None = None
    for rows, most in form.ABREAST_BYTES.items():
        units = int((most / 4) ** 0.5)
        assert decided(Recurrent("elman", 3, units, bidirectional=True), max(rows, 1))
        assert not decided(Recurrent("elman", 3, units + 1, bidirectional=True), max(rows, 1))
        assert fewer is None or decided(Recurrent("elman", 3, units, bidirectional=True), fewer - 1)
        fewer = rows
    assert not decided(Recurrent("elman", 3, 5), 1)
    small = Recurrent("elman", 3, 5, bidirectional=True)
    assert decided(small, 1)
    torch.set_num_threads(threads + 1)
    assert not decided(small, 1)


LIMITED = """
import torch, elman
torch.set_num_threads(4)
torch.manual_seed(0)
module = elman.LSTM(24, 48, bidirectional=True)
x = torch.randn(9, 7, 24, requires_grad=True)
loss = module(x)[0].sin().sum()
gradients = torch.autograd.grad(loss, [x, *module.parameters()])
print(float(loss), *(float(g.sum()) for g in gradients))
"""


def test_fewer_threads_than_asked_for() -> None:
    """The runtime may give one thread for both directions, or three, of which one is left over."""
    seen = []
    for limit in (1, 2, 3, 4):
        environment = os.environ | {"OMP_THREAD_LIMIT": str(limit), "ELMAN_ENGINE": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", LIMITED], env=environment, capture_output=True, text=True, check=True
        )
        seen.append(torch.tensor([float(word) for word in done.stdout.split()]))
    for found in seen[1:]:
        torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-4)


def test_programs_have_memory_of_their_own(threads: int) -> None:
    """Each writes what it is given to scratch memory, and then from there to its result."""
    packing = Packing.dense(4, 8, torch.device("cpu"))
    written = []
    for _ in range(2):
        one = Program(torch.float32, packing, threads // 2, abreast=True)
        size = 4 * 8 * 512
        middle, to = one.numbers(32, 512), one.result("y", 32, 512)
        one.copy(middle, one.given("x"), size)
        for _ in range(50):
            one.copy(to, middle, size)
        written.append(one)
    given = [torch.randn(32, 512) for _ in written]
    for _ in range(20):
        made = [one.make(packing) for one in written]
        run_all(packing, *((one, {"x": x}, m) for one, x, m in zip(written, given, made, strict=True)))
        assert all(torch.equal(m["y"], x) for m, x in zip(made, given, strict=True))


def test_a_loop_of_fewer_threads_than_its_crew(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None], counted: list[int]
) -> None:
    """Two of a crew's three share out the units of one row; the third waits for the next job."""
    monkeypatch.setattr("elman.engine.sharing.split_rows", lambda *_: 4)
    monkeypatch.setattr("elman.engine.kernel.loop_threads", lambda *_: 2)
    torch.manual_seed(0)
    module = Recurrent("lstm", 5, 72, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 1, 5, dtype=torch.float64, requires_grad=True)
    set_threads(6)
    with use_engine("cpu"):
        found = [_numbers(module, x) for _ in range(4)]  # the first call, and those that take the shorter way
    assert set(counted) == {2}
    with use_engine("reference"):
        wanted = _numbers(module, x)
    for numbers in found:
        for a, b in zip(numbers, wanted, strict=True):
            assert (a - b).abs().max() < 1e-12


def test_gradients_of_one_direction_alone(threads: int, counted: list[int]) -> None:
    """The other one's are not computed, and the program that runs finds a crew for its jobs."""
    torch.manual_seed(0)
    module = Recurrent("gru", 5, 72, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 64, 5, dtype=torch.float64, requires_grad=True)
    calls: list[LayerCall] = []

    def run(call: LayerCall) -> list[DirectionResult]:
        calls.append(call)
        return cpu.run(call)

    module._unrolling(module._frame(x, None), None, run).forward(None, None, None, every_state=False)
    counted.clear()
    found = []
    for engine in (cpu, reference):
        backwards = engine.run(calls[0])[1].sequences[0]
        found.append(torch.autograd.grad(backwards.sin().sum(), [x, *module.parameters()], allow_unused=True))
    assert counted == [2, 1]
    for a, b in zip(*found, strict=True):
        assert (a is None) is (b is None)
        assert a is None or (a - b).abs().max() < 1e-12
