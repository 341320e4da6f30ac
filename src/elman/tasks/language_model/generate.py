"""Text from a language model, as it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from elman.data.tokenizers import TextStream, Tokenizer
from elman.tasks.language_model.model import LanguageModel
from elman.tasks.sampling import Sampler


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prime: str,
    length: int,
    sampler: Sampler,
    generator: torch.Generator,
) -> Iterator[str]:
    """Continue ``prime`` by ``length`` tokens, in pieces of text. One token costs one step: the state is carried.

    An empty prime starts as after a line end. ``model`` must be in evaluation mode.
    """
    next_logits = model.stream()
    stream = TextStream(tokenizer)
    start = tokenizer.encode(prime or "\n")
    if not prime and start[0] == tokenizer.unknown:
        start = start * 0 + 1  # a text without line ends: any known token will do
    for token in start:
        logits = next_logits(int(token))
        stream.push(int(token))
    for made in range(1, length + 1):
        token = sampler.choose(logits, generator)
        yield stream.push(token)
        if made < length:
            logits = next_logits(token)
    yield stream.close()


def until(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """The pieces up to the first occurrence of ``stop``; only text that may begin it is held back."""
    held = ""
    for piece in pieces:
        if not stop:
            yield piece
            continue
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = next(n for n in range(min(len(stop) - 1, len(held)), -1, -1) if held.endswith(stop[:n]))
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
