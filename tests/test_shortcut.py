"""Calls that come again in the same form take a shorter way: with the same numbers, and only where it fits."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from elman import LSTM, Recurrent, use_engine

OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "sum of directions": {"bidirectional": True, "merge": "sum"},
    "batch first": {"batch_first": True},
}


def _made(module: Recurrent) -> int:
    return sum(route is not None for route in module._shortcuts._routes.values())


def _numbers(module: Recurrent, x: Tensor) -> list[Tensor]:
    """Outputs, final states and all gradients of two calls, the second from the state of the first."""
    output, first = module(x)
    again, final = module(x, first)
    results = [output, again, *(final if isinstance(final, tuple) else (final,))]
    loss = sum(((k + 1) * v.sin()).sum() for k, v in enumerate(results))
    return [*results, *torch.autograd.grad(loss, [x, *module.parameters()])]  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "peephole_lstm", "gru_reset_before", "sru"])
def test_the_same_to_the_bit(cell: str, options: dict[str, Any]) -> None:
    module = Recurrent(cell, 5, 7, **options)
    x = torch.randn(3, 6, 5, requires_grad=True)
    with use_engine("cpu"):
        seen = [_numbers(module, x) for _ in range(4)]
    assert _made(module) == 2  # with a state, and without
    for later in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], later, strict=True))


LENGTHS = {
    "any order": [3, 9, 1, 5, 5],
    "sorted": [9, 8, 8, 3, 1],
    "shorter than T": [2, 4, 1, 3, 4],
    "equal": [4, 4, 4, 4, 4],
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "gru_reset_before", "sru"])
def test_unequal_lengths_are_the_same_to_the_bit(cell: str, options: dict[str, Any], packed: bool) -> None:
    """The layers as one operation each, from the caller's rows to the caller's, with gradients of each result alone."""
    module = Recurrent(cell, 5, 7, **options)
    shape = (5, 9, 5) if module.batch_first else (9, 5, 5)
    x = torch.randn(shape, requires_grad=True)
    entries = len(module.layers[0][1].states)
    places = len(module.layers) * module.num_directions
    start = tuple(torch.randn(places, 5, 7, requires_grad=True) for _ in range(entries))
    alone = start if entries > 1 else start[0]

    def called(state: Any, lengths: list[int]) -> tuple[Tensor, Any]:
        if not packed:
            return module(x, state, lengths=lengths)  # type: ignore[no-any-return]
        given = pack_padded_sequence(x, torch.tensor(lengths), module.batch_first, enforce_sorted=False)
        output, final = module(given, state)
        assert isinstance(output, PackedSequence)
        assert output.sorted_indices is given.sorted_indices
        return output.data, final

    def numbers(state: Any, lengths: list[int]) -> list[Tensor]:
        output, final = called(state, lengths)
        results = [output, *(final if isinstance(final, tuple) else (final,))]
        wanted = [x, *module.parameters(), *(start if state is not None else ())]
        found = list(results)
        for losses in ([v.sin().sum() for v in results], [results[0].cos().sum()], [results[-1].exp().sum()]):
            gradients = torch.autograd.grad(sum(losses), wanted, retain_graph=True, allow_unused=True)
            found += [v for v in gradients if v is not None]
        with torch.no_grad():
            return [*found, called(state, lengths)[0]]

    with use_engine("cpu"):
        for state in (None, alone):
            expected = {}
            for name, lengths in LENGTHS.items():
                expected[name] = numbers(state, lengths)
                module._shortcuts._routes.clear()
            for _ in range(3):
                for name, lengths in LENGTHS.items():
                    found = numbers(state, lengths)
                    assert all(torch.equal(a, b) for a, b in zip(found, expected[name], strict=True)), name
            assert _made(module) == (0 if module.options.merge == "sum" else 2)  # with gradients, and without
            module._shortcuts._routes.clear()


def test_unequal_lengths_twice_differentiable() -> None:
    module = Recurrent("lstm", 3, 4, 2, bidirectional=True).double()
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    with use_engine("cpu"):
        for _ in range(3):
            module(x, lengths=[2, 5, 3])
        assert _made(module) == 1
        for which in (lambda v: module(v, lengths=[2, 5, 3])[0], lambda v: module(v, lengths=[4, 1, 3])[1].c):
            assert torch.autograd.gradcheck(which, (x,))
            assert torch.autograd.gradgradcheck(which, (x,))
        for _ in range(3):
            module(pack_padded_sequence(x, torch.tensor([5, 3, 2])))
        assert _made(module) == 2
        again = lambda v: module(pack_padded_sequence(v, torch.tensor([5, 4, 1])))[0].data  # noqa: E731
        assert torch.autograd.gradcheck(again, (x,))
        assert torch.autograd.gradgradcheck(again, (x,))


def test_packed_sequences_of_other_rows() -> None:
    module = Recurrent("lstm", 5, 7, bidirectional=True)
    for lengths in ([4, 2, 1], [4, 2, 1], [4, 2, 1], [6, 5, 3], [3, 1], [5, 4, 4, 1]):
        given = pack_padded_sequence(torch.randn(6, len(lengths), 5), torch.tensor(lengths))
        with use_engine("reference"):
            expected, state = module(given)
        found, final = module(given)
        for a, b in zip((expected.data, *state), (found.data, *final), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert _made(module) == 1


def test_packed_sequences_with_lengths_are_refused_on_the_shorter_way() -> None:
    module = Recurrent("gru", 5, 7)
    given = pack_padded_sequence(torch.randn(4, 3, 5), torch.tensor([4, 2, 1]))
    for _ in range(3):
        module(given)
    assert _made(module) == 1
    with pytest.raises(ValueError, match="lengths must be None with a PackedSequence"):
        module(given, lengths=[4, 2, 1])
    with pytest.raises(ValueError, match="input_size = 5"):
        module(given._replace(data=torch.randn(7, 4)))


def test_wrong_lengths_on_the_shorter_way() -> None:
    module, x = Recurrent("gru", 5, 7), torch.randn(4, 3, 5)
    for _ in range(3):
        module(x, lengths=[1, 4, 2])
    assert _made(module) == 1
    for lengths, message in (([1, 2], r"\(3,\)"), ([0, 1, 2], "from 1 to T = 4"), ([1.0, 2.0, 3.0], "integers")):
        with pytest.raises(ValueError, match=message):
            module(x, lengths=lengths)


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
def test_saved_tensors_may_be_copied_by_hooks(cell: str) -> None:
    """As `torch.autograd.graph.save_on_cpu` does, in memory of its own."""
    module = Recurrent(cell, 5, 7, bidirectional=True)
    x = torch.randn(3, 6, 5, requires_grad=True)
    with use_engine("cpu"):
        expected = _numbers(module, x)
        for _ in range(3):  # the general way each time; see `saves_elsewhere`
            with torch.autograd.graph.saved_tensors_hooks(lambda v: v.detach().numpy().copy(), torch.from_numpy):
                found = _numbers(module, x)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert _made(module) == 0
        ragged = [module(x, lengths=[2, 3, 1, 3, 2, 1])[0] for _ in range(3)]
        expected = torch.autograd.grad(ragged[0].sin().sum(), [x, *module.parameters()])  # type: ignore[arg-type]
        with torch.autograd.graph.saved_tensors_hooks(lambda v: v.detach().numpy().copy(), torch.from_numpy):
            last = module(x, lengths=[2, 3, 1, 3, 2, 1])[0]
        found = torch.autograd.grad(last.sin().sum(), [x, *module.parameters()])  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert _made(module) == 1


MASKED: dict[str, dict[str, Any]] = {
    "recurrent": {"recurrent_dropout": 0.4},
    "afresh": {"recurrent_dropout": 0.4, "recurrent_dropout_per_step": True, "bidirectional": True},
    "zoneout": {"zoneout": 0.3, "num_layers": 2},
    "locked": {"locked_dropout": 0.4, "num_layers": 2, "bidirectional": True},
    "weights": {"weight_dropout": 0.4, "num_layers": 2},
    "between layers": {"dropout": 0.4, "num_layers": 2},
    "all": {
        "recurrent_dropout": 0.3,
        "zoneout": 0.2,
        "locked_dropout": 0.3,
        "weight_dropout": 0.2,
        "batch_first": True,
    },
    "residual": {"residual": True, "num_layers": 3, "dropout": 0.3},
    "dense": {"dense": True, "num_layers": 3, "locked_dropout": 0.2},
}


@pytest.mark.parametrize("options", MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_masks_are_the_same_to_the_bit(cell: str, options: dict[str, Any]) -> None:
    module = Recurrent(cell, 7, 7, **options)
    x = torch.randn(3, 6, 7, requires_grad=True)
    seen = []
    with use_engine("cpu"):
        for _ in range(4):
            torch.manual_seed(5)
            seen.append(_numbers(module, x))
        torch.manual_seed(6)
        other = _numbers(module, x)
    assert _made(module) == 2
    for later in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], later, strict=True))
    assert not torch.equal(seen[0][0], other[0])


def test_as_torch_with_dropout() -> None:
    """`elman.LSTM` draws as torch.nn does, on the shorter way too."""
    ours, theirs = LSTM(5, 7, 2, dropout=0.5), torch.nn.LSTM(5, 7, 2, dropout=0.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5)
    for _ in range(4):
        torch.manual_seed(3)
        mine = ours(x)[0]
        torch.manual_seed(3)
        torch.testing.assert_close(mine, theirs(x)[0])


def test_a_copy_and_a_pickle_start_without() -> None:
    module = Recurrent("gru", 5, 7)
    for _ in range(3):
        module(torch.randn(4, 2, 5))
    assert _made(module) == 1
    assert _made(copy.deepcopy(module)) == 0
    assert _made(pickle.loads(pickle.dumps(module))) == 0


def _frozen(module: Recurrent) -> None:
    module.weight_hh_l0.requires_grad_(False)


def _double(module: Recurrent) -> None:
    module.double()


def _transposed(module: Recurrent) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()


def _parametrized(module: Recurrent) -> None:
    torch.nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    module.eval()


@pytest.mark.parametrize("change", [_frozen, _double, _transposed, _parametrized])
def test_changed_parameters(change: Callable[[Recurrent], None]) -> None:
    module = Recurrent("lstm", 5, 7)
    x = torch.randn(4, 2, 5, requires_grad=True)
    for _ in range(3):
        module(x)
    change(module)
    x = x.detach().to(next(module.parameters()).dtype).requires_grad_()
    wanted = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(module(x)[0].sum(), [x, *wanted])
    with use_engine("reference"):
        expected = torch.autograd.grad(module(x)[0].sum(), [x, *wanted])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_that_begin_to_be_trained() -> None:
    module = Recurrent("lstm", 5, 7).requires_grad_(False)
    x = torch.randn(4, 2, 5)
    for _ in range(3):
        assert not module(x)[0].requires_grad
    assert _made(module) == 1
    module.requires_grad_(True)
    module(x)[0].sum().backward()
    assert module.weight_hh_l0.grad is not None


def test_each_call_is_looked_at() -> None:
    """What would be refused before is refused afterwards, and options that draw masks go on drawing."""
    module = Recurrent("lstm", 5, 7)
    x, state = torch.randn(4, 2, 5), (torch.zeros(1, 2, 7), torch.zeros(1, 2, 7))
    for _ in range(3):
        module(x, state)
    with pytest.raises(ValueError, match=r"state entry 'c' must be \(1, 2, 7\)"):
        module(x, (state[0], torch.zeros(1, 2, 6)))
    with pytest.raises(ValueError, match="state must be a tuple"):
        module(x, state[:1])
    with pytest.raises(ValueError, match=r"state entry 'h' must be torch\.float32"):
        module(x, (state[0].double(), state[1]))
    random = Recurrent("lstm", 5, 7, zoneout=0.5)
    assert len({random(x)[0].sum().item() for _ in range(4)}) == 4
    assert len({random.eval()(x)[0].sum().item() for _ in range(4)}) == 1
    assert len({random.train()(x)[0].sum().item() for _ in range(4)}) == 4


def test_engines_are_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from elman.engine import reference

    module = Recurrent("lstm", 5, 7)
    x = torch.randn(4, 2, 5)
    for _ in range(3):
        module(x)
    calls: list[Any] = []
    run = reference.run

    def recorded(call: Any) -> Any:
        calls.append(call)
        return run(call)

    monkeypatch.setattr(reference, "run", recorded)
    with use_engine("reference"):
        module(x)
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1)], ids=str)
def test_odd_strides(shape: tuple[int, int]) -> None:
    """Gradients and inputs whose strides say little, since there is one step or one row."""
    module = Recurrent("gru", 5, 7)
    whole = torch.randn(*shape, 10, requires_grad=True)

    def numbers(engine: str, x: Tensor, weight: Tensor) -> list[Tensor]:
        with use_engine(engine):
            output, final = module(x)
            slopes = torch.autograd.grad(
                (output, final), [whole, *module.parameters()], (weight, torch.ones_like(final))
            )
            return [output, final, *slopes]

    turned = whole[:, :, :5].transpose(0, 1).contiguous().transpose(0, 1)
    weights = torch.randn(*shape, 7), torch.randn(*shape[::-1], 7).transpose(0, 1), torch.ones(()).expand(*shape, 7)
    for x in (whole[:, :, :5], whole[:, :, ::2], turned):
        for weight in weights:
            expected = numbers("reference", x, weight)
            for _ in range(3):
                for a, b in zip(numbers("cpu", x, weight), expected, strict=True):
                    torch.testing.assert_close(a, b)
