"""One long text as a batch: contiguous lanes read side by side, window by window, with the state carried along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from elman.data.tokenizers import Tokens


class Lanes:
    """Training windows: the tokens cut into ``lanes`` contiguous lanes, read side by side.

    Targets are the inputs one step later. Fewer than ``lanes`` tokens at the end of the text are left out.

    Raises:
        ValueError: fewer tokens than one window of all lanes needs.
    """

    def __init__(self, tokens: Tokens, lanes: int, window: int) -> None:
        self.length = (len(tokens) - 1) // lanes  # predictions of a lane
        if self.length < window:
            raise ValueError(
                f"{len(tokens)} tokens are too few: {lanes} lanes of one {window}-step window need {lanes * window + 1}"
            )
        used = torch.from_numpy(tokens[: lanes * self.length + 1])
        self._inputs = used[:-1].view(lanes, self.length).t().contiguous()  # [length, B]
        self._targets = used[1:].view(lanes, self.length).t().contiguous()

    def window(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the steps from ``start`` to ``stop``, int64 ``[T, B]``."""
        return self._inputs[start:stop].long(), self._targets[start:stop].long()


class ScoringLanes:
    """Windows that score every token of a text but the first exactly once.

    Each lane but the first begins ``burn_in`` steps early, without score, so that its state is warm where its own
    stretch begins: the result hardly depends on the number of lanes. The first lane scores these steps too, and so
    all lanes have the same length. A short text gets fewer lanes, so that burn-in stays below a quarter of the work.

    Raises:
        ValueError: fewer than two tokens.
    """

    def __init__(self, tokens: Tokens, lanes: int, window: int, burn_in: int) -> None:
        if len(tokens) < 2:
            raise ValueError(f"{len(tokens)} tokens are too few to score: the first is only read")
        count = len(tokens) - 1
        lanes = max(1, min(lanes, count // (4 * max(burn_in, 1))))
        burn_in = min(burn_in, count) if lanes > 1 else 0
        own = -(-(count - burn_in) // lanes)  # steps that a lane scores after its burn-in
        lanes = max(1, -(-(count - burn_in) // own))  # rounding may leave the last lane nothing
        padded = np.zeros(own * lanes + burn_in + 1, dtype=tokens.dtype)
        padded[: len(tokens)] = tokens
        begin = own * np.arange(lanes)
        step = np.arange(own + burn_in)[:, None]
        self.window_size = window
        self.lanes = lanes
        self._inputs = torch.from_numpy(padded[begin + step])  # [steps, B]
        self._targets = torch.from_numpy(padded[begin + step + 1])
        self._scored = torch.from_numpy((begin + step < count) & ((step >= burn_in) | (begin == 0)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs and targets, int64, and which steps count, bool: each ``[T, B]``."""
        for start in range(0, len(self._inputs), self.window_size):
            steps = slice(start, start + self.window_size)
            yield self._inputs[steps].long(), self._targets[steps].long(), self._scored[steps]
