"""Truncation: what each style reads, and how far its gradient is from that of full backpropagation."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import elman
from elman.errors import UsageError
from elman.train.config import TrainConfig
from elman.train.course import Course, run
from elman.train.job import Stretch
from elman.train.truncation import Piece, Truncation, Update

STEPS, ROWS = 48, 3


class Sequence:
    """Predicts each step's target from all inputs so far. Its gradients are compared, its weights never change."""

    fingerprint = "sequence"

    def __init__(self, cell: str = "lstm") -> None:
        numbers = torch.Generator().manual_seed(1)
        torch.manual_seed(2)
        self.model = nn.ModuleList([elman.Recurrent(cell, 2, 4, dtype=torch.float64), nn.Linear(4, 1).double()])
        with torch.no_grad():
            if cell == "lstm":
                self.model[0].bias_ih_l0[4:8] = 3.0  # open gates: errors must reach far, or cutting would lose nothing
        self.inputs = torch.randn(STEPS, ROWS, 2, dtype=torch.float64, generator=numbers)
        self.targets = self.inputs[..., :1].cumsum(0) / 4

    def lengths(self, epoch: int) -> list[int]:
        return [STEPS]

    def begin(self) -> Any:
        return None

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        steps = slice(stretch.start, stretch.stop)
        output, carry = self.model[0](self.inputs[steps], carry)
        errors = (self.model[1](output) - self.targets[steps]) ** 2
        return errors.mean(), errors.numel(), carry

    def read(self, stretch: Stretch, carry: Any) -> Any:
        return self.model[0](self.inputs[stretch.start : stretch.stop], carry)[1]


def gradient(job: Any, objective: Tensor) -> Tensor:
    """The recurrent parameters' gradients in one vector: the output layer's do not depend on truncation."""
    gradients = torch.autograd.grad(objective, [p for p in job.model[0].parameters() if p.requires_grad])
    return torch.cat([g.flatten() for g in gradients])


def whole_gradient(job: Any, truncation: Truncation, fresh: bool = False) -> Tensor:
    """The updates' gradients over one pass, each by the steps that it scores: what a small learning rate adds up to."""
    course = Course(job, truncation, fresh)
    total: Tensor = torch.zeros((), dtype=torch.float64)
    while course.place.epoch == 0:
        start = course.place.start
        part = course.advance()
        stop = course.place.start or STEPS
        # a weighted objective is by the steps already; a mean is not
        steps = truncation.window if truncation.style == "randomized" else stop - start
        total = total + gradient(job, part.objective) * steps / STEPS
    return total


def bias(job: Any, truncation: Truncation, fresh: bool = False) -> float:
    """Of one pass, as a share of the full gradient's length."""
    full = whole_gradient(job, Truncation("none"))
    return ((whole_gradient(job, truncation, fresh) - full).norm() / full.norm()).item()


def updates_of(truncation: Truncation, length: int) -> list[Update]:
    updates, start = [], 0
    while start < length:
        updates.append(truncation.update(0, 0, start, length))
        start = updates[-1].stop
    return updates


STYLES = [
    Truncation("none"),
    Truncation("none", burn_in=0, window=7),
    Truncation("fixed", 8),
    Truncation("fixed", 8, burn_in=3),
    Truncation("fixed", 8, backward=11),
    Truncation("fixed", 8, backward=16),
    Truncation("fixed", 8, backward=29, burn_in=5),
    Truncation("variable", 10),
    Truncation("variable", 10, burn_in=4),
    Truncation("randomized", 12, cut_every=3),
    Truncation("randomized", 12, cut_every=1, burn_in=7),
]


@pytest.mark.parametrize("truncation", STYLES, ids=str)
@pytest.mark.parametrize("length", [1, 8, 9, 100])
def test_every_step_is_scored_once_and_pieces_join(truncation: Truncation, length: int) -> None:
    updates = updates_of(truncation, length)
    scored = Counter(
        step
        for update in updates
        for piece in update.pieces
        if piece.role == "scored"
        for step in range(piece.start, piece.stop)
    )
    assert scored == Counter(range(length))
    for update in updates:
        assert all(before.stop == after.start for before, after in pairwise(update.pieces))
        assert update.pieces[-1].stop == update.stop
        assert update.next_begin in {piece.start for piece in update.pieces} | {update.stop}
    for before, after in pairwise(updates):
        assert after.pieces[0].start == before.next_begin


