"""What a run reports: ``metrics.jsonl``, and the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

Values = Mapping[str, float | str]


class Journal:
    """The reports of one process, to the files given; without files it takes everything and writes nothing.

    All methods raise OSError where a disk is full.
    """

    def __init__(self, lines: Path | None = None, board: Path | None = None) -> None:
        self._lines = open(lines, "ab") if lines is not None else None  # noqa: SIM115  (open for the whole run)
        self._board = Board(board) if board is not None else None

    def go_on(self, step: int, size: int) -> int:
        """Forget what was written after a checkpoint that saw ``step`` and ``size`` bytes of lines.

        Returns how many of these bytes are missing.
        """
        if self._board is not None and step:
            self._board.hide_after(step)
        if self._lines is None:
            return 0
        there = self._lines.tell()
        self._lines.truncate(min(size, there))
        self._lines.seek(0, os.SEEK_END)
        return max(size - there, 0)

    def write(self, kind: str, place: Mapping[str, float], values: Values, clock: Mapping[str, float]) -> None:
        """Add a line; the board gets the ``values`` at ``place["step"]``."""
        if self._lines is not None:
            self._lines.write(json.dumps({"kind": kind, **place, **values, **clock}).encode() + b"\n")
            self._lines.flush()
        if self._board is not None:
            self._board.write(kind, {**values, **clock}, int(place["step"]))

    def sync(self) -> int:
        """Make the lines safe on disk; returns their size in bytes."""
        if self._lines is None:
            return 0
        os.fsync(self._lines.fileno())
        return self._lines.tell()

    def close(self) -> None:
        """Never raises: what a full disk refused has been told when it was written."""
        for file in (self._lines, self._board):
            if file is not None:
                with suppress(OSError):
                    file.close()


class Board:
    """An events file, written at once: `SummaryWriter` has a thread, which a full disk would end with a traceback."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("events.*")))  # TensorBoard reads the files in the order of their names
        self._file = open(folder / f"events.out.tfevents.{time.time():.0f}.{number:06d}", "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def hide_after(self, step: int) -> None:
        """Hide the later points of earlier files."""
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, kind: str, values: Values, step: int) -> None:
        """Add values under the names ``kind/name``."""
        for name, value in values.items():
            tag = f"{kind}/{name}"
            self._write(Event(step=step, summary=text(tag, value) if isinstance(value, str) else scalar(tag, value)))
        self._records.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()
