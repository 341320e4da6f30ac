"""Metrics, and the file that collects them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

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


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in the order of the steps."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115  (open for the whole run)

    def cut(self, size: int) -> int:
        """Forget what was written after a checkpoint that saw ``size`` bytes; returns how many bytes are missing."""
        there = self._file.tell()
        self._file.truncate(min(size, there))
        self._file.seek(0, os.SEEK_END)
        return max(size - there, 0)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Make the lines safe on disk; returns the size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