@pytest.mark.parametrize("truncation", [t for t in STYLES if t.burn_in == 0], ids=str)
def test_with_the_state_kept_losses_are_those_of_the_whole_sequence(truncation: Truncation) -> None:
    job = Sequence()
    whole, _ = run(job, Truncation("none").update(0, 0, 0, STEPS), 0, 0)
    course, total = Course(job, truncation), 0.0
    while course.place.epoch == 0:
        part = course.advance()
        total += part.loss.item() * part.tokens
    assert total / (STEPS * ROWS) == pytest.approx(whole.loss.item(), rel=1e-12)


def test_a_full_window_is_full_backpropagation() -> None:
    job = Sequence()
    assert bias(job, Truncation("fixed", STEPS)) < 1e-12
    assert bias(job, Truncation("fixed", 6, backward=STEPS)) < 1e-12


@pytest.mark.parametrize("backward", [6, 9, 12, 30])
def test_fixed_reaches_back_as_far_as_it_says(backward: int) -> None:
    """The loss at a window's end feels an input ``backward - 1`` steps before, and none before that."""
    job = Sequence()
    job.inputs.requires_grad_()
    truncation = Truncation("fixed", 6, backward=backward)
    course = Course(job, truncation)
    while course.place.start < 36:
        part = course.advance()
    (seen,) = torch.autograd.grad(part.objective, job.inputs)
    reached = seen.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert reached == list(range(36 - backward, 36))


def test_the_bias_of_each_style() -> None:
    """Longer reach, smaller bias; a variable window is about as biased as the fixed one of its mean."""
    job = Sequence()
    by_window = [bias(job, Truncation("fixed", window)) for window in (2, 4, 8, 16, 24)]
    assert by_window == sorted(by_window, reverse=True)
    assert by_window[0] > 0.3
    by_reach = [bias(job, Truncation("fixed", 4, backward=reach)) for reach in (4, 8, 16, 32)]
    assert by_reach == sorted(by_reach, reverse=True)
    variable = torch.stack([whole_gradient(job, Truncation("variable", 8, seed=seed)) for seed in range(40)]).mean(0)
    full = whole_gradient(job, Truncation("none"))
    assert 0.3 < ((variable - full).norm() / full.norm()).item() / bias(job, Truncation("fixed", 8)) < 1.5
    # without the state that came before, the loss itself is another
    assert bias(job, Truncation("fixed", 8), fresh=True) > bias(job, Truncation("fixed", 8))


