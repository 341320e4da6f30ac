"""Every option on every cell is put to the contract; and what each option does, by other means than its own code.

A sample of cells runs in `make test`, all of them, and pairs of options, in `make test-all`.
"""

import itertools
import random
import warnings
from typing import Any

import pytest
import torch

from elman import Recurrent, cells
from elman.testing import Case, run_check, why_not

OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3},
    "locked_dropout": {"locked_dropout": (0.1, 0.3, 0.4)},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "recurrent_dropout_per_step": {"recurrent_dropout": 0.3, "recurrent_dropout_per_step": True},
    "zoneout": {"zoneout": 0.2},
    "weight_dropout": {"weight_dropout": 0.4},
    "layer_norm": {"layer_norm": True},
    "residual": {"residual": True},
    "dense": {"dense": True},
    "sum": {"merge": "sum"},
    "mean": {"merge": "mean"},
    "learn_state": {"learn_state": True},
    "mogrify": {"mogrify": 5},
    "mogrify_low_rank": {"mogrify": 2, "mogrify_rank": 2},
    "hidden_sizes": {"hidden_size": (8, 12)},
}
INSIDE = ("zoneout", "layer_norm", "mogrify", "mogrify_low_rank")  # act in evaluation too, so torch has no kernel
NEED_RECURRENT_PRODUCTS = ("recurrent_dropout", "weight_dropout")
SAMPLE = ("lstm", "gru_reset_before", "clockwork", "min_gru")
EXHAUSTIVE = ("chunks", "step", "lengths", "reset_bidirectional", "engine_reset")
THOROUGH = ("derivatives", *EXHAUSTIVE, "lengths_bidirectional", "reverse", "reset", "engine")


def case_of(cell: str, options: dict[str, Any], **arguments: Any) -> Case:
    return Case(cells.get(cell)(), options=options, **arguments)


def lacks(cell: str, options: dict[str, Any]) -> bool:
    """Whether a cell has no recurrent products, which some options act on."""
    return any(name in options for name in NEED_RECURRENT_PRODUCTS) and not cells.get(cell)().recurrent_gates


def check(name: str, cell: str, options: dict[str, Any], engine: str) -> None:
    if lacks(cell, options):
        with pytest.raises(ValueError, match=r"has no recurrent products \(weight_hh\)"):
            case_of(cell, options).module()
        return
    if "hidden_size" in options and cells.get(cell)().below:
        with pytest.raises(ValueError, match="reads the layer below, so hidden_size must be the same in both"):
            case_of(cell, options).module()
        return
    if name == "reverse" and "dense" in options:
        return  # which of a layer's inputs come from which direction depends on their number
    case = case_of(cell, options, engine=engine)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="residual: layer")
        if engine != "reference":
            assert why_not(case) is None
        run_check(name, case)


def _cases() -> list[Any]:
    found = []
    for cell in cells.names():
        for option in OPTIONS:
            for name in THOROUGH if cell in SAMPLE else EXHAUSTIVE:
                engine = "reference" if name == "derivatives" else "cpu"
                quick = cell in SAMPLE and (name in EXHAUSTIVE or cell == "lstm")
                marks = () if quick else (pytest.mark.slow,)
                found.append(pytest.param(name, cell, option, engine, id=f"{cell}-{option}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "cell", "option", "engine"), _cases())
def test_contract(name: str, cell: str, option: str, engine: str) -> None:
    check(name, cell, OPTIONS[option], engine)


def _pairs() -> list[Any]:
    """Each two options that do not exclude each other, on a cell that the draw chooses."""
    generator = random.Random(0)
    found = []
    for number, (a, b) in enumerate(itertools.combinations(OPTIONS, 2)):
        # behind outputs of another width there is nothing for a residual connection to add to
        excluded = (a == "residual" and b in ("dense", "hidden_sizes")) or set(OPTIONS[a]) & set(OPTIONS[b])
        cell = generator.choice([c for c in cells.names() if not lacks(c, OPTIONS[a] | OPTIONS[b])])
        if not excluded:
            marks = () if number % 8 == 0 else (pytest.mark.slow,)
            found.append(pytest.param(cell, a, b, id=f"{cell}-{a}-{b}", marks=marks))
    return found


@pytest.mark.parametrize(("cell", "a", "b"), _pairs())
def test_two_options(cell: str, a: str, b: str) -> None:
    for name in ("chunks", "lengths", "reset_bidirectional", "engine_reset"):
        check(name, cell, OPTIONS[a] | OPTIONS[b], "cpu")


@pytest.mark.parametrize("engine", ["reference", "cpu", "torch"])
@pytest.mark.parametrize("option", [n for n in OPTIONS if n not in INSIDE])
def test_evaluation_knows_no_masks(option: str, engine: str) -> None:
    """eval() equals a module without the option, where the option is about masks; and two calls are the same."""
    options = OPTIONS[option]
    from elman import use_engine

    module = case_of("lstm", options).module().eval()
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    with use_engine(engine):
        output, _ = module(x)
        assert torch.equal(module(x)[0], output)
        if "dropout" in option:
            plain = case_of("lstm", {}).module()
            plain.load_state_dict(module.state_dict())
            assert torch.equal(plain(x)[0], output)
            assert not torch.allclose(module.train()(x)[0] if "recurrent" not in option else output + 1, output)


def test_names() -> None:
    assert set(OPTIONS) >= {"dropout", "locked_dropout", "recurrent_dropout", "zoneout", "weight_dropout", "layer_norm"}
    assert Recurrent("lstm", 3, 8, zoneout=0.1).options.zoneout == 0.1
