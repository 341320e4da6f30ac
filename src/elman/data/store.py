"""Tokens on disk: shards that are mapped into memory, checked when they are first read, and let go again."""

from __future__ import annotations

import bisect
import hashlib
import mmap
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from elman.data.tokenizers import Tokenizer, Tokens
from elman.errors import UserError

BLOCK = 1 << 20  # bytes that have a checksum of their own
MAPS = 256  # shards mapped at a time
RESIDENT = 64 << 20  # bytes that may be mapped before pages are given back
AROUND = 1 << 21  # bytes that the system may map around one that is touched: a huge page


class TokenSequence(Protocol):
    """Tokens in memory (an array) or on disk (`StoredTokens`): what is not sliced is not read."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tokens: ...


@dataclass(frozen=True)
class Shard:
    """A file of tokens, and beside it one of where documents end.

    Attributes:
        path: the tokens, in the store's dtype; with the suffix ``.ends`` uint32, how many tokens stand before the end
            of each document that ends here.
        tokens, characters, documents: how many.
        checksums: CRC-32 of each BLOCK bytes of the tokens, and of all ends.
        cuts: pairs: characters, and how many tokens they make, where the encoder was told to cut.
        last: whether it is the last of its span.
    """

    path: Path
    tokens: int
    characters: int
    documents: int
    checksums: Sequence[int]
    ends_checksum: int
    cuts: Sequence[Sequence[int]]
    last: bool

    @property
    def ends(self) -> Path:
        return self.path.with_suffix(".ends")

    def whole(self, dtype: np.dtype[Any]) -> bool:
        """Whether both files are there in full size."""
        try:
            sizes = self.path.stat().st_size, self.ends.stat().st_size
        except OSError:
            return False
        return sizes == (self.tokens * dtype.itemsize, self.documents * 4)


class Shards:
    """The shards of one stream of tokens, in order."""

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype[Any]) -> None:
        self.shards = [shard for shard in shards if shard.tokens]  # an empty file cannot be mapped
        self.dtype = dtype
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)]).tolist()
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()
        self._checked: dict[Path, bytearray] = {}
        self._touched = 0
        self._resident: set[Path] = set()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> Tokens:
        """The tokens ``start`` to ``stop``, int32. Raises UserError where a shard is missing or damaged."""
        parts = [np.zeros(0, dtype=np.int32)]
        for index in range(bisect.bisect_right(self.starts, start) - 1, len(self.shards)):
            begin = self.starts[index]
            if begin >= stop:
                break
            parts.append(self._tokens(self.shards[index], max(start - begin, 0), stop - begin))
        return np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def ends(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Where documents end, behind which token, as positions in ``start`` to ``stop``."""
        parts = [np.zeros(0, dtype=np.int64)]
        for index in range(max(bisect.bisect_left(self.starts, start) - 1, 0), len(self.shards)):
            begin, shard = self.starts[index], self.shards[index]
            if begin >= stop:
                break
            if shard.documents:
                data = np.frombuffer(self._map(shard.ends), dtype="<u4")
                if shard.ends not in self._checked:
                    _check(shard.ends, data, shard.ends_checksum)
                    self._checked[shard.ends] = bytearray(b"\1")
                low, high = np.searchsorted(data, [max(start - begin, 0), max(stop - begin, 0)]).tolist()
                parts.append(data[low:high].astype(np.int64) + begin)
        return np.concatenate(parts)

    def _tokens(self, shard: Shard, start: int, stop: int) -> Tokens:
        size = self.dtype.itemsize
        stop = min(stop, shard.tokens)
        data = np.frombuffer(self._map(shard.path), dtype=np.uint8)
        if len(data) != shard.tokens * size:
            raise UserError(f"{shard.path} is damaged: it has {len(data)} bytes, not {shard.tokens * size}; delete it")
        checked = self._checked.setdefault(shard.path, bytearray(len(shard.checksums)))
        for block in range(start * size // BLOCK, -(-stop * size // BLOCK)):
            if not checked[block]:
                _check(shard.path, data[block * BLOCK : (block + 1) * BLOCK], shard.checksums[block])
                checked[block] = True
                self._touched += BLOCK
        self._touched += (stop - start) * size + AROUND
        tokens = data[start * size : stop * size].view(self.dtype).astype(np.int32)
        self._resident.add(shard.path)
        if self._touched > RESIDENT:
            for path in self._resident & self._maps.keys():
                self._maps[path].madvise(mmap.MADV_DONTNEED)
            self._touched, self._resident = 0, set()
        return tokens

    def _map(self, path: Path) -> mmap.mmap:
        if path in self._maps:
            self._maps.move_to_end(path)
            return self._maps[path]
        try:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot read the tokens in {path}: {why}; start again to prepare them anew") from None
        if len(self._maps) > MAPS:
            self._maps.popitem(last=False)
        return self._maps[path]


class StoredTokens:
    """A stretch of a stream, sliced like an array."""

    def __init__(self, shards: Shards, start: int, stop: int) -> None:
        self._shards = shards
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> Tokens:
        start, stop, step = part.indices(len(self))
        return self._shards.read(self._start + start, self._start + max(start, stop))[::step]

    def document_starts(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The positions in ``start`` to ``stop`` at which a new document begins, but for the first of the stream."""
        return self._shards.ends(self._start + start, self._start + stop) - self._start

    def documents(self) -> int:
        """How many end here at most: those of all shards that the stretch touches."""
        shards = zip(self._shards.starts, self._shards.shards, strict=False)
        return sum(s.documents for begin, s in shards if begin < self._stop and begin + s.tokens > self._start)

    def digest(self) -> str:
        """Names the tokens, wherever they lie: those of the same files, cut at the same places, have the same."""
        value = hashlib.sha256(f"{self._shards.dtype.str} {self._start} {self._stop}".encode())
        for begin, shard in zip(self._shards.starts, self._shards.shards, strict=False):
            if begin < self._stop and begin + shard.tokens > self._start:
                value.update(f"{shard.tokens} {list(shard.checksums)}".encode())
        return value.hexdigest()


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        tokens: int32 [N].
        characters: of all tokens but the first, which is never predicted.
        digest: names the tokens.
    """

    tokens: TokenSequence
    characters: int
    digest: str

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> EncodedText:
        """A text in memory."""
        tokens = tokenizer.encode(text)
        characters = len(text) - len(tokenizer.decode(tokens[:1]))
        return cls(tokens, characters, hashlib.sha256(tokens.tobytes()).hexdigest())

    @classmethod
    def stored(cls, tokens: StoredTokens, characters: int, tokenizer: Tokenizer) -> EncodedText:
        """A text on disk, of so many characters."""
        return cls(tokens, characters - len(tokenizer.decode(tokens[:1])), tokens.digest())


def dtype_for(vocabulary: int) -> np.dtype[Any]:
    """The smallest that holds the numbers of so many tokens."""
    return np.dtype("<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4")


def checksums(path: Path) -> list[int]:
    """CRC-32 of each BLOCK bytes of a file."""
    with open(path, "rb") as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]


def _check(path: Path, data: npt.NDArray[Any], expected: int) -> None:
    if zlib.crc32(data.tobytes()) != expected:
        raise UserError(f"{path} is damaged: its checksum does not match; delete it and start again")
