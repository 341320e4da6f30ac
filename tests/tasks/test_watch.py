"""What runs report of the inside of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elman.train import watch
from elman.train.job import Stretch

from .conftest import metrics_of
from .test_training import Line, fit
from .test_truncation import Sequence


def test_how_far_errors_reach() -> None:
    """Against one backward pass through a loop of single steps, written out."""
    job = Sequence("gru")
    metrics = watch.reach(job, Stretch(0, 0, 0, 40))
    recurrent, head = job.model
    state = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    states = [state]
    for step in range(40):
        output, state = recurrent(job.inputs[step : step + 1], state)
        state.retain_grad()
        states.append(state)
    ((head(output) - job.targets[39:40]) ** 2).mean().backward()
    for lag in (1, 2, 4, 8, 16, 32):
        norm = states[-1 - lag].grad
        assert norm is not None
        assert metrics[f"gradient_lag_{lag}"] == pytest.approx(norm.norm().item(), rel=1e-10)
    assert "gradient_lag_64" not in metrics
    assert metrics["state_h"] == pytest.approx(state.square().mean().sqrt().item())


def test_open_gates_let_errors_through_and_are_counted() -> None:
    job = Sequence("lstm")
    far = watch.reach(job, Stretch(0, 0, 0, 48))
    open_share = watch.gates(job, Stretch(0, 0, 0, 16))["gates_open"]
    assert {"state_h", "state_c"} <= far.keys()
    with torch.no_grad():
        job.model[0].bias_ih_l0[4:8] = -3.0
    near = watch.reach(job, Stretch(0, 0, 0, 48))
    assert near["gradient_lag_16"] / near["gradient_lag_1"] < 1e-3 * far["gradient_lag_16"] / far["gradient_lag_1"]
    counted = watch.gates(job, Stretch(0, 0, 0, 16))
    assert counted["gates_closed"] >= 0.2  # one gate of three, but for the units that the inputs open
    assert counted["gates_open"] < open_share
    with torch.no_grad():
        for parameter in job.model[0].parameters():
            parameter.zero_()
    assert watch.gates(job, Stretch(0, 0, 0, 16)) == {"gates_closed": 0, "gates_open": 0, "tanh_saturated": 0}


def test_looking_changes_nothing() -> None:
    job = Sequence()
    before = torch.get_rng_state()
    job.model.train()
    watch.inside(job, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert job.model.training
    assert all(parameter.grad is None for parameter in job.model.parameters())


def test_what_a_run_reports(trained: Path) -> None:
    lines = metrics_of(trained)
    train = next(line for line in lines if line["kind"] == "train")
    assert {"gradient_norm", "gradient_norm_clipped", "clipped", "learning_rate", "state_h", "state_c"} <= train.keys()
    validation = lines[-1]
    assert {"gradient_lag_1", "gradient_lag_64", "gates_open", "gates_closed", "tanh_saturated"} <= validation.keys()


def test_the_clipped_share(tmp_path: Path) -> None:
    """Gradients of length 4, 8, 12, 16 again and again: half of them are longer than 9."""

    class Slopes(Line):
        def loss(self, stretch, carry):  # type: ignore[no-untyped-def]
            return 4 * (stretch.start + 1) * self.model.weight.sum(), 1, carry

    fit(Slopes(), tmp_path / "run", max_steps=8, clip=9.0, evaluate_every=8)
    line = metrics_of(tmp_path / "run")[0]
    assert line["gradient_norm"] == pytest.approx(10)
    assert line["gradient_norm_clipped"] == pytest.approx((4 + 8 + 9 + 9) / 4)
    assert line["clipped"] == 0.5
