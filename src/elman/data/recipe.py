"""What decides a text's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from elman.data.files import Format, Source, find_sources, named_parts
from elman.data.standard_library import standard_library_files
from elman.data.tokenizers import Kind


@dataclass(frozen=True)
class Recipe:
    """Where a text is, how it is cut into parts and what its tokens are; see docs/data.md.

    All fields but ``whole`` are options of the tasks that read text, under the same names. ``whole`` takes a text as
    one part, ``train``; of a folder that names parts it takes the one to test, else the one to validate.
    """

    data: str | None = None
    pattern: str = "*"
    validation: str | None = None
    test: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.0
    data_format: Format | None = None
    field: str = "text"
    tokenizer: Kind = "char"
    vocab_size: int | None = None
    min_frequency: int = 1
    whole: bool = False

    @classmethod
    def of(cls, options: Any) -> Recipe:
        """From options that have the fields."""
        names = [field.name for field in fields(cls) if field.name != "whole"]
        return cls(**{name: getattr(options, name) for name in names})

    def streams(self) -> dict[str, list[Source]]:
        """The files of each part that has some of its own; :meth:`shares` are cut off ``train``.

        Raises:
            UserError: there are none, or two files claim one part.
        """
        named = named_parts(self.data) if self.data is not None else {}
        if named and self.whole:
            chosen = part_to_score(named)
            found = {"train": [file for entry in chosen for file in self._files(entry)]}
        elif named:
            found = {part: [file for entry in named[part] for file in self._files(entry)] for part in named}
        elif self.data is not None:
            found = {"train": self._files(self.data)}
        else:
            found = {"train": [Source.of(file, "text") for file in standard_library_files()]}
        given = {"validation": self.validation, "test": self.test}
        return {**found, **{part: self._files(path) for part, path in given.items() if path}}

    def shares(self, streams: dict[str, list[Source]]) -> tuple[float, float]:
        """What is cut off the training files to validate and to test. Named parts leave nothing to test."""
        if self.whole:
            return 0.0, 0.0
        test = "test" in streams or (self.data is not None and bool(named_parts(self.data)))
        return 0.0 if "validation" in streams else self.validation_share, 0.0 if test else self.test_share

    def name(self) -> str:
        """Of the folder that keeps the tokens; other files or settings give another one."""
        stem = Path(self.data).name if self.data is not None else "python"
        return f"{stem}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]}"

    def _files(self, path: str | Path) -> list[Source]:
        return find_sources(path, self.pattern, self.data_format)


def part_to_score(named: Mapping[str, list[Path]]) -> list[Path]:
    """The files of the part to test, else of the one to validate, else of the one to train on."""
    return named.get("test") or named.get("validation") or named["train"]
