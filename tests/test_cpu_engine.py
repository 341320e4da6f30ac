"""Compiled kernels against the reference, at sizes and batches that no loop likes, with one thread and with two."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import elman
from elman import Cell, Recurrent, cells, use_engine
from elman.cells.clockwork import Clockwork
from elman.cells.layout import layout
from elman.cells.math import tanh, where
from elman.compiler import build
from elman.compiler.plan import Plan
from elman.engine import backward, cpu, forward
from elman.engine.form import Form, multiplies_within
from elman.engine.products import tools
from elman.engine.sharing import SPLIT_FROM, loop_threads, multiplied_by_tiles, sharing, split_rows
from elman.testing import Case, compare

pytestmark = pytest.mark.usefixtures("poison")

CELLS = {name: cells.get(name)() for name in cells.names()}


def _plan(name: str) -> Plan:
    return Plan(CELLS[name], layout(CELLS[name], 5, 24), dict.fromkeys(CELLS[name].below, 24))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]) -> int:
    # Small as the matrices are, two threads share units.
    monkeypatch.setattr("elman.engine.sharing.split_rows", lambda *_: 8 * request.param)
    monkeypatch.setattr("elman.engine.kernel.loop_threads", lambda *_: request.param)
    set_threads(request.param)
    count: int = request.param
    return count


def _ways(case: Case, module: Recurrent, x: Tensor, state: Any, **arguments: Any) -> list[Any]:
    def way(engine: str) -> Any:
        def run() -> list[Tensor]:
            with use_engine(engine):
                output, final = module(x, case.pass_in(state), **arguments)
            return [output, *(final if isinstance(final, tuple) else (final,))]

        return run

    return [way("cpu"), way("reference")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_reference(name: str, dtype: torch.dtype, threads: int) -> None:
    for batch, bidirectional in ((3, True), (41, False)):
        case = Case(CELLS[name], dtype=dtype, input_size=5, hidden_size=40)
        module = case.module(bidirectional=bidirectional)
        x, extras, state = case.input(6, batch).requires_grad_(), case.extras(6, batch), case.state(module, batch)
        lengths = [1 + (5 * k) % 6 for k in range(batch)]
        reset = torch.rand(6, batch) < 0.2
        ways = _ways(case, module, x, state, lengths=lengths, reset=reset, extras=extras)
        compare(module, [x, *state], ways, f"{name}, {batch} rows")


@pytest.mark.parametrize(
    ("workers", "sizes", "lengths"),
    [
        (2, (5, 72), [17]),
        pytest.param(2, (72, 200), [12, 4, 11], marks=pytest.mark.slow),
        pytest.param(3, (5, 72), [6, 17], marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CELLS)
def test_one_row_by_several_threads(
    name: str,
    workers: int,
    sizes: tuple[int, int],
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
    set_threads: Callable[[int], None],
) -> None:
    """They share out its units, and begin with what they need not wait for: one sequence, or the longest of several."""
    monkeypatch.setattr("elman.engine.sharing.split_rows", lambda *_: 4)
    monkeypatch.setattr("elman.engine.kernel.loop_threads", lambda *_: workers)
    set_threads(workers)
    case = Case(CELLS[name], input_size=sizes[0], hidden_size=sizes[1])
    module, batch, steps = case.module(), len(lengths), max(lengths)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.4)  # or states of some cells would grow, and rounding with them
    x, extras, state = case.input(steps, batch).requires_grad_(), case.extras(steps, batch), case.state(module, batch)
    compare(module, [x, *state], _ways(case, module, x, state, lengths=lengths, extras=extras), name)


@pytest.mark.parametrize("name", CELLS)
def test_time_in_stretches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products before and after the loop take a stretch of time at a time, which nothing may show."""
    from elman.engine import kernel

    monkeypatch.setattr(kernel, "CHUNK_BYTES", 1)
    monkeypatch.setattr(kernel, "CHUNK_ROWS", 7)
    case = Case(CELLS[name], input_size=5, hidden_size=24)
    module = case.module(bidirectional=True)
    x, extras, state = case.input(9, 5).requires_grad_(), case.extras(9, 5), case.state(module, 5)
    for lengths in (None, [4, 9, 1, 9, 6]):
        for reset in (None, torch.rand(9, 5) < 0.2):
            ways = _ways(case, module, x, state, lengths=lengths, reset=reset, extras=extras)
            compare(module, [x, *state], ways, f"{name}, lengths {lengths}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("periods", [(1, 2, 4, 8), (2, 3), (1, 1, 2), (5,)], ids=str)
def test_blocks_that_are_not_due(periods: tuple[int, ...], dtype: torch.dtype, threads: int) -> None:
    """Rows at different steps of their clocks, by lengths, by resets and by the state that they start from."""
    case = Case(Clockwork(periods), dtype=dtype, input_size=7, hidden_size=120, num_layers=1)
    module = case.module()
    for batch in (1, 21):
        x, (h, _) = case.input(11, batch).requires_grad_(), case.state(module, batch)
        for start in (torch.zeros(1, batch, 1), torch.arange(batch).view(1, batch, 1)):
            state = (h, start.long())
            for lengths in (None, [11 - k % 7 for k in range(batch)]):
                for reset in (None, torch.rand(11, batch) < 0.1):
                    ways = _ways(case, module, x, state, lengths=lengths, reset=reset)
                    compare(module, [x, h], ways, f"{periods}, {batch} rows, lengths {lengths}, {reset is not None}")


def test_a_clock_is_found_in_the_equations() -> None:
    class Ticking(Clockwork):
        """Its output also takes the product at steps that are not due."""

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            due = s.t % p.period == 0
            fresh = tanh(x.h + u.h(s.h))
            return self.State(h=where(due, fresh, s.h) + 0.1 * fresh, t=s.t + 1)

    assert Plan(Clockwork(), layout(Clockwork(), 5, 8), {}).clock == "period"
    assert Plan(Ticking(), layout(Ticking(), 5, 8), {}).clock is None
    assert Plan(CELLS["lstm"], layout(CELLS["lstm"], 5, 8), {}).clock is None


@pytest.mark.parametrize("hidden_size", [1, 2, 15, 16, 17, 33, 64, 100])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru_reset_before"])
def test_odd_sizes(name: str, hidden_size: int, threads: int) -> None:
    for batch, input_size in ((1, 1), (2, 17), (19, 3), (50, 16)):
        case = Case(CELLS[name], dtype=torch.float32, input_size=input_size, hidden_size=hidden_size)
        module = case.module()
        x, state = case.input(4, batch).requires_grad_(), case.state(module, batch)
        compare(module, [x, *state], _ways(case, module, x, state), f"{name}, H = {hidden_size}, B = {batch}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "hidden_size"), [("elman", 1100), ("lstm", 300), ("gru_reset_before", 410), ("layer_norm_lstm", 300)]
)
def test_one_row(name: str, hidden_size: int, dtype: torch.dtype, threads: int) -> None:
    """More blocks of units than those whose products come before their expressions, in steps upwards and downwards."""
    case = Case(CELLS[name], dtype=dtype, input_size=9, hidden_size=hidden_size)
    module = case.module()
    x, state = case.input(3, 1).requires_grad_(), case.state(module, 1)
    compare(module, [x, *state], _ways(case, module, x, state), f"{name}, {hidden_size} units")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "hidden_size"), [("elman", 740), ("lstm", 370), ("gru_reset_before", 520), ("clockwork", 744)]
)
def test_matrices_larger_than_caches(name: str, hidden_size: int, dtype: torch.dtype, threads: int) -> None:
    """From 2 MB on, tiles fetch what the next block multiplies by, where a thread has several of them."""
    case = Case(CELLS[name], dtype=dtype, input_size=9, hidden_size=hidden_size)
    module = case.module()
    x, state = case.input(4, 29).requires_grad_(), case.state(module, 29)
    lengths = [1 + (3 * k) % 4 if k > 6 else 4 for k in range(29)]
    ways = _ways(case, module, x, state, lengths=lengths)
    compare(module, [x, *state], ways, f"{name}, {hidden_size} units")


