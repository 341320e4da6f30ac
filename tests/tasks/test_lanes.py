"""Lanes: every token where it belongs, and scored once."""

import numpy as np
import pytest
import torch

from elman.data.lanes import Lanes, RandomWindows, ScoringLanes
from elman.data.order import Permutation


@pytest.mark.parametrize(("count", "lanes", "window"), [(101, 4, 5), (103, 4, 25), (42, 1, 7), (1000, 7, 16)])
def test_training_lanes_are_contiguous_and_complete(count: int, lanes: int, window: int) -> None:
    tokens = np.arange(count, dtype=np.int32)
    batches = Lanes(tokens, lanes, window)
    (length,) = batches.lengths
    windows = [batches.window(0, 0, start, min(start + window, length)) for start in range(0, length, window)]
    inputs = torch.cat([inputs for inputs, _ in windows])
    targets = torch.cat([targets for _, targets in windows])
    assert all(len(inputs) == window for inputs, _ in windows[:-1])
    assert 1 <= len(windows[-1][0]) <= window
    # lane after lane, the text in order: only a remainder smaller than the number of lanes is left out
    used = (count - 1) // lanes * lanes
    assert inputs.t().flatten().tolist() == list(range(used))
    assert torch.equal(targets, inputs + 1)


def test_part_of_a_window() -> None:
    inputs, targets = Lanes(np.arange(101, dtype=np.int32), 4, 5).window(0, 0, 22, 25)  # lanes of 25 predictions
    assert inputs.tolist() == [[lane * 25 + step for lane in range(4)] for step in (22, 23, 24)]
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 1000, 4097])
def test_a_permutation_has_each_element_once(count: int) -> None:
    orders = [Permutation(count, 7, key).at(np.arange(count)).tolist() for key in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 3:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] == Permutation(count, 7, 0).at(np.arange(count)).tolist()
        # element by element, in any order
        assert [int(Permutation(count, 7, 0).at(np.array([n]))[0]) for n in (2, 0, 1)] == [
            orders[0][n] for n in (2, 0, 1)
        ]


def test_permutations_look_random() -> None:
    # neighbours land anywhere: the mean distance of random places is a third of the range
    order = Permutation(10_000, 1).at(np.arange(10_000))
    assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.05)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize(("tokens", "count", "window"), [(1000, 4, 16), (333, 1, 7), (64, 3, 10)])
def test_random_windows_read_every_token_once_a_pass(tokens: int, count: int, window: int) -> None:
    batches = RandomWindows(np.arange(tokens, dtype=np.int32), count, window, seed=3)
    passes = []
    for epoch in range(3):
        read: list[int] = []
        for index, length in enumerate(batches.lengths):
            inputs, targets = batches.window(epoch, index, 0, length)
            assert inputs.shape == (window, count)
            assert torch.equal(targets, inputs + 1)
            assert torch.equal(inputs, inputs[0] + torch.arange(window)[:, None])
            read += inputs.flatten().tolist()
        assert len(set(read)) == len(read) > tokens - (count + 2) * window
        passes.append(read)
    assert passes[0] != passes[1] != passes[2]
    assert len({min(read) % window for read in passes}) > 1 or window < 8  # cut at other places
    again = RandomWindows(np.arange(tokens, dtype=np.int32), count, window, seed=3)
    last = again.window(2, len(again.lengths) - 1, 0, window)[0]
    assert passes[2][-last.numel() :] == last.flatten().tolist()


def test_too_few_tokens_for_random_windows() -> None:
    assert list(RandomWindows(np.zeros(50, dtype=np.int32), 4, 10, seed=0).lengths) == [10]
    with pytest.raises(ValueError, match="49 tokens are too few: 4 windows of 10 steps, begun anywhere, need 50"):
        RandomWindows(np.zeros(49, dtype=np.int32), 4, 10, seed=0)


def test_too_short_for_one_window() -> None:
    Lanes(np.zeros(41, dtype=np.int32), 4, 10)
    with pytest.raises(ValueError, match="40 tokens are too few: 4 lanes of one 10-step window need 41"):
        Lanes(np.zeros(40, dtype=np.int32), 4, 10)


@pytest.mark.parametrize("count", [2, 3, 50, 333, 1000])
@pytest.mark.parametrize("lanes", [1, 3, 64])
@pytest.mark.parametrize(("window", "burn_in"), [(7, 0), (16, 5), (64, 16)])
def test_each_token_but_the_first_is_scored_once(count: int, lanes: int, window: int, burn_in: int) -> None:
    tokens = np.arange(count, dtype=np.int32)
    batches = ScoringLanes(tokens, lanes, window, burn_in)
    scored: list[int] = []
    read: list[list[int]] = []
    for inputs, targets, mask in batches:
        assert inputs.shape == targets.shape == mask.shape
        assert len(inputs) <= window
        assert torch.equal(targets[mask], inputs[mask] + 1)
        scored += targets[mask].tolist()
        read += inputs.tolist()
    assert sorted(scored) == list(range(1, count))
    columns = np.array(read).T
    for lane in columns[1:]:
        # what a lane scores first has been preceded by the burn-in
        assert lane[burn_in] == lane[0] + burn_in


def test_one_token_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="1 tokens are too few"):
        ScoringLanes(np.zeros(1, dtype=np.int32), 1, 8, 0)
