"""Preparing a text: tokens on disk, made once, kept, and made again where something has changed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from elman.data.corpus import Corpus, Manifest, Part, digest_of, records, request_of
from elman.data.files import Source
from elman.data.readers import Span, pieces, spans_of
from elman.data.recipe import Recipe
from elman.data.spans import Counted, Counting, Encoding, counted, encoded
from elman.data.store import Shard
from elman.data.tokenizers import Tokenizer, check_vocabulary_size
from elman.data.workers import available_cores, in_processes
from elman.errors import UsageError, UserError

SMALL = 32 << 20  # bytes: less is not worth a second process
SECONDS_BETWEEN_LINES = 10.0
Say = Callable[[str], None]
Task = TypeVar("Task", Counting, Encoding)
Result = TypeVar("Result")


def prepare(
    recipe: Recipe,
    cache: str | Path,
    say: Say,
    *,
    tokenizer: Tokenizer | None = None,
    processes: int | None = None,
) -> Corpus:
    """The tokens of a text, from ``cache`` where they are there and nothing has changed.

    Killed at any moment, it goes on where it was; shards of files that have not changed are kept. Of several processes
    that want the same tokens, on one machine, one makes them and the others wait.

    Args:
        cache: a folder; the tokens have one of their own in it.
        say: hears of what takes long, and of what has changed.
        tokenizer: instead of one made from the training part.
        processes: that read and tokenise; by default one a core.

    Raises:
        UserError: a file cannot be read (see `elman.data.readers`), a part would be empty, the cache cannot be written.
    """
    check_vocabulary_size(recipe.tokenizer, recipe.vocab_size)
    streams = recipe.streams()
    folder = Path(cache).absolute() / recipe.name()
    if recipe.data is not None and Path(recipe.data).is_dir() and folder.is_relative_to(recipe.data):
        raise UsageError(f"tokens would be kept in {folder}, among the text itself: choose another --cache")
    try:
        with _locked(folder, say):
            return _Preparation(recipe, streams, folder, say, tokenizer, processes or available_cores()).corpus()
    except OSError as error:
        raise UserError(
            f"cannot keep tokens in {folder}: {error.strerror or error}; --cache chooses another folder"
        ) from None


@contextlib.contextmanager
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Preparation:
    """One start of :func:`prepare`."""

    def __init__(
        self,
        recipe: Recipe,
        streams: dict[str, list[Source]],
        folder: Path,
        say: Say,
        tokenizer: Tokenizer | None,
        processes: int,
    ) -> None:
        self.recipe = recipe
        self.streams = streams
        self.folder = folder
        self.say = say
        self.given = tokenizer
        self.size = sum(source.size for sources in streams.values() for source in sources)
        self.processes = processes if self.size > SMALL else 1
        self.request = request_of(recipe, streams)
        self.used: set[Path] = set()

    def corpus(self) -> Corpus:
        """The tokens that are there, if nothing has changed; else new ones."""
        before = Manifest.read(self.folder)
        changed = before.what_changed(self.folder, self.request, self.given) if before is not None else ""
        if before is not None and not changed:
            return before.open(self.folder, self.given or Tokenizer.load(self.folder / "tokenizer.json"))
        if changed:
            self.say(f"{changed}: preparing {self.folder} anew")
        began = time.monotonic()
        manifest, tokenizer = self.make()
        seconds = time.monotonic() - began
        if seconds > SECONDS_BETWEEN_LINES:
            self.say(f"prepared {self.size / 1e6:,.0f} MB in {seconds:.0f} s, {self.size / 1e6 / seconds:.1f} MB/s")
        return manifest.open(self.folder, tokenizer)

    def make(self) -> tuple[Manifest, Tokenizer]:
        """Count, make a vocabulary, write tokens and manifest."""
        for name in ("counts", "shards"):
            (self.folder / name).mkdir(exist_ok=True)
        spans = {part: spans_of(files, self.recipe.field) for part, files in self.streams.items()}
        counts = self.count(spans["train"])
        cuts = self.cuts(counts)
        tokenizer = self.given or self.vocabulary(spans["train"], counts, cuts)
        file = self.folder / "tokenizer.json"
        file.write_text(tokenizer.to_json(), encoding="utf-8")
        shards = {}
        for part in spans:
            inner = _inside(counts, cuts) if part == "train" and cuts else [()] * len(spans[part])
            tasks = [
                Encoding(span, self.folder / "shards", (file, digest_of(tokenizer)), places)
                for span, places in zip(spans[part], inner, strict=True)
            ]
            shards[part] = list(self.run("tokenising", encoded, tasks))
        manifest = Manifest(
            self.request,
            digest_of(tokenizer),
            self.given is None,
            tokenizer.size,
            self.parts(shards, cuts),
            {part: records(self.folder, list(itertools.chain(*lists))) for part, lists in shards.items()},
        )
        manifest.write(self.folder)
        self.clean(manifest)
        return manifest, tokenizer

    def count(self, spans: list[Span]) -> list[Counted]:
        """What the training files hold, where a vocabulary or a cut depends on it."""
        kind = self.recipe.tokenizer if self.given is None and self.recipe.tokenizer != "bpe" else None
        if kind is None and not any(self.recipe.shares(self.streams)):
            return []
        return list(self.run("counting", counted, [Counting(span, self.folder / "counts", kind) for span in spans]))

    def cuts(self, counts: list[Counted]) -> list[int]:
        """Behind how many characters of the training files training and validation end; none where nothing is cut."""
        validation, test = self.recipe.shares(self.streams)
        if not validation and not test:
            return []
        characters = sum(span.characters for span in counts)
        ends = [int(characters * (1 - validation - test)), characters - int(characters * test)]
        if not ends[0] or (validation and ends[0] == ends[1]):
            raise UserError(f"{self.recipe.data} is too short to cut into parts: {characters} characters")
        return ends

    def vocabulary(self, spans: list[Span], counts: list[Counted], cuts: list[int]) -> Tokenizer:
        """The tokenizer that the training part gives."""
        recipe = self.recipe
        if recipe.tokenizer == "bpe":
            if self.size > SMALL:
                self.say(f"learning byte pairs from {self.size / 1e6:,.0f} MB")
            texts = _texts(spans, cuts[0] if cuts else None)
            return Tokenizer.byte_pairs(texts, vocab_size=recipe.vocab_size, min_frequency=recipe.min_frequency)
        total: Counter[str] = Counter()
        for span, known, inside in zip(spans, counts, _upto(counts, cuts[0] if cuts else None), strict=True):
            if inside == known.characters:
                total.update(known.tokens)
            elif inside:
                task = Counting(span, self.folder / "counts", recipe.tokenizer, inside)
                self.used.add(task.path)
                total.update(counted(task).tokens)
        return Tokenizer.of_counts(
            recipe.tokenizer, total, vocab_size=recipe.vocab_size, min_frequency=recipe.min_frequency
        )

    def parts(self, shards: dict[str, list[list[Shard]]], cuts: list[int]) -> dict[str, Part]:
        """Where the parts lie in the shards."""
        found = {}
        for stream, lists in shards.items():
            places = _token_places(lists, cuts if stream == "train" else [])
            names = ("train", "validation", "test") if stream == "train" else (stream,)
            for name, (begin, end) in zip(names, itertools.pairwise(places), strict=False):
                if end[1] > begin[1]:  # blanks alone may hold no word
                    found[name] = Part(stream, begin[1], end[1], end[0] - begin[0])
        for name in ("train",) if self.recipe.whole else ("train", "validation"):
            if name not in found:
                raise UserError(f"the {name} part of {self.recipe.data} is empty")
        return found

    def run(self, what: str, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results of the tasks; now and then a line says how far they are."""
        sizes = [task.span.end - task.span.begin for task in tasks]
        began = last = time.monotonic()
        for number, result in enumerate(in_processes(function, tasks, self.processes), 1):
            yield result
            now = time.monotonic()
            if now - last > SECONDS_BETWEEN_LINES and tasks[0].span.source.format != "parquet":
                last = now
                done = sum(sizes[:number])
                self.say(f"{what}: {done / sum(sizes):4.0%}  {done / 1e6 / (now - began):.1f} MB/s")
        self.used.update(task.path for task in tasks if isinstance(task, Counting))

    def clean(self, manifest: Manifest) -> None:
        """Delete what an earlier state of the text has left."""
        for name, _ in itertools.chain(*manifest.shards.values()):
            self.used |= {(self.folder / name).with_suffix(suffix) for suffix in (".tokens", ".ends", ".json")}
        for folder in ("counts", "shards"):
            for file in (self.folder / folder).iterdir():
                if file not in self.used:
                    file.unlink()


