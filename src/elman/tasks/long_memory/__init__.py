"""Problems that measure how far a network remembers: their options. The rest needs torch and is imported when used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from elman.errors import UsageError
from elman.tasks.task import Task
from elman.train.config import TrainConfig
from elman.train.options import Options, option


@dataclass(frozen=True)
class LongMemoryConfig(TrainConfig):
    """What the problems share."""

    hidden_size: int = option(64, "units of a layer", group="model", low=1)
    chrono: bool = option(
        True,
        "gates that keep the state start open for up to the whole sequence (chrono initialisation), where the cell has "
        "such gates",
        group="model",
    )


@dataclass(frozen=True)
class OneAnswerConfig(LongMemoryConfig):
    """Problems with one answer, at the end."""

    def check(self) -> None:
        super().check()
        if self.truncation != "none":
            raise UsageError(f"--truncation {self.truncation}: the only answer comes at the end; it needs none")


@dataclass(frozen=True)
class AddingConfig(OneAnswerConfig):
    """Options of ``elman train adding``."""

    length: int = option(600, "steps of a sequence", group="data", low=2)
    batch_size: int = option(50, "sequences side by side", group="optimisation", low=1)
    learning_rate: float = option(0.01, "its peak", group="optimisation", above=0)

    default_epochs = 30


@dataclass(frozen=True)
class CopyConfig(LongMemoryConfig):
    """Options of ``elman train copy``."""

    delay: int = option(100, "steps between the symbols and their repetition", group="data", low=1)
    batch_size: int = option(50, "sequences side by side", group="optimisation", low=1)
    learning_rate: float = option(0.01, "its peak", group="optimisation", above=0)

    default_epochs = 40


@dataclass(frozen=True)
class DigitsConfig(OneAnswerConfig):
    """Options of ``elman train mnist1d``."""

    validation_share: float = option(0.1, "share of the training part that validates", group="data", above=0, below=1)
    batch_size: int = option(100, "sequences side by side", group="optimisation", low=1)
    learning_rate: float = option(0.01, "its peak", group="optimisation", above=0)

    default_epochs = 50


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of ``elman evaluate`` for these problems."""

    run: str = option(dataclasses.MISSING, "the run folder", positional=True)
    part: Literal["validation", "test"] = option("test", "which sequences to score")
    format: Literal["text", "json"] = option("text", "how to print the metrics on standard output")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")


def _task(name: str, summary: str, config: type[LongMemoryConfig], file: str) -> Task:
    return Task(name, (), summary, config, {"evaluate": EvaluateOptions}, f"elman.tasks.long_memory.{file}")


ADDING = _task("adding", "adding problem: the sum of the two marked numbers of a long sequence", AddingConfig, "adding")
COPY = _task("copy", "copying problem: ten symbols, to be repeated after a long delay", CopyConfig, "copying")
MNIST1D = _task("mnist1d", "classifier of MNIST-1D: digits drawn by forty numbers", DigitsConfig, "digits")
TASKS = (ADDING, COPY, MNIST1D)
