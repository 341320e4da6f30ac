"""The default text: the sources of Python's own library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from elman.errors import UserError

CHARACTERS = 2_000_000


def standard_library_files(characters: int = CHARACTERS) -> list[Path]:
    """Top-level modules by name, until they have ``characters`` characters.

    The same interpreter gives the same text. Files made for one machine (``_sysconfigdata*``) are left out.

    Raises:
        UserError: this Python has no sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    length = 0
    for file in sorted(folder.glob("*.py")):
        if length >= characters:
            break
        if file.name.startswith("_sysconfigdata") or not file.stat().st_size:
            continue
        files.append(file)
        length += len(file.read_text(encoding="utf-8-sig"))
    if not files:
        raise UserError(f"this Python has no library sources in {folder}; give a text with --data")
    return files
