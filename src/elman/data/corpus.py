"""A prepared text: the manifest of its tokens on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elman.data.files import Source
from elman.data.recipe import Recipe
from elman.data.spans import FORMAT, read_json, shard_record, write_json
from elman.data.store import EncodedText, Shard, Shards, StoredTokens, dtype_for
from elman.data.tokenizers import Tokenizer
from elman.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A prepared text.

    Attributes:
        folder: where its tokens are.
        parts: ``train``, ``validation`` and ``test``, as far as there are any tokens for them.
    """

    folder: Path
    tokenizer: Tokenizer
    parts: Mapping[str, EncodedText]


@dataclass(frozen=True)
class Part:
    """Where a part is: in whose files, from which token to which, and how many characters it has."""

    stream: str
    start: int
    stop: int
    characters: int


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        request: recipe and files, with their sizes and times of change: what the tokens were made of.
        tokenizer: the digest of ``tokenizer.json``; ``built`` tells whether it was made from the text itself.
        types: size of the vocabulary.
        parts: by name.
        shards: of each stream, in order: name, and the record of the shard.
    """

    request: dict[str, Any]
    tokenizer: str
    built: bool
    types: int
    parts: dict[str, Part]
    shards: dict[str, list[tuple[str, dict[str, Any]]]]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """None where there is none, or a damaged one."""
        content = read_json(folder / "manifest.json")
        if content is None:
            return None
        return cls(**{**content, "parts": {name: Part(**part) for name, part in content["parts"].items()}})

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        write_json(folder / "manifest.json", asdict(self))

    def shards_of(self, folder: Path, stream: str) -> list[Shard]:
        """The shards of a stream."""
        return [Shard(folder / name, **record) for name, record in self.shards[stream]]

    def open(self, folder: Path, tokenizer: Tokenizer) -> Corpus:
        """The tokens, not read yet."""
        streams = {name: Shards(self.shards_of(folder, name), dtype_for(self.types)) for name in self.shards}
        parts = {
            name: EncodedText.stored(
                StoredTokens(streams[part.stream], part.start, part.stop), part.characters, tokenizer
            )
            for name, part in self.parts.items()
        }
        return Corpus(folder, tokenizer, parts)

    def what_changed(self, folder: Path, request: dict[str, Any], tokenizer: Tokenizer | None) -> str:
        """Why these tokens are not those of a ``request`` and a given ``tokenizer``; empty where they are."""
        if self.request["format"] != request["format"]:
            return "prepared texts have another form now"
        for part, files in request["files"].items():
            known = {file[0]: file for file in self.request["files"].get(part, [])}
            for file in files:
                if file[0] not in known:
                    return f"{file[0]} is new"
                if known.pop(file[0]) != file:
                    return f"{file[0]} has changed"
            if known:
                return f"{next(iter(known))} is gone"
        if self.request != request:
            return "the parts have changed"
        if self.tokenizer != digest_of(tokenizer) if tokenizer is not None else not self.built:
            return "the vocabulary is another one"
        try:
            if digest_of(Tokenizer.load(folder / "tokenizer.json")) != self.tokenizer:
                return f"{folder / 'tokenizer.json'} has changed"
        except UserError as error:
            return str(error)
        for stream in self.shards:
            for shard in self.shards_of(folder, stream):
                if not shard.whole(dtype_for(self.types)):
                    return f"{shard.path} is not whole"
        return ""


def request_of(recipe: Recipe, streams: dict[str, list[Source]]) -> dict[str, Any]:
    """All that decides the tokens of a text, as JSON."""
    files = {part: [list(asdict(source).values()) for source in sources] for part, sources in streams.items()}
    return {"format": FORMAT, "recipe": asdict(recipe), "files": files}


def records(folder: Path, shards: list[Shard]) -> list[tuple[str, dict[str, Any]]]:
    """Shards as a manifest has them."""
    return [(str(shard.path.relative_to(folder)), shard_record(shard)) for shard in shards]


def digest_of(tokenizer: Tokenizer) -> str:
    """Names a tokenizer by its content."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
