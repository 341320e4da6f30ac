"""Which files hold a text, what form each has, and how it is opened."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

from elman.errors import UserError

Format = Literal["text", "jsonl", "csv", "tsv", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd"}
PART_NAMES = {"train": ("train",), "validation": ("valid", "validation", "val", "dev"), "test": ("test",)}
NUMBERED = r"(?:[-_]\d+(?:-of-\d+)?)?"  # train-00003-of-00010.parquet


@dataclass(frozen=True)
class Source:
    """A file that holds text.

    Attributes:
        size, modified: bytes, and nanoseconds since 1970, when it was found: they tell whether it has changed.
    """

    path: str
    format: Format
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path, format: Format | None = None) -> Source:
        """A file as it is now; ``format`` None goes by its name. Raises UserError where there is none."""
        try:
            state = path.stat()
        except FileNotFoundError:
            raise UserError(f"no such file or folder: {path}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        name = path.with_suffix("") if path.suffix in COMPRESSIONS else path
        return cls(str(path), format or SUFFIXES.get(name.suffix, "text"), state.st_size, state.st_mtime_ns)

    @property
    def compression(self) -> str | None:
        """``gzip``, ``bzip2``, ``xz``, ``zstd``, or None."""
        return COMPRESSIONS.get(Path(self.path).suffix)


def find_sources(path: str | Path, pattern: str = "*", format: Format | None = None) -> list[Source]:
    """A file, or all files of a folder that match ``pattern``, in sorted order; hidden and empty ones are left out.

    Raises:
        UserError: there is none, or a file given by its name is empty.
    """
    path = Path(path)
    if not path.is_dir():
        source = Source.of(path, format)
        if not source.size and path.is_file():
            raise UserError(f"{path} is empty")
        return [source]
    try:
        files = sorted(file for file in path.rglob(pattern) if file.is_file() and not _hidden(file, path))
    except (ValueError, NotImplementedError):
        raise UserError(f"--pattern {pattern!r} is no pattern of file names, such as *.txt") from None
    if not files:
        raise UserError(f"no file in {path} matches {pattern!r}")
    sources = [source for source in (Source.of(file, format) for file in files) if source.size]
    if not sources:
        raise UserError(f"every file in {path} that matches {pattern!r} is empty")
    return sources


def named_parts(folder: str | Path) -> dict[str, list[Path]]:
    """The parts that a folder names, where it has one for training: else nothing.

    A part is a file ``train.*``, numbered files ``train-00000.*``, or a folder ``train``; the others are called
    ``valid`` (``validation``, ``val``, ``dev``) and ``test``.

    Raises:
        UserError: two files claim one part.
    """
    found: dict[str, list[Path]] = {}
    for entry in sorted(Path(folder).glob("*")) if Path(folder).is_dir() else ():
        stem = entry.name.split(".")[0]
        for part, names in PART_NAMES.items():
            if any(re.fullmatch(name + NUMBERED, stem) for name in names):
                found.setdefault(part, []).append(entry)
    if "train" not in found:
        return {}
    for part, entries in found.items():
        if len(entries) > 1 and (
            any(entry.is_dir() or entry.name.split(".")[0] in PART_NAMES[part] for entry in entries)
        ):
            raise UserError(f"{folder} holds two {part} parts: {' and '.join(entry.name for entry in entries[:2])}")
    return found


def _hidden(file: Path, folder: Path) -> bool:
    return any(name.startswith(".") for name in file.relative_to(folder).parts)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as they are read; errors within name the file.

    Raises:
        UserError: it cannot be read, is not whole, or pyarrow is missing.
    """
    with reading(source), _open(source) as stream:
        yield stream


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a UserError that names it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source.path} is not a whole {source.compression} file: {error}") from None
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {source.path}") from None
    except (OSError, ValueError) as error:  # bz2 and pyarrow raise these for damage
        text = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if source.compression and getattr(error, "errno", None) is None:
            raise UserError(f"{source.path} is not a whole {source.compression} file: {text}") from None
        raise UserError(f"cannot read {source.path}: {text}") from None


def _open(source: Source) -> BinaryIO:
    openers: dict[str | None, Callable[[str], Any]] = {
        None: lambda path: open(path, "rb"),  # noqa: SIM115  (the caller closes it)
        "gzip": gzip.open,
        "bzip2": bz2.open,
        "xz": lzma.open,
        "zstd": lambda path: io.BufferedReader(_arrow(source).input_stream(path, compression="zstd")),
    }
    return cast(BinaryIO, openers[source.compression](source.path))


def _arrow(source: Source) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{source.path} needs pyarrow: pip install 'elman[data]'") from None
    return pyarrow


def parquet(source: Source) -> Any:
    """An open ``pyarrow.parquet.ParquetFile``; use it within :func:`reading`. Raises UserError without pyarrow."""
    if source.compression:
        raise UserError(f"{source.path}: a Parquet file is compressed inside; decompress it to read it")
    _arrow(source)
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source.path)


FORMATS: tuple[str, ...] = get_args(Format)
csv.field_size_limit(1 << 27)  # a document may be longer than the library's 128 kB
