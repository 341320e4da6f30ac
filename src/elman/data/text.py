"""Text files, folders of them, and the default text: strict UTF-8, with errors that name the file."""

from __future__ import annotations

import gzip
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elman.errors import UserError

PART_NAMES = {"train": ("train",), "validation": ("valid", "validation", "val", "dev"), "test": ("test",)}
DEFAULT_TEXT_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Parts:
    """The text of each part; ``test`` is None where there is none."""

    train: str
    validation: str
    test: str | None = None


def read_text(path: str | Path, pattern: str = "*") -> str:
    """Read a UTF-8 file, a ``.gz`` file of it, or all files of a folder that match ``pattern``, in sorted order.

    Raises:
        UserError: a file is missing, unreadable, empty, binary or not UTF-8, or no file matches.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    files = sorted(
        file
        for file in path.rglob(pattern)
        if file.is_file() and not any(name.startswith(".") for name in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(f"no file in {path} matches {pattern!r}")
    return _join(_read_file(file, may_be_empty=True) for file in files)


def read_parts(
    data: str | None,
    *,
    pattern: str = "*",
    validation: str | None = None,
    test: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.0,
) -> Parts:
    """Read the parts of a text.

    A folder that holds ``train.*`` gives its own parts. Any other text is cut by characters into train, validation and
    test, in this order; a part given as a path of its own is not cut off. Without ``data`` the text is the sources of
    Python's standard library.

    Raises:
        UserError: see :func:`read_text`; also where a part would be empty.
    """
    files = named_parts(data) if data is not None else {}
    if "train" in files:
        text = _read_file(files["train"])
        validation = validation or (str(files["validation"]) if "validation" in files else None)
        test = test or (str(files["test"]) if "test" in files else None)
        test_share = 0.0
    else:
        text = standard_library() if data is None else read_text(data, pattern)
    validation_share = 0.0 if validation else validation_share
    test_share = 0.0 if test else test_share

    train_end = int(len(text) * (1 - validation_share - test_share))
    test_start = len(text) - int(len(text) * test_share)
    parts = Parts(
        train=text[:train_end],
        validation=read_text(validation, pattern) if validation else text[train_end:test_start],
        test=read_text(test, pattern) if test else (text[test_start:] or None),
    )
    if not parts.train or not parts.validation:
        raise UserError(f"{data} is too short to cut into parts: {len(text)} characters")
    return parts


def named_parts(folder: str | Path) -> dict[str, Path]:
    """The files ``train.*``, ``valid.*`` (``validation``, ``val``, ``dev``) and ``test.*`` of a folder, by part.

    Raises:
        UserError: two files claim one part.
    """
    found: dict[str, Path] = {}
    for file in sorted(Path(folder).glob("*")) if Path(folder).is_dir() else ():
        stem = file.name.split(".")[0]
        part = next((part for part, names in PART_NAMES.items() if stem in names), None)
        if part is None or not file.is_file():
            continue
        if part in found:
            raise UserError(f"{folder} holds two {part} parts: {found[part].name} and {file.name}")
        found[part] = file
    return found


def standard_library(characters: int = DEFAULT_TEXT_CHARACTERS) -> str:
    """About ``characters`` characters of Python's own library: its top-level modules by name, until there are enough.

    The same interpreter gives the same text. Files made for one machine (``_sysconfigdata*``) are left out.

    Raises:
        UserError: this Python has no sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    length = 0
    for file in sorted(folder.glob("*.py")):
        if length >= characters:
            break
        if file.name.startswith("_sysconfigdata") or not file.stat().st_size:
            continue
        texts.append(_read_file(file))
        length += len(texts[-1])
    if not texts:
        raise UserError(f"this Python has no library sources in {folder}; give a text with --data")
    return _join(texts)


def _join(texts: Iterable[str]) -> str:
    """Join texts so that each begins on a line of its own."""
    return "".join(text if text.endswith("\n") or not text else text + "\n" for text in texts)


def _read_file(path: Path, may_be_empty: bool = False) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data and not may_be_empty:
        raise UserError(f"{path} is empty")
    if b"\0" in data:
        raise UserError(f"{path} is binary, not text: it holds a zero byte at offset {data.index(0)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; convert it first"
        ) from None
