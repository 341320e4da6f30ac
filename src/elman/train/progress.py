"""What the user sees while a run goes on: a bar on a terminal, plain lines elsewhere. All on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Shows lines and the state of the run. A context manager: the bar ends with it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        if self._stream.isatty():
            console = Console(file=self._stream)
            self._bar = Progress(
                BarColumn(), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"), console=console
            )
            self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def update(self, progress: float, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Show where the run is: on the bar at once, as a line every few seconds."""
        now = time.monotonic()
        if self._bar is not None:
            text = f"step {step} · loss {loss:.3f} · {tokens_per_second:,.0f} tokens/s · {clock(seconds_left)} left"
            self._bar.update(self._task, completed=progress, description=text)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.say(
                f"{progress:4.0%}  step {step}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  "
                f"{clock(seconds_left)} left"
            )


def clock(seconds: float) -> str:
    """``75.2`` is ``1:15``; ``3675`` is ``1:01:15``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
