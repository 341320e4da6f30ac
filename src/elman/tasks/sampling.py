"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: choose among the k likeliest.
        top_p: choose among the fewest likeliest that hold this share of the probability.
        banned: a token never to choose, such as ``<unk>``.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    banned: int | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits ``[V]`` to the probabilities ``[V]`` to draw from, on the CPU in float64."""
        logits = logits.detach().to("cpu", torch.float64, copy=True)
        if self.banned is not None:
            logits[self.banned] = -torch.inf
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
        logits = (logits - logits.max()) / self.temperature
        if self.top_k is not None and self.top_k < len(logits):
            kept = logits.topk(self.top_k).indices
            logits = torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])
        probabilities = logits.softmax(0)
        if self.top_p is not None:
            ordered, indices = probabilities.sort(descending=True, stable=True)
            beyond = ordered.cumsum(0) - ordered >= self.top_p  # the token that crosses the share stays
            probabilities[indices[beyond]] = 0
            probabilities /= probabilities.sum()
        return probabilities

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """Draw a token; ``generator`` is on the CPU."""
        return int(torch.multinomial(self.probabilities(logits), 1, generator=generator))
