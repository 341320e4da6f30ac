"""Mistakes in a cell's declarations and its step, and in arguments: one line that says what was expected."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from elman import Noise, Recurrent, cells, explain, use_engine
from elman.cells.contract import Cell, Draw, Gate, Product, StateEntry
from elman.cells.initial import Constant
from elman.cells.math import mean, tanh, where
from elman.cells.structure import BlockDiagonal, LowRank

X = torch.randn(5, 3, 4)


def cell(step: Any = None, **declared: Any) -> type[Cell]:
    def otherwise(self: Any, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(*[tanh(x.g)] * len(self.state))

    return type("Mine", (Cell,), {"gates": ("g",), **declared, "step": step or otherwise})


def stepping(what: Any) -> type[Cell]:
    return cell(lambda self, x, u, s, p: self.State(what(x, u, s, p)))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"gates": (Gate("g", "Q"),)}, "Mine: the width of 'g' must be 'H', 'I', 'R' or at least 1, got 'Q'"),
        ({"gates": ("g", Gate("z", -3))}, "the width of 'z' must be .* got -3"),
        ({"gates": (Gate("g", 2.5),)}, "the width of 'g' must be .* got 2.5"),
        ({"state": (StateEntry("h", "R"),)}, "the width of 'h' must be 'H', 'I' or at least 1, got 'R'"),
        ({"state": (StateEntry("h", dtype="int8"),)}, "the state 'h' must be \"float\" or \"int64\", got 'int8'"),
        ({"gates": "forget"}, r"Mine.input_gates must be a tuple, got 'forget'; of one name: \('forget',\)"),
        ({"state": "h"}, "Mine.state must be a tuple, got 'h'"),
        ({"state": ("class",)}, "the name of a state must be an identifier, got 'class'"),
        ({"state": ("_m",)}, "the name of a state must be an identifier, got '_m'"),
        ({"vectors": ("a.b",)}, "the name of a vector must be an identifier, got 'a.b'"),
        ({"products": (Product("a b", "H"),)}, "the name of a product must be an identifier, got 'a b'"),
        ({"products": (Product("m", "H", fixed=True),)}, r"the fixed product 'm' needs its matrix, \(6, 6\)"),
        (
            {"products": (Product("m", "H", fixed=True),), "constants": lambda s, h: {"m": np.ones(h)}},
            r"the matrix of the fixed product 'm' must be \(6, 6\), got \(6,\)",
        ),
        ({"constants": lambda s, h: {"c": [1.0] * h}}, "the constant 'c' must be a numpy array of numbers, got list"),
        ({"constants": lambda s, h: {"c": np.ones(h, bool)}}, "the constant 'c' .* got an array of bool"),
        ({"recurrent_structure": BlockDiagonal(0)}, "the number of blocks must be at least 1, got 0"),
        ({"recurrent_structure": LowRank(0)}, "the rank of a low-rank product must be at least 1, got 0"),
        ({"initial": {"bias_ih.q": Constant(1.0)}}, "Mine.initial names 'bias_ih.q'; bias_ih has the gates g"),
        ({"draws": (Draw("d", 1.5),)}, "the probability of 'd' must be at least 0 and below 1, got 1.5"),
        ({"draws": (Draw("d", 0.5),)}, "draws 'd' in evaluation too"),
        ({"vectors": ("initial_h",)}, "learn_state: initial_h_l0 is the name of a parameter of the cell's own"),
    ],
)
def test_declarations(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recurrent(cell(**declared), 4, 6, learn_state=True)


def test_a_projection_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"proj_size: GRU\(\) reads its output beyond its recurrent products"):
        Recurrent("gru", 4, 6, proj_size=3)


def test_cells_that_are_none() -> None:
    with pytest.raises(ValueError, match="Cell defines no step"):
        Recurrent(Cell, 4, 6)
    with pytest.raises(ValueError, match="Mine must be hashable"):
        Recurrent(type("Mine", (cell(),), {"__hash__": None}), 4, 6)
    with pytest.raises(ValueError, match="must be a string, got 5"):
        cells.get(5)
    with pytest.raises(ValueError, match="must be a string without a colon, got 'a:b'"):
        cells.register("a:b", cell())
    with pytest.raises(TypeError, match="explain takes a Recurrent, got LSTM"):
        explain(torch.nn.LSTM(2, 3))


def in_place(self: Any, x: Any, u: Any, s: Any, p: Any) -> Any:
    h = s.h
    h *= 0.5
    h += tanh(x.g)
    return self.State(h)


@pytest.mark.parametrize(
    ("kind", "reason", "error"),
    [
        (cell(in_place), "step changes what it is given in place", "step changes its state in place"),
        (stepping(lambda x, u, s, p: s.h.mul_(0.5)), "step uses 'mul_' of a value", "step changes its state in place"),
        (
            stepping(lambda x, u, s, p: x.q),
            "step reads 'q', which the cell does not declare",
            "given there: below, g, raw",
        ),
        (stepping(lambda x, u, s, p: p.q), "step reads 'q', which the cell does not declare", "given there: none"),
        (stepping(lambda x, u, s, p: None), "step returns h as a NoneType", "got NoneType"),
        (stepping(lambda x, u, s, p: x.g > 0), "step returns truth values as h", "got truth values"),
        (stepping(lambda x, u, s, p: (x.g > 0) * x.g), "step computes mul of a truth value", None),
        (stepping(lambda x, u, s, p: where((x.g > 0) == s.h, x.g, s.h)), "step computes eq of a truth value", None),
        (stepping(lambda x, u, s, p: where(x.g, x.g, s.h)), "where takes a comparison", "boolean"),
        (stepping(lambda x, u, s, p: x.g * float("nan")), "step mixes its values with NaN", None),
        (stepping(lambda x, u, s, p: x.g**s.h), "step raises a value to the power of another", None),
    ],
)
def test_steps(kind: type[Cell], reason: str, error: str | None) -> None:
    module = Recurrent(kind, 4, 6)
    assert reason in str(explain(module))
    if error is None:
        module(X)
    else:
        with pytest.raises((ValueError, AttributeError, RuntimeError), match=error):
            module(X)


@pytest.mark.parametrize("hidden_size", [1, 4, 7, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_state_of_width_one_made_of_wide_values(hidden_size: int, dtype: torch.dtype) -> None:
    def step(self: Any, x: Any, u: Any, s: Any, p: Any) -> Any:
        h = tanh(x.g + u.g(s.h) + 0.3 * s.z)
        return self.State(h, 0.5 * s.z + mean(h))

    module = Recurrent(cell(step, state=("h", StateEntry("z", 1))), 4, hidden_size, dtype=dtype)
    found = {}
    for engine in ("cpu", "reference"):
        with use_engine(engine):
            states, final = module.unroll(X.to(dtype))
            loss = states.z.sin().sum() + states.h.sum() + final.z.sum()
            found[engine] = torch.autograd.grad(loss, list(module.parameters()))
    for ours, expected in zip(found["cpu"], found["reference"], strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_reference_counts_in_the_networks_dtype() -> None:
    def step(self: Any, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(tanh(x.g + u.g(s.h) * (s.t * 0.3)), s.t + 1)

    module = Recurrent(cell(step, state=("h", "t")), 4, 6, dtype=torch.float64)
    found = []
    for engine in ("cpu", "reference"):
        with use_engine(engine):
            output, state = module(X.double())
            found.append(output)
            assert state.t.dtype == torch.int64
            assert state.t.unique().tolist() == [5]
    torch.testing.assert_close(*found, rtol=1e-13, atol=1e-13)


def test_a_cell_of_ones_own_may_draw() -> None:
    class Drawing(Cell):
        gates = ("g",)
        evaluation = False

        @property
        def draws(self) -> tuple[Draw, ...]:
            return () if self.evaluation else (Draw("d", 0.5),)

        def evaluated(self) -> Cell:
            return Evaluated()

        def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
            h = tanh(x.g + u.g(s.h))
            return self.State(h if self.evaluation else where(x.d, s.h, h))

    class Evaluated(Drawing):
        evaluation = True

    module = Recurrent(Drawing, 4, 6)
    outputs = []
    for engine in ("cpu", "reference"):
        with use_engine(engine):
            outputs.append(module(X, noise=Noise(3))[0])
            assert not torch.allclose(module(X)[0], module(X)[0])
            assert torch.equal(module.eval()(X)[0], module(X)[0])
            module.train()
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    "lengths", ["abc", ["a"] * 3, [1, None, 2], {}, [10**30, 1, 2], torch.ones(3, dtype=torch.int64, device="meta")]
)
def test_lengths(lengths: Any) -> None:
    with pytest.raises(ValueError, match=r"lengths must be integers, \[B\] = \(3,\)"):
        Recurrent("gru", 4, 6)(X, lengths=lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reset": [[False] * 3] * 5}, r"reset must be a bool tensor of shape \(5, 3\), got list"),
        ({"reset": torch.zeros(5, 3, dtype=torch.bool, device="meta")}, "reset is on meta, the input on cpu"),
        ({"extras": [1]}, "extras must be a mapping from names to tensors, got 1 values"),
        ({"extras": torch.ones(5, 3)}, "extras must be a mapping from names to tensors, got a tensor"),
        ({"extras": {"dt": np.ones((5, 3))}}, "extra input 'dt' must be a Tensor, got ndarray"),
        ({"extras": {"dt": torch.ones(5, 3, device="meta")}}, "extra input 'dt' is on meta, the input on cpu"),
        (
            {"noise": Noise(1, row=[0.5, 1.0, 1.0])},
            r"noise.row must be an integer, or one for each of 3 rows, got \[0.5",
        ),
    ],
)
def test_calls(arguments: dict[str, Any], message: str) -> None:
    module = Recurrent("time_aware_lstm", 4, 6, zoneout=0.1)
    given = {"extras": {"dt": torch.ones(5, 3)}, **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        module(X, **given)


def test_a_packed_sequence_with_too_few_rows() -> None:
    packed = pack_padded_sequence(X, torch.tensor([5, 3, 1]))
    module = Recurrent("gru", 4, 6)
    for _ in range(3):
        module(packed)
    with pytest.raises(ValueError, match=r"input.data must have the 9 rows of batch_sizes, got 4"):
        module(PackedSequence(packed.data[:4], packed.batch_sizes))


def test_steps_and_steppers() -> None:
    module = Recurrent("gru", 4, 6)
    with pytest.raises(TypeError, match="input must be a Tensor, got str"):
        module.step("abc")
    for state in (1, (None,), {}, ((X,),)):
        with torch.no_grad(), pytest.raises(ValueError, match="state must have the entries h, as tensors"):
            module.step(X[0], state)
    for size in ("3", 2.5, None, True):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            module.stepper(size)
    with pytest.raises(TypeError, match=r"input must be a Tensor, \[B, I\] with B = 3 and I = 4"):
        module.stepper(3)("abc")


@pytest.mark.parametrize("option", [{"forget_bias": "x"}, {"chrono": float("inf")}, {"forget_bias": float("nan")}])
def test_options(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be a finite number"):
        Recurrent("lstm", 4, 6, **option)


@pytest.mark.parametrize("given", [{"seed": "a"}, {"seed": 1.5}, {"seed": 1, "step": 0.5}])
def test_noise(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"noise\.(seed|step) must be an integer"):
        Noise(**given)
