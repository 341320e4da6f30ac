"""What losses mean."""

from __future__ import annotations

import math

Metrics = dict[str, float]


def perplexity(loss: float) -> float:
    """exp of the loss in nats per token; capped where it would overflow."""
    return math.exp(min(loss, 700.0))


def language_metrics(loss: float, tokens: int, characters: int) -> Metrics:
    """What a text's mean loss, in nats per token, means: tokenizers compare by bits per character."""
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_character": loss / math.log(2) * tokens / max(characters, 1),
    }
