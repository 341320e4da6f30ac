"""Lanes: every token where it belongs, and scored once."""

import numpy as np
import pytest
import torch

from elman.data.lanes import Lanes, ScoringLanes


@pytest.mark.parametrize(("count", "lanes", "window"), [(101, 4, 5), (103, 4, 25), (42, 1, 7), (1000, 7, 16)])
def test_training_lanes_are_contiguous_and_complete(count: int, lanes: int, window: int) -> None:
    tokens = np.arange(count, dtype=np.int32)
    batches = Lanes(tokens, lanes, window)
    windows = [batches.window(start, start + window) for start in range(0, batches.length, window)]
    inputs = torch.cat([inputs for inputs, _ in windows])
    targets = torch.cat([targets for _, targets in windows])
    assert all(len(inputs) == window for inputs, _ in windows[:-1])
    assert 1 <= len(windows[-1][0]) <= window
    # lane after lane, the text in order: only a remainder smaller than the number of lanes is left out
    used = (count - 1) // lanes * lanes
    assert inputs.t().flatten().tolist() == list(range(used))
    assert torch.equal(targets, inputs + 1)


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
