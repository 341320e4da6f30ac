"""Sequences one behind the other in the same packed rows, by tiles and without them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import elman
from elman import cells
from elman.engine import cpu
from elman.engine.packing import Packing
from elman.nn import chains
from elman.testing import Case, compare

pytestmark = pytest.mark.usefixtures("poison")

CPU = torch.device("cpu")
STEPS, ROWS = 30, 40


@pytest.fixture
def chained(set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains also on processors without matrix tiles, and of small layers, where they gain nothing."""
    set_threads(2)
    monkeypatch.setattr(chains, "FEWEST", 0)
    monkeypatch.setattr(chains, "_by_tiles", lambda dtype: dtype == torch.float32)


def _lengths(seed: int) -> list[int]:
    torch.manual_seed(seed)
    found: list[int] = torch.randint(1, STEPS // 2, (ROWS,)).tolist()
    found[seed % ROWS] = STEPS - 1
    return found


def _numbers(module: elman.Recurrent, x: Tensor, lengths: list[int], finals: bool, engine: str) -> list[Tensor]:
    """The output, final states and all gradients of a loss in which all outputs count, or final states too."""
    with elman.use_engine(engine):
        output, state = module(x, lengths=lengths)
        entries = [state] if isinstance(state, Tensor) else list(state)
        loss = (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum()
        for k, entry in enumerate(entries if finals else ()):
            loss = loss + (entry * torch.linspace(1, 2 + k, entry.numel()).view(entry.shape)).sum()
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    return [output, *entries, *gradients]


def _close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 2e-4 * (1 + b.abs().max())  # layer normalisation has 7e-5 of float64 itself


@pytest.mark.parametrize("seed", [0, 3, 7])
def test_packed_rows_have_every_entry_once(seed: int) -> None:
    lengths = _lengths(seed)
    packing = Packing.chained(lengths, 16, CPU)
    assert packing.batch == 16
    assert packing.count == ROWS
    assert packing.total == sum(lengths)
    assert packing.longest == max(lengths)
    x = torch.arange(1.0, STEPS * ROWS + 1).view(STEPS, ROWS, 1)
    there = torch.arange(STEPS)[:, None, None] < torch.tensor(lengths)[:, None]
    packed = packing.pack(x)
    assert torch.equal(packed.flatten().sort().values, x[there].sort().values)
    assert torch.equal(packing.unpack(packed, STEPS), x * there)
    last = torch.tensor(lengths) - 1
    assert torch.equal(packing.ends(packed, reverse=False), x[last, torch.arange(ROWS)])
    assert torch.equal(packing.ends(packed, reverse=True), x[0])
    forward, backward = packing.cuts
    first_steps = set(x[0].flatten().tolist())
    assert set(packed[forward.bool()].flatten().tolist()) < first_steps
    assert int(forward.sum()) == int(backward.sum()) == ROWS - 16
    assert set(packed[backward.bool()].flatten().tolist()) < set(x[last, torch.arange(ROWS)].flatten().tolist())


@pytest.mark.usefixtures("chained")
@pytest.mark.parametrize("finals", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": True}, {"merge": "sum"}], ids=str)
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "peephole_lstm", "layer_norm_lstm"])
def test_equal_to_the_reference_and_to_the_bit_the_same_again(cell: str, options: dict[str, Any], finals: bool) -> None:
    """Calls that come again take a shorter way, for lengths of all kinds."""
    torch.manual_seed(0)
    module = elman.Recurrent(cell, 7, 21, bidirectional=True, **options)
    shape = (ROWS, STEPS, 7) if options.get("batch_first") else (STEPS, ROWS, 7)
    x = torch.randn(shape, requires_grad=True)
    first = {}
    for seed in (0, 3, 7):
        lengths = _lengths(seed)
        assert chains.rows_of_chains(module, x, lengths) == 16
        module._shortcuts._routes.clear()
        first[seed] = _numbers(module, x, lengths, finals, "cpu")
        _close(first[seed], _numbers(module, x, lengths, finals, "reference"))
    for _ in range(3):
        for seed, expected in first.items():
            found = _numbers(module, x, _lengths(seed), finals, "cpu")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    short = [type(route).__name__ for route in module._shortcuts._routes.values()]
    assert ("_RaggedRoute" in short) == ("merge" not in options)


@pytest.mark.usefixtures("chained")
def test_without_gradients() -> None:
    module = elman.LSTM(5, 12, bidirectional=True)
    x, lengths = torch.randn(STEPS, ROWS, 5), _lengths(1)
    expected = _numbers(module, x.requires_grad_(), lengths, True, "reference")[:3]
    with torch.no_grad(), elman.use_engine("cpu"):
        for _ in range(3):
            output, state = module(x, lengths=lengths)
            _close([output, *state], expected)


@pytest.mark.usefixtures("chained")
def test_twice_differentiable() -> None:
    torch.manual_seed(0)
    module = elman.GRU(3, 6, bidirectional=True)
    x, lengths = torch.randn(STEPS, ROWS, 3, requires_grad=True), _lengths(2)

    def twice(engine: str) -> list[Tensor]:
        with elman.use_engine(engine):
            output, state = module(x, lengths=lengths)
            (once,) = torch.autograd.grad(output.square().sum() + state.sum(), x, create_graph=True)
            return list(torch.autograd.grad(once.square().sum(), [x, *module.parameters()]))

    expected = twice("reference")
    for _ in range(3):
        _close(twice("cpu"), expected)


@pytest.mark.usefixtures("chained")
def test_a_sequence_knows_nothing_of_the_one_before_it() -> None:
    """A number that is none stays in its own row."""
    module = elman.LSTM(5, 12, bidirectional=True)
    x, lengths = torch.randn(STEPS, ROWS, 5), _lengths(5)
    spoiled = x.clone()
    spoiled[0, 11] = float("nan")
    others = torch.arange(ROWS) != 11
    with torch.no_grad(), elman.use_engine("cpu"):
        expected, found = module(x, lengths=lengths)[0], module(spoiled, lengths=lengths)[0]
    assert torch.equal(found[:, others], expected[:, others])
    assert found[0, 11].isnan().all()


@pytest.mark.usefixtures("chained")
def test_where_rows_are_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = _lengths(0)
    x = torch.randn(STEPS, ROWS, 5)
    module = elman.GRU(5, 8, bidirectional=True)
    wanted = chains.rows_of_chains
    assert wanted(module, x, lengths) == 16
    assert wanted(module, x, torch.tensor(lengths)) == 16
    assert wanted(module, x, [STEPS] * ROWS) == 0  # nothing would be gained
    assert wanted(module, x[:, :16], lengths[:16]) == 0
    assert wanted(module, x.double(), lengths) == 0
    assert wanted(elman.GRU(5, 8), x, lengths) == 0
    assert wanted(elman.GRU(5, 800, bidirectional=True), x, lengths) == 0  # directions take turns
    for wrong in ([], [0] * ROWS, [1.5] * ROWS, "lengths", torch.zeros(2, 2)):  # which the call itself will name
        assert wanted(module, x, wrong) == 0
    monkeypatch.undo()
    monkeypatch.setattr(chains, "FEWEST", 0)
    assert cpu.build_problem(torch.float32) is None  # asked once in a process
    monkeypatch.setenv("ELMAN_ISA", "none such")
    assert wanted(module, x, lengths) == 0
    monkeypatch.delenv("ELMAN_ISA")
    with elman.use_engine("reference"):
        assert wanted(module, x, lengths) == 0
    torch.set_num_threads(1)
    assert wanted(module, x, lengths) == 0


def test_small_layers_are_left_as_they_are(set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(2)
    monkeypatch.setattr(chains, "_by_tiles", lambda dtype: True)
    rows = {
        hidden: chains.rows_of_chains(
            elman.GRU(5, hidden, bidirectional=True), torch.zeros(STEPS, ROWS, 5), _lengths(0)
        )
        for hidden in (32, 128)
    }
    assert rows == {32: 0, 128: 16}


@pytest.mark.slow
@pytest.mark.usefixtures("chained")
@pytest.mark.parametrize("name", cells.names())
def test_every_cell_equals_the_reference(name: str) -> None:
    case = Case(cells.get(name)(), dtype=torch.float32, input_size=5, hidden_size=24)
    module, x, lengths = case.module(bidirectional=True), case.input(STEPS, ROWS).requires_grad_(), _lengths(4)
    extras = case.extras(STEPS, ROWS)

    def way(engine: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with elman.use_engine(engine):
                output, final = module(x, lengths=lengths, extras=extras)
            return [output, *(final if isinstance(final, tuple) else (final,))]

        return run

    for _ in range(3):
        compare(module, [x], [way("cpu"), way("reference")], name)
