"""From files to documents: spans of text, JSON lines, CSV and Parquet, a piece at a time."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from elman.data.files import Source, opened, parquet, reading
from elman.errors import UserError

PIECE_BYTES = 1 << 20  # of a file at a time: bounds the memory that reading takes
SPAN_BYTES = 64 << 20  # of a file, or of one row group after another, read by one process
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """Some text, and whether a document ends behind it."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Span:
    """The part of a file that one process reads.

    Attributes:
        begin, end: bytes; of Parquet, row groups. A file that must be read from its start is one span.
        field: the column or key that holds the text.
        own_lines: a line end is added to a text file without one, because others follow.
    """

    source: Source
    begin: int
    end: int
    field: str = "text"
    own_lines: bool = False


def spans_of(sources: list[Source], field: str) -> list[Span]:
    """All spans of some files, in order. Compressed files and CSV can only be read from their start: one span each.

    Raises:
        UserError: a file cannot be read.
    """
    spans = []
    for source in sources:
        if source.format == "parquet":
            places = _row_groups(source)
        elif source.compression or source.format in ("csv", "tsv"):
            places = [0, source.size]
        else:
            places = _boundaries(source)
        own_lines = len(sources) > 1
        spans += [Span(source, begin, end, field, own_lines) for begin, end in itertools.pairwise(places)]
    return spans


def pieces(span: Span) -> Iterator[Piece]:
    """The text of a span. Documents are files of text, and lines or rows of the others, each with a line end.

    Raises:
        UserError: the file is unreadable, damaged, binary or not UTF-8, or has no such field; the message says where.
    """
    source = span.source
    if source.format == "parquet":
        with reading(source):
            yield from _parquet_rows(span)
        return
    with opened(source) as stream:
        if source.format == "text":
            yield from _plain_text(span, stream)
        elif source.format == "jsonl":
            yield from _json_lines(span, stream)
        else:
            yield from _table_rows(span, stream)


def _row_groups(source: Source) -> list[int]:
    """Where spans of a Parquet file begin, and its end."""
    with reading(source), parquet(source) as file:
        sizes = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
    places, size = [0], 0
    for index, more in enumerate(sizes):
        if size and size + more > SPAN_BYTES:
            places.append(index)
            size = 0
        size += more
    return [*places, len(sizes)]


def _boundaries(source: Source) -> list[int]:
    """Where spans of a plain file begin, and its end: at lines, or where a text has none for long, at words."""
    places = [0]
    with opened(source) as stream:
        while source.size - places[-1] > SPAN_BYTES * 5 // 4:
            place = places[-1] + SPAN_BYTES
            stream.seek(place)
            after = stream.read(PIECE_BYTES)
            if b"\n" in after:
                place += after.index(b"\n") + 1
            elif source.format == "jsonl":
                place += len(after) + len(stream.readline())
            elif b" " in after:
                place += after.index(b" ")
            else:
                place += next((n for n, byte in enumerate(after) if byte & 0xC0 != 0x80), len(after))
            if place >= source.size:
                break
            places.append(place)
    return [*places, source.size]


def _plain_text(span: Span, stream: BinaryIO) -> Iterator[Piece]:
    last = "\n"
    for text in _texts(span, stream, lines=False):
        last = text[-1:] or last
        yield Piece(text, False)
    if span.end == span.source.size:
        yield Piece("\n" if span.own_lines and last != "\n" else "", True)


def _json_lines(span: Span, stream: BinaryIO) -> Iterator[Piece]:
    number = 0
    after = f" after byte {span.begin}" if span.begin else ""
    for text in _texts(span, stream, lines=True):
        for line in text.removesuffix("\n").split("\n"):
            number += 1
            if not line.strip():
                continue
            place = f"{span.source.path}, line {number}{after}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place} is not JSON: {error}") from None
            if isinstance(record, dict):
                record = _field(record, span.field, place)
            yield _document(record, place, span.field)


def _table_rows(span: Span, stream: BinaryIO) -> Iterator[Piece]:
    path = span.source.path
    delimiter = "\t" if span.source.format == "tsv" else ","
    lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        column = _field({name: index for index, name in enumerate(header)}, span.field, path)
        for row in rows:
            if not row:
                continue
            place = f"{path}, line {rows.line_num}"
            if len(row) <= column:
                raise UserError(f"{place} has {len(row)} columns; {span.field!r} is column {column + 1}")
            yield _document(row[column], place, span.field)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text near line {rows.line_num + 1}: {error.reason}") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is not CSV: {error}") from None
    finally:
        lines.detach()  # whoever opened the stream closes it


def _parquet_rows(span: Span) -> Iterator[Piece]:
    path = span.source.path
    with parquet(span.source) as file:
        _field(dict.fromkeys(file.schema_arrow.names), span.field, path)
        groups = list(range(span.begin, span.end))
        number = sum(file.metadata.row_group(index).num_rows for index in range(span.begin))
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[span.field]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _document(value, f"{path}, row {number}", span.field)


def _field(record: dict[str, Any], field: str, place: str) -> Any:
    if field not in record:
        names = ", ".join(map(str, list(record)[:8])) or "none"
        raise UserError(f"{place} has no field {field!r}; it has {names}; --field chooses one")
    return record[field]


def _document(value: object, place: str, field: str) -> Piece:
    if not isinstance(value, str):
        raise UserError(f"{place}: {field!r} must be a text, got {type(value).__name__}")
    if "\0" in value:
        raise UserError(f"{place}: {field!r} is binary, not text: it holds a zero character")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half a character
        raise UserError(f"{place}: {field!r} is not Unicode text: it holds a lone surrogate") from None
    return Piece(value if value.endswith("\n") else value + "\n", True)


def _texts(span: Span, stream: BinaryIO, lines: bool) -> Iterator[str]:
    """The text of a span in pieces that end at lines, or where ``lines`` is false and a line is long, at words."""
    if span.begin:
        stream.seek(span.begin)
    left = span.end - span.begin if not span.source.compression else None
    offset, held = span.begin, b""
    while True:
        data = stream.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if left is not None:
            left -= len(data)
        if not offset and not held:
            mark = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
            data, offset = data[mark:], mark
        held += data
        cut = len(held) if not data else _cut(held, lines)
        if cut:
            yield _decoded(span.source, held[:cut], offset)
            offset += cut
            held = held[cut:]
        if not data:
            return


def _cut(data: bytes, lines: bool) -> int:
    """Where to cut: behind the last line end, else before the last space, else before an unfinished character."""
    place = data.rfind(b"\n") + 1
    if place or lines:
        return place
    place = data.rfind(b" ")
    if place > 0:
        return place
    return max(len(data) - 4, 0) + next((n for n, byte in enumerate(data[-4:]) if byte & 0xC0 == 0xC0), 4)


def _decoded(source: Source, data: bytes, offset: int) -> str:
    if b"\0" in data:
        raise UserError(f"{source.path} is binary, not text: it holds a zero byte at offset {offset + data.index(0)}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source.path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {offset + error.start}; "
            f"convert it first"
        ) from None
