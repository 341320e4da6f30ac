"""What one process does for a text that is prepared: count what a span holds, or write its tokens."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elman.data.readers import Piece, Span, pieces
from elman.data.store import Shard, checksums, dtype_for
from elman.data.tokenizers import Kind, Tokenizer, count

FORMAT = 1  # of counts and shards; another number prepares everything anew
BLOCK_CHARACTERS = 1 << 20  # encoded at a time: bounds the memory
SHARD_CHARACTERS = 64 << 20


@dataclass(frozen=True)
class Counting:
    """To count the characters of a span, and how often each token of a ``kind`` occurs, up to ``limit`` characters."""

    span: Span
    folder: Path
    kind: Kind | None
    limit: int | None = None

    @property
    def path(self) -> Path:
        """Where the result is kept."""
        return self.folder / f"{_key(self.span, self.kind, self.limit)}.json"


@dataclass(frozen=True)
class Counted:
    """What a span holds."""

    characters: int
    tokens: Counter[str]


def counted(task: Counting) -> Counted:
    """Count a span, or take what was counted before."""
    kept = read_json(task.path)
    if kept is not None:
        return Counted(kept["characters"], Counter(kept["tokens"]))
    characters, tokens = 0, Counter[str]()
    for block in _blocks(task.span, (task.limit,) if task.limit else ()):
        text = "".join(piece.text for piece in block)
        characters += len(text)
        if task.kind is not None:
            tokens.update(count(task.kind, text))
        if characters == task.limit:
            break
    write_json(task.path, {"characters": characters, "tokens": tokens})
    return Counted(characters, tokens)


@dataclass(frozen=True)
class Encoding:
    """To write the tokens of a span.

    Attributes:
        tokenizer: a ``tokenizer.json``, and the digest of its content.
        cuts: a part of the text begins behind so many characters of the span.
    """

    span: Span
    folder: Path
    tokenizer: tuple[Path, str]
    cuts: tuple[int, ...]


def encoded(task: Encoding) -> list[Shard]:
    """The shards of a span. Those that an earlier start has finished are kept; the others are written."""
    key = _key(task.span, task.tokenizer[1], task.cuts)
    tokenizer = _tokenizer(*task.tokenizer)
    shards: list[Shard] = []
    blocks: Iterator[list[Piece]] | None = None
    position = 0
    while not shards or not shards[-1].last:
        path = task.folder / f"{key}-{len(shards):05d}.tokens"
        kept = read_json(path.with_suffix(".json"))
        shard = Shard(path, **kept) if kept is not None else None
        if shard is None or not shard.whole(dtype_for(tokenizer.size)):
            blocks = blocks or _behind(_blocks(task.span, task.cuts), position)
            shard = _write_shard(path, blocks, position, task.cuts, tokenizer)
        else:
            blocks = None
        shards.append(shard)
        position += shard.characters
    return shards


def _write_shard(
    path: Path, blocks: Iterator[list[Piece]], position: int, cuts: tuple[int, ...], tokenizer: Tokenizer
) -> Shard:
    """Write a shard of the next blocks, which begin behind ``position`` characters of the span: whole or not at all."""
    dtype = dtype_for(tokenizer.size)
    partial = path.with_suffix(".partial")
    characters = tokens = 0
    ends: list[int] = []
    found: list[tuple[int, int]] = []
    last = True
    with open(partial, "wb") as file:
        for block in blocks:
            numbers, counts = tokenizer.encode_each([piece.text for piece in block])
            file.write(numbers.astype(dtype).tobytes())
            places = (tokens + np.cumsum(counts)).tolist()
            ends += [place for place, piece in zip(places, block, strict=True) if piece.ends]
            tokens += len(numbers)
            characters += sum(len(piece.text) for piece in block)
            if position + characters in cuts:
                found.append((position + characters, tokens))
            if characters >= SHARD_CHARACTERS:
                last = False
                break
        file.flush()
        os.fsync(file.fileno())
    data = np.array(ends, dtype="<u4").tobytes()
    shard = Shard(path, tokens, characters, len(ends), checksums(partial), zlib.crc32(data), found, last)
    shard.ends.write_bytes(data)
    os.replace(partial, path)
    write_json(path.with_suffix(".json"), shard_record(shard))
    return shard


def shard_record(shard: Shard) -> dict[str, Any]:
    """A shard as JSON, without its path."""
    return {name: value for name, value in asdict(shard).items() if name != "path"}


def read_json(path: Path) -> dict[str, Any] | None:
    """What :func:`write_json` wrote; None where there is nothing or it is damaged, so that it is made again."""
    try:
        record = json.loads(path.read_bytes())
        content = json.dumps(record["content"])
        return record["content"] if zlib.crc32(content.encode()) == record["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a checksummed record, whole or not at all."""
    text = json.dumps(content)
    partial = path.with_suffix(".json.partial")
    partial.write_text(f'{{"crc32": {zlib.crc32(text.encode())}, "content": {text}}}\n', encoding="utf-8")
    os.replace(partial, path)


def _blocks(span: Span, cuts: tuple[int, ...]) -> Iterator[list[Piece]]:
    """The pieces of a span in blocks of some BLOCK_CHARACTERS; one ends at each cut."""
    block: list[Piece] = []
    size = position = 0
    for piece in pieces(span):
        for part in _cut(piece, [cut - position for cut in cuts]):
            block.append(part)
            size += len(part.text)
            position += len(part.text)
            if size >= BLOCK_CHARACTERS or position in cuts:
                yield block
                block, size = [], 0
    if block:
        yield block


def _cut(piece: Piece, places: list[int]) -> list[Piece]:
    inside = [0, *(place for place in sorted(places) if 0 < place < len(piece.text)), len(piece.text)]
    parts = [Piece(piece.text[begin:end], False) for begin, end in itertools.pairwise(inside)]
    return [*parts[:-1], parts[-1]._replace(ends=piece.ends)]


def _behind(blocks: Iterator[list[Piece]], position: int) -> Iterator[list[Piece]]:
    """The blocks behind the first ``position`` characters; some block ends there."""
    passed = 0
    for block in blocks:
        if passed >= position:
            yield block
        passed += sum(len(piece.text) for piece in block)


def _key(span: Span, *more: object) -> str:
    """Names what is made of a span: another file, state of the file or tokenizer gives another name."""
    return hashlib.sha256(repr((FORMAT, BLOCK_CHARACTERS, asdict(span), *more)).encode()).hexdigest()[:20]


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, digest: str) -> Tokenizer:
    """Read once a process; ``digest`` tells whether it is still the same."""
    return Tokenizer.load(path)
