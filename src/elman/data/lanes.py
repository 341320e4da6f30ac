"""One long text as batches: lanes read side by side with the state carried along, or windows from anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from elman.data.order import Permutation
from elman.data.store import StoredTokens, TokenSequence


class Batches(ABC):
    """Training sequences, each of B stretches of the text side by side. Targets are the inputs one step later.

    Attributes:
        lengths: the steps of each of an epoch's sequences.
    """

    lengths: Sequence[int]

    def __init__(self, tokens: TokenSequence, lengths: Sequence[int]) -> None:
        self.tokens = tokens
        self.lengths = lengths

    @abstractmethod
    def begins(self, epoch: int, index: int) -> Tensor:
        """Where the rows of a sequence begin in the text, int64 ``[B]``."""

    def read(self, begins: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the steps from ``start`` to ``stop`` of rows that begin there, int64 ``[T, B]``.

        Of a text on disk no more is read than these steps of these rows.
        """
        columns = [self.tokens[begin + start : begin + stop + 1] for begin in begins.tolist()]
        block = torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))  # [T + 1, B]
        return block[:-1], block[1:]

    def document_begins(self, begins: Tensor, start: int, stop: int) -> Tensor:
        """Which of these steps begin a document, as the text on disk has them: bool ``[T, B]``."""
        found = torch.zeros(stop - start, len(begins), dtype=torch.bool, device="cpu")
        if isinstance(self.tokens, StoredTokens):
            for row, begin in enumerate(begins.tolist()):
                places = self.tokens.document_starts(begin + start, begin + stop)
                found[torch.from_numpy(places - begin - start), row] = True
        return found

    def window(self, epoch: int, index: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The same of all rows of a sequence."""
        return self.read(self.begins(epoch, index), start, stop)


class Lanes(Batches):
    """The text cut into ``lanes`` contiguous lanes: one sequence, read window by window, the same in every epoch.

    Fewer than ``lanes`` tokens at the end of the text are left out.

    Raises:
        ValueError: fewer tokens than one window of all lanes needs.
    """

    def __init__(self, tokens: TokenSequence, lanes: int, window: int) -> None:
        length = (len(tokens) - 1) // lanes  # predictions of a lane
        if length < window:
            raise ValueError(
                f"{len(tokens)} tokens are too few: {lanes} lanes of one {window}-step window need {lanes * window + 1}"
            )
        super().__init__(tokens, [length])
        self._begins = length * torch.arange(lanes, device="cpu")

    def begins(self, epoch: int, index: int) -> Tensor:
        return self._begins


class RandomWindows(Batches):
    """Windows that begin anywhere: a sequence is ``count`` of them, and each starts from a fresh state.

    A pass cuts the text into windows from a random first token on, and takes them in a random order, ``count`` at a
    time: it reads (almost) every token once, and no two passes cut at the same places. What a step reads depends on
    seed, pass and step alone.

    Raises:
        ValueError: fewer tokens than one batch needs.
    """

    def __init__(self, tokens: TokenSequence, count: int, window: int, seed: int) -> None:
        self._windows = (len(tokens) - window) // window  # whatever the first token of a pass is
        if self._windows < count:
            raise ValueError(
                f"{len(tokens)} tokens are too few: {count} windows of {window} steps, begun anywhere, "
                f"need {(count + 1) * window}"
            )
        super().__init__(tokens, Alike(window, self._windows // count))
        self._count = count
        self._window = window
        self._seed = seed

    def begins(self, epoch: int, index: int) -> Tensor:
        order = Permutation(self._windows, self._seed, epoch)
        first = int(np.random.default_rng((self._seed, epoch)).integers(self._window))
        windows = order.at(np.arange(index * self._count, (index + 1) * self._count))
        return torch.from_numpy(first + self._window * windows)


class Alike(Sequence[int]):
    """One number many times; it takes no memory."""

    def __init__(self, number: int, count: int) -> None:
        self._number = number
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Alike: ...

    def __getitem__(self, place: int | slice) -> int | Alike:
        chosen = self._places[place]  # IndexError behind the end
        return self._number if isinstance(chosen, int) else Alike(self._number, len(chosen))


class ScoringLanes:
    """Windows that score every token of a text but the first exactly once.

    Each lane but the first begins ``burn_in`` steps early, without score, so that its state is warm where its own
    stretch begins: the result hardly depends on the number of lanes. The first lane scores these steps too, and so
    all lanes have the same length. A short text gets fewer lanes, so that burn-in stays below a quarter of the work.

    Raises:
        ValueError: fewer than two tokens.
    """

    def __init__(self, tokens: TokenSequence, lanes: int, window: int, burn_in: int) -> None:
        if len(tokens) < 2:
            raise ValueError(f"{len(tokens)} tokens are too few to score: the first is only read")
        count = len(tokens) - 1
        lanes = max(1, min(lanes, count // (4 * max(burn_in, 1))))
        burn_in = min(burn_in, count) if lanes > 1 else 0
        own = -(-(count - burn_in) // lanes)  # steps that a lane scores after its burn-in
        lanes = max(1, -(-(count - burn_in) // own))  # rounding may leave the last lane nothing
        self.window_size = window
        self.lanes = lanes
        self._tokens = tokens
        self._count = count
        self._burn_in = burn_in
        self._begins = own * np.arange(lanes)
        self._steps = own + burn_in

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs and targets, int64, and which steps count, bool: each ``[T, B]``."""
        for start in range(0, self._steps, self.window_size):
            step = np.arange(start, min(start + self.window_size, self._steps))[:, None]
            block = np.zeros((len(step) + 1, self.lanes), dtype=np.int64)  # zeros where the last lane has ended
            for lane, begin in enumerate(self._begins.tolist()):
                column = self._tokens[begin + start : begin + start + len(step) + 1]
                block[: len(column), lane] = column
            place = self._begins + step
            scored = (place < self._count) & ((step >= self._burn_in) | (self._begins == 0))
            inputs = torch.from_numpy(block)
            yield inputs[:-1], inputs[1:], torch.from_numpy(scored)
