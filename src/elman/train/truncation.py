"""Truncated backpropagation through time: what each update of a long sequence reads, scores and differentiates.

docs/truncation.md says what each style costs and how it is biased. Sources: Williams & Peng, "An efficient
gradient-based algorithm for on-line training of recurrent network trajectories", Neural Computation 1990 (``fixed``);
Merity, Keskar & Socher, "Regularizing and optimizing LSTM language models", ICLR 2018 (``variable``); Tallec &
Ollivier, "Unbiasing truncated backpropagation through time", 2017 (``randomized``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from elman.train.config import TrainConfig

Style = Literal["none", "fixed", "variable", "randomized"]
Role = Literal["warm", "lead", "scored"]

# of `variable`, as shares of a mean of 70 steps in its paper
HALVED = 0.05  # of the windows are drawn around half the mean
SPREAD = 5 / 70
SHORTEST = 5 / 70
TAIL = 6.0  # of `randomized`: a stretch survives n steps with a probability that falls like n to the power of -TAIL


@dataclass(frozen=True)
class Piece:
    """Consecutive steps ``start`` to ``stop`` of a sequence, run in one call.

    Attributes:
        role: ``warm`` only refreshes the state; ``lead`` carries gradients but has no loss; ``scored`` does both.
        link: what a gradient is multiplied by where it flows back into the piece before; 0 cuts it.
    """

    start: int
    stop: int
    role: Role
    link: float


@dataclass(frozen=True)
class Update:
    """What one update does.

    Attributes:
        pieces: consecutive, in order; those that are scored come last.
        start, stop: the steps that are scored.
        next_begin: where the pieces of the next update begin; a piece begins here, unless it is ``stop``.
        weight: factor of the mean loss.
        rate: factor of the learning rate.
    """

    pieces: tuple[Piece, ...]
    start: int
    stop: int
    next_begin: int
    weight: float = 1.0
    rate: float = 1.0


@dataclass(frozen=True)
class Truncation:
    """The style and its lengths, all in time steps.

    Attributes:
        style: ``none``, ``fixed``, ``variable`` or ``randomized``.
        window: steps between updates, of ``variable`` and ``randomized`` the mean.
        backward: steps that a gradient may flow back, of ``fixed``; at least ``window``.
        burn_in: steps before those that are read again, without gradient, so that the state is warm.
        cut_every: steps between two places where ``randomized`` may cut; at most half the window.
        seed: of the lengths that are drawn.
    """

    style: Style = "none"
    window: int = 64
    backward: int | None = None
    burn_in: int = 0
    cut_every: int = 1
    seed: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> Truncation:
        """What the options say."""
        return cls(config.truncation, config.window, config.backward, config.burn_in, config.links, config.seed)

    def update(self, epoch: int, index: int, start: int, length: int) -> Update:
        """The update that scores the steps from ``start`` on, in sequence ``index`` of an epoch, ``length`` steps long.

        The same arguments give the same update.
        """
        random = np.random.default_rng([self.seed, epoch, index, start])
        if self.style == "none":
            return self._lay(start, length)
        if self.style == "fixed":
            return self._lay(start, min(start + self.window, length))
        if self.style == "variable":
            stop = min(start + self._draw_window(random), length)
            return self._lay(start, stop, rate=(stop - start) / self.window)
        links = self._draw_links(random, -(-(length - start) // self.cut_every))
        stop = min(start + links * self.cut_every, length)
        return self._lay(start, stop, weight=(stop - start) / self.window)

    def _lay(self, start: int, stop: int, weight: float = 1.0, rate: float = 1.0) -> Update:
        """Pieces for the steps from ``start`` to ``stop``, with the burn-in and the lead before them."""
        lead = (self.backward or self.window) - self.window if self.style == "fixed" else 0
        begin, warm_until = max(0, start - lead - self.burn_in), max(0, start - lead)
        next_begin = max(0, stop - lead - self.burn_in)
        bounds = {begin, warm_until, start, stop, next_begin}
        if self.style == "randomized":
            bounds |= set(range(start, stop, self.cut_every))
        pieces = []
        for first, last in pairwise(sorted(bounds)):
            role: Role = "warm" if first < warm_until else "lead" if first < start else "scored"
            link = 0.0 if first in (begin, warm_until) else 1.0
            if self.style == "randomized" and first > start and (first - start) % self.cut_every == 0:
                link = 1 / (1 - self.cut_probability((first - start) // self.cut_every))
            pieces.append(Piece(first, last, role, link))
        return Update(tuple(pieces), start, stop, next_begin, weight, rate)

    def _draw_window(self, random: np.random.Generator) -> int:
        mean = self.window / 2 if random.random() < HALVED else self.window
        return max(round(random.normal(mean, SPREAD * self.window)), round(SHORTEST * self.window), 1)

    def _draw_links(self, random: np.random.Generator, most: int) -> int:
        """How many links, of ``cut_every`` steps each, pass before a cut."""
        links = 1
        while links < most and random.random() >= self.cut_probability(links):
            links += 1
        return links

    def cut_probability(self, links: int) -> float:
        """Of ``randomized``: the probability of a cut after ``links`` links without one.

        Tallec & Ollivier, section 4. The mean number of links is ``window / cut_every`` exactly.
        """
        return TAIL / ((TAIL - 1) * self.window / self.cut_every + links)
