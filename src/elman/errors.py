"""The failures a user can act on. The command line prints each as one line, without a traceback."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(Exception):
    """Something went wrong outside the code: a file, a run folder, a loss that is not a number.

    ``status`` is the exit status of the command line.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class UsageError(UserError):
    """The command or configuration itself is wrong; known before any data is read. Exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=2)


class Parser(argparse.ArgumentParser):
    """A command line whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean NAME?"`` for the nearest known name, else the list of them all."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(names)}"
