"""Length buckets: every example once an epoch, within the budget, the same after a stop."""

import numpy as np
import pytest

from elman.data.buckets import LengthBuckets

LENGTHS = np.random.default_rng(0).geometric(0.05, 3000).clip(1, 100).tolist()


@pytest.mark.parametrize("options", [{}, {"most": 7}, {"spread": 0.0}, {"spread": 0.5, "most": 30}])
@pytest.mark.parametrize("budget", [100, 512, 10_000_000])
def test_each_example_once_an_epoch_within_the_budget(budget: int, options: dict[str, float]) -> None:
    buckets = LengthBuckets(LENGTHS, budget, seed=1, **options)  # type: ignore[arg-type]
    lengths = np.array(LENGTHS)
    for epoch in range(3):
        batches = buckets.batches(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
        for batch in batches:
            assert 0 < lengths[batch].max() * len(batch) <= budget
            assert len(batch) <= options.get("most", len(LENGTHS))


def test_batches_are_full_and_hold_little_padding() -> None:
    buckets = LengthBuckets(LENGTHS, 2000, seed=1)
    assert buckets.padding(0) < 0.15
    assert LengthBuckets(LENGTHS, 2000, seed=1, spread=0.0).padding(0) < buckets.padding(0)
    in_order = [max(LENGTHS[n : n + 20]) * 20 for n in range(0, 3000, 20)]
    assert 1 - sum(LENGTHS) / sum(in_order) > 0.5  # what the same sentences unsorted would hold
    assert len(buckets.batches(0)) < 1.25 * sum(LENGTHS) / 2000


def test_epochs_differ_and_a_resumed_run_sees_the_same() -> None:
    def numbers(epoch: int, seed: int = 1) -> list[list[int]]:
        return [batch.tolist() for batch in LengthBuckets(LENGTHS, 512, seed).batches(epoch)]

    buckets = LengthBuckets(LENGTHS, 512, seed=1)
    seen = [[batch.tolist() for batch in buckets.batches(epoch)] for epoch in (0, 1, 2, 1)]
    assert seen[1] == seen[3] == numbers(1)
    assert seen[2] == numbers(2)  # without the epochs before it
    assert len({str(epoch) for epoch in seen}) == 3
    assert len({str(sorted(map(sorted, epoch))) for epoch in seen}) == 3  # other neighbours too, not only another order
    assert numbers(0, seed=2) != numbers(0)
    longest = [max(LENGTHS[n] for n in batch) for batch in seen[0]]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3  # not from short to long


def test_what_no_batch_can_hold() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens; a batch cannot have more than 8"):
        LengthBuckets([3, 9, 2], 8, seed=0)
    with pytest.raises(ValueError, match="example 2 has 0 tokens; a batch cannot have none"):
        LengthBuckets([3, 8, 0], 8, seed=0)
    with pytest.raises(ValueError, match="no examples"):
        LengthBuckets([], 8, seed=0)
    assert LengthBuckets([8], 8, seed=0).batches(0)[0].tolist() == [0]
