"""Choosing tokens, and stopping at a text."""

import pytest
import torch

from elman.tasks.language_model.generate import until
from elman.tasks.sampling import Sampler

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(), [0.1, 0.4, 0.2, 0.3]),
        (Sampler(temperature=0), [0, 1, 0, 0]),
        (Sampler(temperature=0, banned=1), [0, 0, 0, 1]),
        (Sampler(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampler(top_k=1), [0, 1, 0, 0]),
        (Sampler(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampler(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampler(top_p=0.3), [0, 1, 0, 0]),
        (Sampler(top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (Sampler(top_p=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampler(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampler(banned=1), [1 / 6, 0, 2 / 6, 3 / 6]),
    ],
)
def test_probabilities(sampler: Sampler, expected: list[float]) -> None:
    before = LOGITS.clone()
    torch.testing.assert_close(
        sampler.probabilities(LOGITS), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-6
    )
    assert torch.equal(LOGITS, before)


def test_a_very_low_temperature_is_greedy_and_not_a_fault() -> None:
    assert Sampler(temperature=1e-30).probabilities(LOGITS).tolist() == [0, 1, 0, 0]


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [Sampler().choose(LOGITS, generator) for _ in range(4000)]

    draws = draw(0)
    assert draws == draw(0) != draw(1)
    shares = torch.bincount(torch.tensor(draws), minlength=4) / 4000
    # five standard deviations of a share of 4000 draws
    assert (shares - LOGITS.exp()).abs().max() < 5 * 0.5 / 4000**0.5


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", "wor", "hello "),
        ("aaab", "aab", "a"),
        ("abc", "x", "abc"),
        ("abab", "abc", "abab"),
        ("ab", None, "ab"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_output_ends_before_the_stop_text(text: str, stop: str | None, expected: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(until(pieces, stop)) == expected


def test_only_what_may_begin_the_stop_text_is_held_back() -> None:
    assert list(until(["a", "x", "b", "x", "y"], "xyz")) == ["a", "", "xb", "", "", "xy"]
