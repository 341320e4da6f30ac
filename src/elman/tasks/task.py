"""What a task is to the command line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elman.train.config import TrainConfig
from elman.train.options import Options


@dataclass(frozen=True)
class Task:
    """A job that runs from one command.

    Attributes:
        name: as in ``elman train NAME``.
        aliases: further names.
        summary: one line.
        config: the options of ``train``; importing them needs no torch.
        options: the options of the task's other commands (``evaluate``, ``generate``, ``predict``), by command.
        module: holds a function for each command, ``train(given)`` and ``COMMAND(options)``; it is imported when used.
    """

    name: str
    aliases: tuple[str, ...]
    summary: str
    config: type[TrainConfig]
    options: Mapping[str, type[Options]]
    module: str

    def command(self, name: str) -> Any:
        """The function that carries out a command."""
        return getattr(importlib.import_module(self.module), name)
