"""Sentences of like length in one batch, as many as a budget of tokens allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Examples = npt.NDArray[np.int64]


class LengthBuckets:
    """Batches of examples, each with at most ``budget`` tokens once it is padded to its longest example.

    An epoch has every example once. Examples are sorted by length, those of (nearly) one length in a new random order
    each epoch, and cut into batches, which come in random order. Seed and epoch alone decide, so a run goes on at any
    batch of any epoch.

    Args:
        lengths: tokens of each example, [N], 1 or more.
        budget: tokens of a batch, padding included.
        seed: not negative.
        most: examples in a batch, at most.
        spread: examples whose lengths differ by this share may change places; 0 keeps padding least.

    Raises:
        ValueError: there are no examples, or one is empty or longer than the budget.
    """

    def __init__(
        self, lengths: Sequence[int], budget: int, seed: int, *, most: int | None = None, spread: float = 0.1
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self.lengths):
            raise ValueError("there are no examples to batch")
        for number, wrong in ((self.lengths.argmin(), "none"), (self.lengths.argmax(), f"more than {budget}")):
            if not 1 <= self.lengths[number] <= budget:
                raise ValueError(f"example {number} has {self.lengths[number]} tokens; a batch cannot have {wrong}")
        self.budget = budget
        self.seed = seed
        self.most = most if most is not None else len(self.lengths)
        self.spread = spread
        self._made: tuple[int, list[Examples]] = (-1, [])

    def batches(self, epoch: int) -> list[Examples]:
        """The numbers of the examples in each batch of an epoch, in order."""
        if self._made[0] != epoch:
            self._made = epoch, self._make(np.random.default_rng((self.seed, epoch)))
        return self._made[1]

    def padding(self, epoch: int) -> float:
        """The share of an epoch's batches that is padding."""
        padded = sum(int(self.lengths[batch].max()) * len(batch) for batch in self.batches(epoch))
        return 1 - int(self.lengths.sum()) / padded

    def _make(self, random: np.random.Generator) -> list[Examples]:
        shuffled = random.permutation(len(self.lengths))  # those of one length
        blurred = self.lengths[shuffled] * (1 + self.spread * random.random(len(shuffled)))
        order = shuffled[np.argsort(blurred, kind="stable")]
        cuts, begin, longest = [], 0, 0
        for place, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            if longest * (place + 1 - begin) > self.budget or place - begin == self.most:
                cuts.append(place)
                begin, longest = place, length
        batches = np.split(order, cuts)
        return [batches[number] for number in random.permutation(len(batches))]
