"""One long text as batches: lanes read side by side with the state carried along, or windows from anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from elman.data.order import Permutation
from elman.data.store import TokenSequence


class Lanes:
    """Training windows: the tokens cut into ``lanes`` contiguous lanes, each read ``window`` steps at a time.

    Targets are the inputs one step later. The last window of a pass may be shorter; fewer than ``lanes`` tokens at
    the end of the text are left out.

    Raises:
        ValueError: fewer tokens than one window of all lanes needs.
    """

    def __init__(self, tokens: TokenSequence, lanes: int, window: int) -> None:
        self.length = (len(tokens) - 1) // lanes  # predictions of a lane
        if self.length < window:
            raise ValueError(
                f"{len(tokens)} tokens are too few: {lanes} lanes of one {window}-step window need {lanes * window + 1}"
            )
        self.window_size = window
        self._tokens = tokens
        self._begins = [lane * self.length for lane in range(lanes)]

    def __len__(self) -> int:
        """Windows in one pass over the text."""
        return -(-self.length // self.window_size)

    def window(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window, int64 ``[T, B]``; every pass is the same."""
        return self.read(index * self.window_size, self.window_size)

    def read(self, start: int, steps: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of at most ``steps`` steps from step ``start`` of every lane, int64 ``[T, B]``."""
        steps = min(steps, self.length - start)
        return _side_by_side(self._tokens, [begin + start for begin in self._begins], steps)


class RandomWindows:
    """Training windows that begin anywhere: each is read from a fresh state.

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
        self._tokens = tokens
        self._count = count
        self._window = window
        self._seed = seed

    def __len__(self) -> int:
        """Batches in one pass over the text."""
        return self._windows // self._count

    def window(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one batch of windows, int64 ``[T, B]``."""
        order = Permutation(self._windows, self._seed, epoch)
        first = int(np.random.default_rng((self._seed, epoch)).integers(self._window))
        windows = order.at(np.arange(index * self._count, (index + 1) * self._count))
        return _side_by_side(self._tokens, (first + self._window * windows).tolist(), self._window)


def _side_by_side(tokens: TokenSequence, begins: list[int], steps: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of ``steps`` predictions from each of ``begins``, int64 ``[steps, B]``."""
    columns = [tokens[begin : begin + steps + 1] for begin in begins]
    block = torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))  # [steps + 1, B]
    return block[:-1], block[1:]


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