def _inside(counts: list[Counted], cuts: list[int]) -> list[tuple[int, ...]]:
    """For each span the cuts within it, as characters of the span."""
    starts = itertools.accumulate((span.characters for span in counts), initial=0)
    return [
        tuple(cut - start for cut in sorted(set(cuts)) if 0 < cut - start < span.characters)
        for span, start in zip(counts, starts, strict=False)
    ]


def _upto(counts: list[Counted], limit: int | None) -> list[int]:
    """For each span how many of its characters belong to the first ``limit`` of all."""
    starts = itertools.accumulate((span.characters for span in counts), initial=0)
    return [
        span.characters if limit is None else min(max(limit - start, 0), span.characters)
        for span, start in zip(counts, starts, strict=False)
    ]


def _texts(spans: list[Span], limit: int | None) -> Iterator[str]:
    """The text of the spans, up to ``limit`` characters."""
    left = limit
    for piece in itertools.chain.from_iterable(map(pieces, spans)):
        yield piece.text[:left]
        if left is not None:
            left -= len(piece.text)
            if left <= 0:
                return


def _token_places(spans: list[list[Shard]], cuts: list[int]) -> list[tuple[int, int]]:
    """Begin, cuts and end of a stream: how many characters and how many tokens stand before each.

    Raises:
        UserError: a cut is not there, since a file has changed after it was counted.
    """
    places = {0: 0}
    characters = tokens = 0
    for shards in spans:
        start = characters
        for shard in shards:
            places.update({start + cut: tokens + count for cut, count in shard.cuts})
            characters += shard.characters
            tokens += shard.tokens
            places[characters] = tokens
    if any(cut not in places for cut in cuts):
        raise UserError("a file of the text has changed while it was read: start again")
    return [(place, places[place]) for place in (0, *cuts, characters)]
