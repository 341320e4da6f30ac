"""Programs: jobs that are written down once find other tensors, other lengths and other threads' memory."""

import threading
from array import array
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import elman
from elman.engine import backward, forward, runs
from elman.engine.packing import Packing
from elman.engine.program import Program, Source
from elman.engine.runs import run_all

CPU = torch.device("cpu")


def test_a_program_finds_its_tensors_at_each_run() -> None:
    written = Program(torch.float64, Packing.dense(3, 2, CPU))
    x, y = written.given("x"), written.result("y", 4, 2)
    held = written.constant(torch.full((2,), 7.0, dtype=torch.float64))
    scratch = written.numbers(2, 2)
    written.copy(scratch, x + 2 * 8, 4)  # the second and third row
    written.copy(y, scratch, 4)
    written.fill(y + 4 * 8, 2, -0.5)
    written.copy(y + 6 * 8, held, 2)
    packing = Packing.dense(3, 2, CPU)
    for _ in range(2):
        given = torch.randn(3, 2, dtype=torch.float64)
        made = written.make(packing)
        run_all(packing, (written, {"x": given}, made))
        expected = torch.cat([given[1:], torch.tensor([[-0.5, -0.5], [7.0, 7.0]], dtype=torch.float64)])
        assert torch.equal(made["y"], expected)


def test_scratch_memory_within_a_part_serves_again() -> None:
    written = Program(torch.float32, Packing.dense(1, 1, CPU))
    with written.within():
        first = written.take(100)
    assert written.take(10) == first
    assert written.take(10) == first + 64


@pytest.mark.parametrize("reverse", [False, True])
def test_a_ragged_program_serves_any_lengths(reverse: bool) -> None:
    """What stands before each step, and at each row's end, for batches that share one program."""
    batches = [Packing.from_lengths(lengths, CPU) for lengths in ([5, 2, 4, 1], [1, 3, 7, 2], [4, 4, 4, 3])]
    ragged = batches[0].ragged
    assert all(packing.ragged is ragged for packing in batches)
    written = Program(torch.float32, ragged)
    sequence, default = written.given("sequence"), written.given("default")
    steps = slice(0, ragged.steps)
    before = written.before(steps, ragged.total, reverse, 3, sequence, written.given("reset"), default)
    rows, last = written.result("rows", ragged.total, 3), written.result("last", 4, 3)
    written.call("copy", written.library.copy, array("q", (rows, before, 4)), (0, 1))  # one number: of the first row
    if not reverse:
        written.ends(Source.SEQUENCE, 3, sequence, last)
    for packing in batches:
        given = torch.randn(4 + packing.total, 3)
        reset = torch.rand(packing.total) < 0.5
        tensors = {"sequence": given, "default": torch.tensor([9.0, 8, 7]), "reset": reset.to(torch.uint8)}
        tensors |= {"sizes": packing.sizes, "offsets": packing.offsets, "sequences": packing.sequences}
        made = written.make(packing)
        run_all(packing, (written, tensors, made))
        assert made["rows"].shape == (packing.total, 3)
        index = (packing.next_steps if reverse else packing.previous_steps)[0]
        assert made["rows"][0, 0] == (9.0 if reset[0] else given[index, 0])
        if not reverse:
            step = torch.tensor(packing.lengths) - 1
            assert torch.equal(made["last"], given[4 + packing.offsets[step] + torch.arange(4)])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "peephole_lstm"])
def test_lengths_share_programs(cell: str, bidirectional: bool) -> None:
    """Batches of other lengths run without another program, and are the reference's."""
    torch.manual_seed(0)
    layer = elman.Recurrent(cell, 3, 5, bidirectional=bidirectional, dtype=torch.float64)
    misses = []
    for lengths in ([5, 2, 4, 1], [1, 3, 7, 2], [9, 9, 1, 8], [1, 2, 1, 1], [2, 8, 8, 7]):
        x = torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True)
        found: list[list[Tensor]] = []
        for engine in ("cpu", "reference"):
            with elman.use_engine(engine):
                output, state = layer(x, lengths=lengths)
                ends = state if isinstance(state, Tensor) else torch.cat(tuple(state))
                total = output.square().sum() + ends.sin().sum()
                found.append([output, ends, *torch.autograd.grad(total, [x, *layer.parameters()])])
        for mine, expected in zip(*found, strict=True):
            assert torch.allclose(mine, expected, rtol=1e-12, atol=1e-12)
        misses.append((forward._kept.cache_info().misses, backward._kept.cache_info().misses))
    # The first two calls go the general way; the shorter one, on which outputs are padded, has a program of its own.
    assert len(set(misses[:2])) == len(set(misses[2:])) == 1