@pytest.mark.parametrize("name", [n for n in CELLS if _plan(n).products])
def test_products_by_pieces(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's matrices are taken piece by piece where they are large, for a thousand sums at a time."""
    monkeypatch.setattr("elman.engine.kernel.PIECE", 2000)
    for batch, steps in ((21, 5), (650, 2)) if name in ("lstm", "gru_reset_before", "clockwork") else ((21, 5),):
        case = Case(CELLS[name], dtype=torch.float64, input_size=6, hidden_size=48)
        module = case.module()
        x, extras, state = (
            case.input(steps, batch).requires_grad_(),
            case.extras(steps, batch),
            case.state(module, batch),
        )
        lengths = [1 + (3 * k) % steps for k in range(batch)]
        ways = _ways(case, module, x, state, lengths=lengths, extras=extras)
        compare(module, [x, *state], ways, f"{name}, {batch} rows")


@pytest.mark.skipif(build.instruction_set() != "amx", reason="no matrix tiles")
@pytest.mark.parametrize("name", [n for n in CELLS if _plan(n).products])
def test_products_by_matrix_tiles(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one row to several groups of rows, in one tile or two; widths that fill no tile; the input, or not."""
    monkeypatch.setattr("elman.engine.sharing.multiplied_by_tiles", lambda *_: True)
    monkeypatch.setattr("elman.engine.form.WITHIN_ROWS", 20)
    # none that was written with other limits
    monkeypatch.setattr("elman.engine.forward._kept", forward.Forward)
    monkeypatch.setattr("elman.engine.backward._kept", lambda form: backward.Backward(form, None))
    for batch, steps, units in ((70, 3, 56), (17, 5, 72), (3, 4, 24)):
        case = Case(CELLS[name], dtype=torch.float32, input_size=21, hidden_size=units)
        module = case.module()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5)
        x, extras, state = (
            case.input(steps, batch).requires_grad_(),
            case.extras(steps, batch),
            case.state(module, batch),
        )
        lengths = [1 + (3 * k) % steps for k in range(batch)]
        reset = torch.rand(steps, batch) < 0.1
        ways = _ways(case, module, x, state, lengths=lengths, reset=reset, extras=extras)
        compare(module, [x, *state], ways, f"{name}, {batch} rows")


@pytest.mark.parametrize("name", ["brc", "gilr", "lru", "min_lstm", "rg_lru", "sru", "unicornn"])
def test_vectors_side_by_side(name: str, threads: int) -> None:
    """Rows long enough that several vectors are computed together, then single ones, then a part of one."""
    case = Case(CELLS[name], dtype=torch.float32, input_size=3, hidden_size=150)
    module = case.module()
    x, state = case.input(3, 19).requires_grad_(), case.state(module, 19)
    compare(module, [x, *state], _ways(case, module, x, state), name)


class TwiceTheSame(Cell):
    """One matrix used at two places of a step, a value that branches on a comparison, and an unused state."""

    gates = ("a", "b")
    state = ("h", "echo", "t")
    vectors = ("p",)

    def step(self, x, u, s, p):
        from elman.cells.math import absolute, maximum, relu, softplus, sqrt, tanh, where

        first = tanh(x.a + u.a(s.h))
        second = where(first > 0, u.a(first) * p.p, relu(u.b(first)))
        h = maximum(tanh(second), s.h * 0.5) + 0.01 * sqrt(absolute(x.b) + 1.0) - softplus(first) / (s.t + 2)
        return self.State(h=h, echo=first, t=s.t + 1)


def test_who_shares_out_units() -> None:
    """One row always where matrices are worth it; the fewer rows, the more numbers change hands."""
    for units in (64, 100, 256, 1024):
        numbers = 4 * units * units
        for by_tiles in (False, True):
            forwards, backwards = (split_rows(4 * numbers, numbers, width, 2, by_tiles) for width in (units, 4 * units))
            assert (forwards > 0) == (backwards > 0) == (4 * numbers >= SPLIT_FROM)
            assert backwards <= forwards <= 48
    assert split_rows(3 << 20, 3 << 18, 512, 2, True) > split_rows(3 << 20, 3 << 18, 512, 2, False)


def test_which_loops_go_by_matrix_tiles() -> None:
    """Those whose tiles are two thirds full, whoever shares out what; matrices near where a tile is alone."""
    near, small, far = 1 << 18, 1 << 16, 1 << 20  # numbers of the matrices
    by_rows = {rows for rows in range(1, 65) if multiplied_by_tiles(rows, 0, 2, near)}
    assert by_rows == {*range(21, 33), *range(43, 65)}
    assert by_rows == {rows for rows in range(1, 65) if multiplied_by_tiles(rows, 0, 2, far)}
    by_units = {n: {rows for rows in range(1, 49) if multiplied_by_tiles(rows, 48, 2, n)} for n in (near, small, far)}
    assert by_units[small] == by_units[far] == {*range(22, 33), *range(32, 49)}
    assert by_units[near] == by_units[far] | set(range(11, 17))
    for rows in (1, 16, 20, 40, 64):
        for n in (near, small, far):
            shared, by_tiles = sharing(4 * n, n, 256, rows, 2, True)
            assert shared == split_rows(4 * n, n, 256, 2, by_tiles)
            assert sharing(4 * n, n, 256, rows, 2, False) == (split_rows(4 * n, n, 256, 2, False), False)
    assert sharing(4 * near, near, 256, 64, 2, True)[1]


def test_how_many_threads_run_a_loop(set_threads: Callable[[int], None]) -> None:
    """All of them, or, where they share out units, as many as the matrices are worth."""
    assert [loop_threads(1 << 20, rows, 4, 16) for rows in (5, 40)] == [16, 16]
    assert [loop_threads(kilobytes << 10, 1, 1, 16) for kilobytes in (128, 256, 1024, 8192)] == [3, 5, 10, 16]
    assert [loop_threads(128 << 10, rows, 8, 16) for rows in (1, 4, 8)] == [3, 7, 10]
    assert loop_threads(1 << 20, 1, 1, 2) == 2
    set_threads(4)  # of which three are wanted
    case = Case(CELLS["lstm"], dtype=torch.float32, input_size=5, hidden_size=96)
    module = case.module()
    x, state = case.input(20, 1).requires_grad_(), case.state(module, 1)
    compare(module, [x, *state], _ways(case, module, x, state), "three threads of four")


def test_a_cell_of_ones_own(threads: int) -> None:
    case = Case(TwiceTheSame(), hidden_size=24)
    module = case.module()
    x, state = case.input(5, 20).requires_grad_(), case.state(module, 20)
    compare(module, [x, *state], _ways(case, module, x, state, lengths=[5, 2] * 10), "two uses of one matrix")


def test_the_same_numbers_every_time(threads: int) -> None:
    module, x = Recurrent("gru", 8, 48, 2), torch.randn(9, 33, 8)
    with use_engine("cpu"):
        runs = [torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters())) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_backward_twice_over_one_graph() -> None:
    module, x = Recurrent("lstm", 4, 16), torch.randn(5, 3, 4, requires_grad=True)
    with use_engine("cpu"):
        output, _ = module(x)
    (first,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", [name for name in CELLS if not _plan(name).products])
def test_gradients_over_what_was_saved(name: str) -> None:
    """Where no other backward pass follows, and only there and in memory of one's own."""
    layer, x = Recurrent(name, 5, 24), torch.randn(40, 16, 5, requires_grad=True)
    parameters = [x, *layer.parameters()]
    assert _plan(name).over

    def saved(loss: Tensor) -> Tensor:
        node, found = loss.grad_fn, []
        while node is not None:
            found += [v for v in getattr(node, "saved_tensors", ()) if v.shape[:1] == (40 * 16,)]
            node = node.next_functions[0][0] if node.next_functions else None
        return found[-1]

    with use_engine("cpu"):
        for _ in range(3):  # the general way, and the shorter one
            loss = layer(x)[0].square().sum()
            memory = saved(loss)
            before = memory.clone()
            kept = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            assert torch.equal(memory, before)
            again = torch.autograd.grad(loss, parameters, allow_unused=True)
            assert not torch.equal(memory, before)
            with torch.autograd.graph.saved_tensors_hooks(lambda v: v.clone(), lambda v: v):
                loss = layer(x)[0].square().sum()
            memory = saved(loss)
            before = memory.clone()
            copied = torch.autograd.grad(loss, parameters, allow_unused=True)
            assert torch.equal(memory, before)
            for a, b, c in zip(kept, again, copied, strict=True):
                assert a is b is c is None or (torch.equal(a, b) and torch.equal(a, c))


def test_what_was_saved_is_gone_after_an_interrupted_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Recurrent("sru", 5, 24), torch.randn(40, 16, 5, requires_grad=True)
    with use_engine("cpu"):
        y = layer(x)[0]  # of which no other node has saved anything
        run = cpu._backward

        def interrupted(*arguments: Any) -> Any:
            run(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(cpu, "_backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            y.backward(torch.ones_like(y))
        monkeypatch.setattr(cpu, "_backward", run)
        with pytest.raises(RuntimeError, match="saved is gone"):
            y.backward(torch.ones_like(y))


def test_second_derivatives_go_through_the_reference() -> None:
    module = Recurrent("gru", 2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        with use_engine("cpu"):
            return module(x)[0]

    assert torch.autograd.gradgradcheck(run, (x,))


def test_changing_the_output_in_place_is_noticed() -> None:
    module, x = Recurrent("elman", 4, 16), torch.randn(5, 3, 4, requires_grad=True)
    with use_engine("cpu"):
        output, _ = module(x)
    with pytest.raises(RuntimeError, match=r"modified in-?place|modified by an in-?place"):
        output.mul_(2).sum().backward()


def test_nan_stays_in_its_row() -> None:
    x = torch.randn(4, 20, 3)
    x[1, 7] = float("nan")
    with use_engine("cpu"), torch.no_grad():
        for name in ("elman", "lstm", "gru"):
            output, _ = Recurrent(name, 3, 20)(x)
            assert output[1:, 7].isnan().all()
            assert output[:1, 7].isfinite().all()
            assert output[:, [r for r in range(20) if r != 7]].isfinite().all()


def test_functions_at_their_limits() -> None:
    """Activations far out, and near zero, where a careless tanh loses its digits."""

    class Identity(Cell):
        input_gates = ("a",)
        recurrent_gates = ()
        state = ("h", "s", "e")

        def step(self, x, u, s, p):
            from elman.cells.math import exp, sigmoid, tanh

            return self.State(h=tanh(x.a), s=sigmoid(x.a), e=exp(x.a))

    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([0.0, 1e-30, -1e-6, 1e-3, 0.3, -1.0, 5.0, -20.0, 80.0, -80.0, 1e4, -1e4], dtype=dtype)
        values = torch.cat([values, torch.linspace(-30, 30, 500, dtype=dtype)])
        module = Recurrent(Identity, 1, 1, bias=False, dtype=dtype)
        with torch.no_grad(), use_engine("cpu"):
            module.weight_ih_l0.fill_(1)
            got, _ = module.unroll(values[:, None, None])
        for name, exact in (("h", torch.tanh), ("s", torch.sigmoid), ("e", torch.exp)):
            expected = exact(values.double()).to(dtype)
            error = (getattr(got, name).flatten() - expected).abs() / expected.abs().clamp(min=1e-30)
            error = torch.where(expected.isinf(), 0.0, error)
            assert error.max() < 8 * torch.finfo(dtype).eps, (name, dtype, values[error.argmax()])


class Branching(Cell):
    gates = ("h",)

    def step(self, x, u, s, p):
        return self.State(h=x.h if (x.h > 0).all() else u.h(s.h))


class Unknown(Cell):
    gates = ("h",)

    def step(self, x, u, s, p):
        return self.State(h=torch.special.erf(x.h + u.h(s.h)))


@pytest.mark.parametrize(("cell", "reason"), [(Branching, "'all'"), (Unknown, "special_erf")])
def test_what_cannot_compile_runs_on_the_reference_and_says_why(cell: type[Cell], reason: str) -> None:
    module = Recurrent(cell, 3, 4)
    explanation = elman.explain(module)
    assert explanation.engines == ("reference",)
    assert reason in explanation.refusals[0]["cpu"]
    with use_engine("cpu"), pytest.raises(RuntimeError, match="cannot be compiled"):
        module(torch.zeros(2, 1, 3))


def test_torch_functions_in_a_step_compile_too() -> None:
    class Plain(Cell):
        gates = ("h",)

        def step(self, x, u, s, p):
            return self.State(h=torch.sigmoid(x.h + u.h(s.h)) * torch.tanh(s.h))

    case = Case(Plain())
    module = case.module()
    x, state = case.input(4, 3).requires_grad_(), case.state(module, 3)
    compare(module, [x, *state], _ways(case, module, x, state), "torch functions")


@pytest.mark.parametrize("name", CELLS)
def test_the_source_does_not_depend_on_sizes(name: str) -> None:
    below = dict.fromkeys(CELLS[name].below, 24)
    small = Plan(CELLS[name], layout(CELLS[name], 5, 24), below)
    large = Plan(CELLS[name], layout(CELLS[name], 7, 48), dict.fromkeys(below, 48))
    assert small.training.source == large.training.source
    assert small.gradients.source == large.gradients.source


@pytest.mark.parametrize("name", CELLS)
def test_what_is_fetched_ahead(name: str) -> None:
    """All that a part reads or writes of each step once, and nothing else: no parameters, no scratch memory."""
    plan = _plan(name)
    far = {"x", "raw", "extra", "below", "saved", "d", "sequence"}
    for kernel, kinds in (
        (plan.inference, far | {"next"}),
        (plan.training, far | {"next"}),
        (plan.gradients, far | {"next", "state"}),
    ):
        names, widths = list(kernel.buffers), kernel.buffers
        written = {names[int(n)] for n in re.findall(r"write<WHOLE>\(c, (\d+),", kernel.source)}
        assert kernel.source.count("struct Part") == kernel.source.count("stream[]")
        for text in re.split(r"struct Part\d+ ", kernel.source)[1:]:
            text = text.partition("\n};")[0]
            reads, streams = (int(n) for n in re.search(r"reads = (\d+), streams = (\d+)", text).groups())  # type: ignore[union-attr]
            listed = re.search(r"stream\[\] = \{(.*?)\}", text)[1]  # type: ignore[index]
            numbers = [int(n) for n in listed.split(",")][:-1]
            assert len(numbers) == streams
            width = widths[names[int(re.search(r"domain_buffer = (\d+)", text)[1])]]  # type: ignore[index]
            found = [
                {names[int(n)] for n in re.findall(rf"{action}<WHOLE>\(c, (\d+),", text)}
                for action in ("read(?:_if)?", "write")
            ]
            for group in set(re.findall(r"\bgroup\d+\b", text)):  # gates that come by way of the products
                given = re.search(rf"{group}_given\[\] = \{{(.*?)\}}", kernel.source)
                found[0] |= {names[int(n)] for n in given[1].split(",")} if given else set()
            found[0] -= written  # what another part has just written is near
            wanted = [{n for n in each if n.partition(".")[0] in kinds and widths[n] == width > 1} for each in found]
            assert [{names[n] for n in numbers[:reads]}, {names[n] for n in numbers[reads:]}] == wanted


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["before the loop", "within the loop"])
@pytest.mark.parametrize(
    "name", ["elman", "lstm", "gru", "gru_reset_before", "peephole_lstm", "nbrc", "mut3", "sru", "layer_norm_lstm"]
)
def test_products_with_the_input(name: str, limit: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of taking them, whichever the sizes would choose; sizes that fill no vector, lengths and resets."""
    monkeypatch.setattr("elman.engine.form.WITHIN_BYTES", limit)
    monkeypatch.setattr("elman.engine.form.WITHIN_ROWS", 1)
    monkeypatch.setattr("elman.engine.forward._kept", forward.Forward)  # none that was written with another limit
    for batch, inputs, hidden in ((1, 1, 3), (13, 5, 21), (40, 33, 50)):
        case = Case(CELLS[name], dtype=torch.float64, input_size=inputs, hidden_size=hidden)
        module = case.module(bidirectional=True, bias=batch != 13)
        x, state = case.input(6, batch).requires_grad_(), case.state(module, batch)
        lengths = [1 + (5 * k) % 6 for k in range(batch)]
        reset = torch.rand(6, batch) < 0.2
        compare(
            module, [x, *state], _ways(case, module, x, state, lengths=lengths, reset=reset), f"{name}, {batch} rows"
        )
        compare(module, [x, *state], _ways(case, module, x, state), f"{name}, {batch} equal rows")


@pytest.mark.parametrize("lengths", [None, [6, 3] * 24], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_products_with_the_input_by_matrix_tiles(
    name: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    """Where terms come from afar the loop leaves them to large products; by vectors never for that."""
    set_threads(2)
    monkeypatch.setattr("elman.engine.form.FAR_TERMS", 0)
    monkeypatch.setattr("elman.engine.form.FAR_DEPTH", 0)
    monkeypatch.setattr("elman.engine.forward._kept", forward.Forward)
    found: list[tuple[bool, bool]] = []

    def within(form: Form) -> bool:
        found.append((multiplies_within(form), tools(form.dtype).by_terms))
        return found[-1][0]

    monkeypatch.setattr("elman.engine.written.multiplies_within", within)
    case = Case(CELLS[name], dtype=torch.float32, input_size=33, hidden_size=40)
    module = case.module()
    x, state = case.input(6, 48).requires_grad_(), case.state(module, 48)
    compare(module, [x, *state], _ways(case, module, x, state, lengths=lengths), name)
    assert found
    assert all(loop != tiles for loop, tiles in found)


@pytest.mark.parametrize("rank", [0, 3])
def test_an_option_with_matrices_of_its_own_at_many_rows(rank: int) -> None:
    """Mogrified cells have products that their layout does not name."""
    module = Recurrent("gru", 9, 10, mogrify=3, mogrify_rank=rank)
    x = torch.randn(4, 40, 9, requires_grad=True)
    ways = _ways(Case(CELLS["gru"], input_size=9, hidden_size=10), module, x, [torch.randn(1, 40, 10)])
    compare(module, [x], ways, f"rank {rank}")


@pytest.mark.parametrize(
    ("name", "added", "apart"),
    [
        ("lstm", ("x.i", "x.f", "x.g", "x.o"), ()),
        ("gru_reset_before", ("x.r", "x.z", "x.n"), ()),
        ("gru", (), ("x.r", "x.z", "x.n")),  # its product for n passes a gate first, so the three stay one group
        ("slstm", (), ("x.i", "x.f", "x.g", "x.o")),  # block-diagonal products
    ],
)
def test_input_gates_are_summed_with_products(name: str, added: tuple[str, ...], apart: tuple[str, ...]) -> None:
    groups = Plan(CELLS[name], layout(CELLS[name], 8, 16), {}).training.groups
    assert tuple(gate for group in groups for gate in group.added) == added
    assert {gate for group in groups if group.inputs for gate in group.products} == set(apart)


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
def test_derivatives_of_derivatives_through_a_passed_on_state(cell: str) -> None:
    """The second call's state comes from the same input and parameters by way of the first."""
    module = Recurrent(cell, 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def numbers() -> list[Tensor]:
        first, state = module(x)
        second, _ = module(x, state)
        wanted = [x, *module.parameters()]
        slopes = torch.autograd.grad((first**2 + second**3).sum(), wanted, create_graph=True)
        return [*slopes, *torch.autograd.grad(sum((v**2).sum() for v in slopes), wanted)]  # type: ignore[arg-type]

    with use_engine("reference"):
        expected = numbers()
    with use_engine("cpu"):
        for _ in range(4):  # the later calls take the shorter way
            for a, b in zip(numbers(), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