@pytest.mark.parametrize("cell", ["lstm", "gru", "clockwork"])
def test_randomized_is_unbiased_exactly(cell: str) -> None:
    """The mean over all ways to cut five links, weighted by their probabilities, is the full gradient."""
    job = Sequence(cell)
    truncation = Truncation("randomized", 24, cut_every=STEPS // 5 + 1)
    links = -(-STEPS // truncation.cut_every)
    full = whole_gradient(job, Truncation("none"))
    expected, total = torch.zeros_like(full), 0.0
    unweighted = torch.zeros_like(full)
    for cuts in product([False, True], repeat=links - 1):
        probability, since, carry = 1.0, 0, None
        pieces: list[list[Piece]] = [[]]
        for number in range(links):
            since += 1
            first, last = number * truncation.cut_every, min((number + 1) * truncation.cut_every, STEPS)
            factor = 1 / (1 - truncation.cut_probability(since - 1)) if pieces[-1] else 0.0
            pieces[-1].append(Piece(first, last, "scored", factor))
            if number < links - 1:
                chance = truncation.cut_probability(since)
                probability *= chance if cuts[number] else 1 - chance
                if cuts[number]:
                    pieces.append([])
                    since = 0
        for group in pieces:
            start, stop = group[0].start, group[-1].stop
            weight = (stop - start) / STEPS
            part, after = run(job, Update(tuple(group), start, stop, stop, weight), 0, 0, carry)
            expected += probability * gradient(job, part.objective)
            plain = tuple(Piece(p.start, p.stop, p.role, float(p.link > 0)) for p in group)
            part, _ = run(job, Update(plain, start, stop, stop, weight), 0, 0, carry)
            unweighted += probability * gradient(job, part.objective)
            carry = after
        total += probability
    assert total == pytest.approx(1, rel=1e-12)
    assert (expected - full).norm() < 1e-12 * full.norm()
    assert (unweighted - full).norm() > 0.01 * full.norm()  # the weights are what makes it so


def test_randomized_is_unbiased_as_it_is_drawn() -> None:
    """Over seeds, the mean lies within four standard errors of the full gradient; a fixed window's lies outside."""
    job = Sequence()
    full = whole_gradient(job, Truncation("none"))
    drawn = torch.stack(
        [whole_gradient(job, Truncation("randomized", 12, cut_every=2, seed=seed)) for seed in range(150)]
    )
    along = torch.stack(
        [full, *torch.randn(8, len(full), dtype=full.dtype, generator=torch.Generator().manual_seed(0))]
    )
    errors = (drawn.mean(0) - full) @ along.t()
    standard = (drawn @ along.t()).std(0) / len(drawn) ** 0.5
    assert (errors.abs() < 4 * standard).all(), errors / standard
    fixed = (whole_gradient(job, Truncation("fixed", 12)) - full) @ along.t()
    assert (fixed.abs() > 4 * standard).any()


def test_lengths_that_are_drawn() -> None:
    """AWD-LSTM's windows, with the learning rate by their lengths; the mean of the randomised ones is the window."""
    variable = [Truncation("variable", 70, seed=seed).update(0, 0, 0, 10**6) for seed in range(4000)]
    lengths = np.array([update.stop for update in variable])
    assert lengths.mean() == pytest.approx(0.95 * 70 + 0.05 * 35, abs=0.5)
    assert (lengths < 52).mean() == pytest.approx(0.05, abs=0.015)
    assert lengths[lengths > 52].std() == pytest.approx(5, abs=0.3)
    assert all(update.rate == update.stop / 70 for update in variable)
    randomized = [Truncation("randomized", 24, cut_every=4, seed=seed).update(0, 0, 0, 10**6) for seed in range(4000)]
    lengths = np.array([update.stop for update in randomized])
    assert lengths.mean() == pytest.approx(24, abs=4 * lengths.std() / 4000**0.5)
    assert set(lengths % 4) == {0}
    assert all(update.weight == update.stop / 24 for update in randomized)


def test_draws_depend_on_the_place_alone() -> None:
    truncation = Truncation("variable", 20, seed=3)
    assert truncation.update(1, 2, 40, 500) == truncation.update(1, 2, 40, 500)
    stops = {truncation.update(epoch, index, 40, 500).stop for epoch in range(4) for index in range(4)}
    assert len(stops) > 3


def test_burn_in_warms_the_state_without_gradients() -> None:
    job = Sequence()
    job.inputs.requires_grad_()
    update = Truncation("fixed", 8, burn_in=5).update(0, 0, 16, STEPS)
    warm, _ = run(job, update, 0, 0)
    (seen,) = torch.autograd.grad(warm.objective, job.inputs)
    assert seen.abs().sum((1, 2)).nonzero().flatten().tolist() == list(range(16, 24))
    cold, _ = run(job, Truncation("fixed", 8).update(0, 0, 16, STEPS), 0, 0)
    state = job.read(Stretch(0, 0, 0, 16), None)
    kept, _ = run(job, Truncation("fixed", 8).update(0, 0, 16, STEPS), 0, 0, state)
    assert abs(warm.loss - kept.loss) < abs(cold.loss - kept.loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backward": 90}, "--backward is for --truncation fixed, got none"),
        ({"truncation": "fixed", "backward": 9}, "--backward must be at least --window 64, got 9"),
        ({"truncation": "fixed", "cut_every": 9}, "--cut-every is for --truncation randomized, got fixed"),
        ({"truncation": "randomized", "cut_every": 33}, "--cut-every must be at most half of --window 64, got 33"),
        ({"truncation": "randomized", "window": 1}, "--cut-every must be at most half of --window 1"),
        ({"burn_in": 4}, "--burn-in is for truncated sequences"),
        ({"truncation": "fixed", "bidirectional": True}, "--bidirectional reads whole sequences"),
    ],
)
def test_settings_that_contradict(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainConfig(**options)