def test_threads_share_a_program() -> None:
    """Two threads run one program at once, each on memory of its own."""
    torch.manual_seed(0)
    layer = elman.LSTM(8, 16)
    inputs = [torch.randn(30, 4, 8) for _ in range(2)]
    wrong = []
    with torch.no_grad(), elman.use_engine("cpu"):
        expected = [layer(x)[0] for x in inputs]

    def run(number: int) -> None:
        torch.set_num_threads(1)
        with torch.no_grad(), elman.use_engine("cpu"):
            for _ in range(200):
                if not torch.allclose(layer(inputs[number])[0], expected[number], atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def two_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.float16], ids=str)
@pytest.mark.parametrize("rest", [(), (1,), (5,), (2, 3), (9000,)], ids=str)  # of the widest, threads share the rows
def test_rows_are_moved_as_by_index(dtype: torch.dtype, rest: tuple[int, ...]) -> None:
    """Packing by compiled code equals packing by index, at strides of all kinds, and so does the way back."""
    torch.manual_seed(0)
    for lengths in ([4, 1, 6], [6, 6, 2], [3, 3, 1], [2, 5, 5]):
        packing = Packing.from_lengths(lengths, CPU)
        stored = torch.randint(0, 2, (3, 7, *rest)).to(dtype)
        for padded in (stored.transpose(0, 1), stored.transpose(0, 1).contiguous()):
            packed = packing.pack(padded)
            flat = padded.flatten(0, 1)
            assert torch.equal(packed, flat[packing._padded_places])
            expected = torch.zeros_like(flat)
            expected[packing._padded_places] = packed
            assert torch.equal(packing.unpack(packed, 7), expected.view(padded.shape))


@pytest.mark.usefixtures("two_threads")
def test_rows_of_very_long_sequences_are_moved() -> None:
    """No memory on a thread's stack grows with the steps."""
    steps = 2_000_000
    packing = Packing.from_lengths([1, steps], CPU)
    x = torch.randn(steps, 2, 1)
    packed = packing.pack(x)
    assert torch.equal(packed[:3, 0], torch.stack([x[0, 1, 0], x[0, 0, 0], x[1, 1, 0]]))
    assert torch.equal(packed[2:, 0], x[1:, 1, 0])
    there = torch.ones(steps, 2, 1)
    there[1:, 0] = 0
    assert torch.equal(packing.unpack(packed, steps), x * there)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("lengths", [[4, 1, 6], [6, 6, 2], [5, 5, 5], [7, 7, 7]], ids=str)
def test_sequences_are_unpacked_side_by_side(
    lengths: list[int], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As their concatenation is, with its gradients, also where these are those of one number, and theirs."""
    if not compiled:
        monkeypatch.setattr("elman.engine.rows._rows_function", lambda _: None)
    torch.manual_seed(0)
    packing = Packing.from_lengths(lengths, CPU)
    parts = [torch.randn(packing.total, width, dtype=torch.float64, requires_grad=True) for width in (2, 5)]
    found = packing.unpack(parts[0], 7, parts[1])
    expected = packing.unpack(torch.cat(parts, -1), 7)
    assert torch.equal(found, expected)
    for of_output in (torch.sum, torch.norm):
        for a, b in zip(*(torch.autograd.grad(of_output(v), parts) for v in (found, expected)), strict=True):
            assert torch.equal(a, b)
        found, expected = packing.unpack(parts[0], 7, parts[1]), packing.unpack(torch.cat(parts, -1), 7)
    assert torch.autograd.gradgradcheck(lambda a, b: packing.unpack(a, 7, b).sin(), parts)


def test_time_is_added_up_by_kind_of_job() -> None:
    layer, x = elman.GRU(4, 8), torch.randn(3, 2, 4)
    with torch.no_grad(), elman.use_engine("cpu"):
        runs.spent = {}
        try:
            layer(x)
            assert runs.spent.keys() >= {"kernel", "multiply", "pack"}
            assert runs.spent["kernel"] > 0
        finally:
            runs.spent = None
