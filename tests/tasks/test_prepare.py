"""Prepared texts: the same tokens however they are made, kept, made again when something changes."""

import contextlib
import dataclasses
import gzip
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from elman.cli import main
from elman.data import corpus as corpora
from elman.data import prepare as preparing
from elman.data.corpus import Corpus
from elman.data.prepare import prepare
from elman.data.recipe import Recipe
from elman.data.tokenizers import Kind, Tokenizer
from elman.errors import UsageError, UserError
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.job import LanguageModelJob
from elman.tasks.language_model.model import LanguageModel
from elman.train.course import Course
from elman.train.job import Stretch
from elman.train.truncation import Truncation
from elman.train.world import World

from .conftest import SMALL, metrics_of


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in small pieces, so that small texts have many."""
    monkeypatch.setattr("elman.data.readers.PIECE_BYTES", 100)
    monkeypatch.setattr("elman.data.readers.SPAN_BYTES", 3000)
    monkeypatch.setattr("elman.data.spans.BLOCK_CHARACTERS", 250)
    monkeypatch.setattr("elman.data.spans.SHARD_CHARACTERS", 1000)
    monkeypatch.setattr("elman.data.store.BLOCK", 128)
    monkeypatch.setattr("elman.data.store.RESIDENT", 4096)
    monkeypatch.setattr("elman.data.store.MAPS", 3)


def tokens_of(corpus: Corpus) -> dict[str, list[int]]:
    return {name: part.tokens[:].tolist() for name, part in corpus.parts.items()}


def tokens_in_memory(text: str, recipe: Recipe) -> dict[str, list[int]]:
    """What one process with the whole text at hand makes of it."""
    train_end = int(len(text) * (1 - recipe.validation_share - recipe.test_share))
    test_start = len(text) - int(len(text) * recipe.test_share)
    parts = {"train": text[:train_end], "validation": text[train_end:test_start], "test": text[test_start:]}
    tokenizer = Tokenizer.build(
        recipe.tokenizer, parts["train"], vocab_size=recipe.vocab_size, min_frequency=recipe.min_frequency
    )
    return {name: tokenizer.encode(part).tolist() for name, part in parts.items() if part}


@pytest.mark.parametrize("kind", ["char", "word"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shares", [(0.1, 0.0), (0.15, 0.3)])
def test_the_tokens_are_those_of_the_whole_text(
    kind: Kind, compressed: bool, shares: tuple[float, float], tmp_path: Path, text_file: Path, small_pieces: None
) -> None:
    text = text_file.read_text() + "ünïcode 漢字 🙂 end"
    data = tmp_path / ("text.gz" if compressed else "text.txt")
    data.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    recipe = Recipe(str(data), validation_share=shares[0], test_share=shares[1], tokenizer=kind, min_frequency=2)
    corpus = prepare(recipe, tmp_path / "tokens", print)
    assert tokens_of(corpus) == tokens_in_memory(text, recipe)
    assert len(list((corpus.folder / "shards").glob("*.tokens"))) > 10
    again = prepare(recipe, tmp_path / "tokens", print)
    assert tokens_of(again) == tokens_of(corpus)
    assert [part.digest for part in again.parts.values()] == [part.digest for part in corpus.parts.values()]
    tokens, expected = corpus.parts["train"].tokens, np.array(tokens_of(corpus)["train"])
    for start, stop in np.random.default_rng(0).integers(0, len(tokens) + 50, (100, 2)).tolist():
        assert tokens[start:stop].tolist() == expected[start:stop].tolist()


def test_a_text_without_lines_or_spaces(tmp_path: Path, small_pieces: None) -> None:
    for text in ("漢字🙂é" * 2000, "word and word " * 1000):
        (tmp_path / "text").write_text(text)
        corpus = prepare(Recipe(str(tmp_path / "text"), whole=True), tmp_path / "tokens", print)
        assert corpus.tokenizer.decode(corpus.parts["train"].tokens[:]) == text
        assert len(list((corpus.folder / "shards").glob("*.tokens"))) > 3


def test_several_processes_make_what_one_makes(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / "text" / f"{number}.txt").write_text(text_file.read_text()[number * 1000 :])
    recipe = Recipe(str(tmp_path / "text"), tokenizer="word")
    one = prepare(recipe, tmp_path / "one", print)
    monkeypatch.setattr(preparing, "SMALL", 0)
    two = prepare(recipe, tmp_path / "two", print, processes=2)
    assert tokens_of(one) == tokens_of(two)
    assert [part.digest for part in one.parts.values()] == [part.digest for part in two.parts.values()]
    (tmp_path / "text" / "2.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"2\.txt is not UTF-8"):
        prepare(recipe, tmp_path / "two", print, processes=2)


def states(folder: Path) -> dict[str, int]:
    """When each shard was written."""
    return {file.name: file.stat().st_mtime_ns for file in (folder / "shards").glob("*.tokens")}


def test_unchanged_texts_are_reused_and_changed_ones_made_anew(
    tmp_path: Path, text_file: Path, small_pieces: None
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(text_file.read_text())
    said: list[str] = []
    recipe = Recipe(str(folder), validation=str(text_file))
    corpus = prepare(recipe, tmp_path / "tokens", said.append)
    before, written = tokens_of(corpus), states(corpus.folder)
    prepare(recipe, tmp_path / "tokens", said.append)
    assert states(corpus.folder) == written
    assert said == []

    (folder / "1.txt").write_text(text_file.read_text()[::-1])  # the same characters: the vocabulary stays
    changed = prepare(recipe, tmp_path / "tokens", said.append)
    assert said == [f"{folder / '1.txt'} has changed: preparing {corpus.folder} anew"]
    assert tokens_of(changed) != before
    now = states(corpus.folder)
    kept = {name for name in written if now.get(name) == written[name]}
    assert len(written) // 2 < len(kept) < len(written)  # the shards of the other files
    assert len(now) == len(written)  # and nothing is left of the old one

    (folder / "3.txt").write_text("new\n")
    prepare(recipe, tmp_path / "tokens", said.append)
    (folder / "3.txt").unlink()
    prepare(recipe, tmp_path / "tokens", said.append)
    assert [line.split(":")[0] for line in said[1:]] == [f"{folder / '3.txt'} is new", f"{folder / '3.txt'} is gone"]
    shard = next(iter((corpus.folder / "shards").glob("*.tokens")))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert tokens_of(prepare(recipe, tmp_path / "tokens", said.append)) == tokens_of(changed)
    assert said[-1] == f"{shard} is not whole: preparing {corpus.folder} anew"
    assert shard.read_bytes() == content


def test_a_damaged_shard_is_found_when_it_is_read(tmp_path: Path, text_file: Path) -> None:
    recipe = Recipe(str(text_file))
    corpus = prepare(recipe, tmp_path, print)
    expected = tokens_of(corpus)
    (shard,) = (corpus.folder / "shards").glob("*.tokens")
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard.name} is damaged: its checksum does not match; delete it"):
        prepare(recipe, tmp_path, print)
    shard.unlink()
    assert tokens_of(prepare(recipe, tmp_path, print)) == expected
    corpus = prepare(recipe, tmp_path, print)
    shard.unlink()
    with pytest.raises(UserError, match="cannot read the tokens in"):
        prepare_nothing(corpus)


def prepare_nothing(corpus: Corpus) -> None:
    """Read tokens that the corpus has not mapped yet."""
    manifest = corpora.Manifest.read(corpus.folder)
    assert manifest is not None
    tokens_of(manifest.open(corpus.folder, corpus.tokenizer))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"crc32": 1, "content": {}}'])
def test_a_damaged_manifest_is_made_again(content: bytes, tmp_path: Path, text_file: Path) -> None:
    corpus = prepare(Recipe(str(text_file)), tmp_path, print)
    (corpus.folder / "manifest.json").write_bytes(content)
    written = states(corpus.folder)
    assert tokens_of(prepare(Recipe(str(text_file)), tmp_path, print)) == tokens_of(corpus)
    assert states(corpus.folder) == written


def test_another_vocabulary_is_another_text(tmp_path: Path, text_file: Path) -> None:
    recipe, said = Recipe(str(text_file)), []  # type: ignore[var-annotated]
    own = prepare(recipe, tmp_path, said.append)
    assert prepare(recipe, tmp_path, said.append, tokenizer=own.tokenizer).folder == own.folder
    assert said == []
    other = prepare(recipe, tmp_path, said.append, tokenizer=Tokenizer.build("char", "abc"))
    assert set(tokens_of(other)["train"]) == {0, 1, 2, 3}
    assert tokens_of(prepare(recipe, tmp_path, said.append)) == tokens_of(own)
    assert ["the vocabulary is another one" in line for line in said] == [True, True]


def test_folders_that_cannot_hold_tokens(tmp_path: Path, text_file: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep tokens in .*--cache chooses another folder"):
        prepare(Recipe(str(text_file)), tmp_path / "file", print)
    with pytest.raises(UsageError, match="among the text itself: choose another --cache"):
        prepare(Recipe(str(text_file.parent)), text_file.parent / "tokens", print)


PREPARE = """
import sys
from elman.data import prepare, readers, spans
from elman.data.recipe import Recipe
if __name__ == "__main__":
    prepare.SMALL = 0
    data, cache, processes = sys.argv[1:]
    prepare.prepare(Recipe(data, tokenizer="word"), cache, print, processes=int(processes))
"""


@contextlib.contextmanager
def preparing_process(script: Path, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    script.write_text(PREPARE)
    command = [sys.executable, str(script), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, text_file: Path, processes: int) -> None:
    data = tmp_path / "text"
    data.mkdir()
    for number in range(24):
        (data / f"{number:02d}.txt").write_text(text_file.read_text()[number:] * 5)
    expected = tokens_of(prepare(Recipe(str(data), tokenizer="word"), tmp_path / "whole", print))
    cache, written = tmp_path / "tokens", 0
    for attempt in range(5):
        with preparing_process(tmp_path / "script.py", data, cache, processes) as process:
            deadline = time.monotonic() + 60
            while len(list(cache.glob("*/*/*.json"))) < written + 7 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            children = descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL or attempt > 2
        while any(
            Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes()
            for child in children
        ):
            assert time.monotonic() < deadline  # nobody is left behind
            time.sleep(0.01)
        now = len(list(cache.glob("*/*/*.json")))
        assert now > written or attempt > 2
        written = now
    files = {file: file.stat().st_mtime_ns for file in cache.glob("*/*/*.json")}
    corpus = prepare(Recipe(str(data), tokenizer="word"), cache, print)
    assert tokens_of(corpus) == expected
    assert all(file.stat().st_mtime_ns == when for file, when in files.items() if file.exists())  # nothing twice
    assert not list(corpus.folder.glob("*/*.partial"))


def test_two_processes_that_want_the_same_tokens_share_the_work(tmp_path: Path, text_file: Path) -> None:
    data = tmp_path / "text"
    data.write_text(text_file.read_text() * 50)
    with (
        preparing_process(tmp_path / "a.py", data, tmp_path / "tokens", 1) as first,
        preparing_process(tmp_path / "b.py", data, tmp_path / "tokens", 1) as second,
    ):
        assert first.wait(60) == second.wait(60) == 0
    (folder,) = (tmp_path / "tokens").iterdir()
    assert len(list(folder.glob("shards/*.tokens"))) == 1


@pytest.mark.parametrize("minibatches", ["sequential", "random"])
def test_training_on_shards_resumes_at_its_place(
    minibatches: str, tmp_path: Path, text_file: Path, small_pieces: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--schedule",
        "constant",
        "--warmup",
        "0",
        "--minibatches",
        minibatches,
        "--data",
        str(text_file),
        "--checkpoint-every",
        "5",
        "--max-steps",
        "40",
    ]
    for name in ("whole", "stopped"):
        extra = ["--max-steps", "15"] if name == "stopped" else []
        assert (
            main(["train", "lm", *SMALL, *options, *extra, "--evaluate-every", "20", "--run", str(tmp_path / name)])
            == 0
        )
    (folder,) = (tmp_path / "tokens").iterdir()
    assert len(list((folder / "shards").glob("*.tokens"))) > 10
    assert main(["train", "lm", "--run", str(tmp_path / "stopped"), "--resume", "--max-steps", "40"]) == 0
    last = [
        next(line for line in reversed(metrics_of(tmp_path / name)) if line["kind"] == "validation")
        for name in ("whole", "stopped")
    ]
    assert last[0]["loss"] == last[1]["loss"]
    assert f"tokens in {folder}" in capsys.readouterr().err


def test_records_from_end_to_end(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = text_file.read_text().splitlines()
    records = [json.dumps({"text": line}) for line in lines if line]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.jsonl.gz").write_bytes(gzip.compress("\n".join(records[:-50]).encode()))
    (tmp_path / "data" / "train-1.jsonl").write_text("\n".join(records[-50:]))
    options = ["--data", str(tmp_path / "data"), "--max-steps", "3", "--cache", str(tmp_path / "kept")]
    assert main(["train", "lm", *SMALL, *options, "--run", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "tokens").exists()
    capsys.readouterr()
    score = ["evaluate", str(tmp_path / "run"), "--format", "json"]
    assert main([*score, "--data", str(tmp_path / "data" / "train-1.jsonl")]) == 0
    assert (
        json.loads(capsys.readouterr().out)["characters"]
        == sum(len(json.loads(r)["text"]) + 1 for r in records[-50:]) - 1
    )
    assert main([*score, "--data", str(tmp_path / "data" / "train-1.jsonl"), "--field", "words"]) == 1
    assert "has no field 'words'; it has text; --field" in capsys.readouterr().err


def test_documents_and_random_windows_read_stored_tokens(tmp_path: Path, text_file: Path, small_pieces: None) -> None:
    """A job gives the same losses whether its text lies in memory or in shards on disk."""
    stored = prepare(Recipe(str(text_file)), tmp_path / "tokens", print)
    model = LanguageModel(stored.tokenizer.size, "lstm", 8, 16).eval()
    for options in (
        {"state": "documents", "document_end": "\n", "truncation": "randomized", "burn_in": 3},
        {"truncation": "variable", "state": "fresh"},
        {"minibatches": "random"},
    ):
        config = LanguageModelConfig(batch_size=4, window=20, **options)  # type: ignore[arg-type]
        losses = []
        for on_disk in (True, False):
            parts = [stored.parts[name] for name in ("train", "validation")]
            if not on_disk:
                parts = [dataclasses.replace(part, tokens=part.tokens[:]) for part in parts]
            job = LanguageModelJob(model, stored.tokenizer, parts[0], parts[1], config, World(torch.device("cpu")))
            course = Course(job, Truncation.of(config), fresh=config.state == "fresh")
            losses.append([course.advance().loss.item() for _ in range(6)])
        assert losses[0] == losses[1]
        assert len(set(losses[0])) == 6


def test_the_state_is_reset_where_stored_documents_begin(tmp_path: Path, text_file: Path, small_pieces: None) -> None:
    """In lanes and windows that know nothing of documents, in shards that end within them and at their ends."""
    text = text_file.read_text()[:9000]
    generator = np.random.default_rng(0)
    ends = [0, *sorted(generator.choice(np.arange(1, 9000), 60, replace=False).tolist()), 9000]
    records = [text[begin:end].rstrip("\n") for begin, end in itertools.pairwise(ends)]
    (tmp_path / "data").mkdir()
    for number in range(3):
        lines = [json.dumps({"text": record}) for record in records[number::3]]
        (tmp_path / "data" / f"{number}.jsonl").write_text("\n".join(lines))
    stored = prepare(Recipe(str(tmp_path / "data")), tmp_path / "tokens", print)
    assert len(list(stored.folder.glob("shards/*.tokens"))) > 4
    begins, position = set(), 0
    for record in [*records[0::3], *records[1::3], *records[2::3]]:
        begins.add(position)
        position += len(record) + 1  # the line end
    model = LanguageModel(stored.tokenizer.size, "lstm", 8, 16).double().eval()
    train, validation = stored.parts["train"], stored.parts["validation"]
    config = LanguageModelConfig(batch_size=3, window=20, state="documents")
    jobs = [
        LanguageModelJob(model, stored.tokenizer, train, validation, config, world)
        for world in (World(torch.device("cpu")), Third(1))
    ]
    in_memory = dataclasses.replace(train, tokens=train.tokens[:])
    with pytest.raises(UsageError, match="the training text is one document; --document-end"):
        LanguageModelJob(model, stored.tokenizer, in_memory, validation, config, World(torch.device("cpu")))
    (length,) = jobs[0].lengths(0)
    lanes = [lane * length for lane in range(3)]
    found, carry, losses = set(), None, []
    for start in range(0, length, 20):
        stretch = Stretch(0, 0, start, min(start + 20, length))
        _, _, reset = jobs[0].steps(stretch)
        assert reset is not None
        found |= {lanes[lane] + start + step for step, lane in reset.nonzero().tolist()}
        assert torch.equal(jobs[1].steps(stretch)[2], reset[:, 1:2])  # type: ignore[arg-type]
        loss, count, carry = jobs[0].loss(stretch, carry)
        losses.append(loss.item() * count)
    used = range(1, 3 * length)
    assert found - {0} == begins & set(used)
    assert len(found) > 40
    alone = 0.0
    tokens = torch.from_numpy(train.tokens[:].astype(np.int64))
    with torch.no_grad():
        for begin, end in itertools.pairwise([*sorted(begins & set(used) | set(lanes)), 3 * length]):
            output, _ = model.read(tokens[begin:end, None])
            alone += model.losses(output, tokens[begin + 1 : end + 1, None]).sum().item()
    assert sum(losses) == pytest.approx(alone, rel=1e-9)


class Half(World):
    """One of two processes, without the other."""

    size = 2

    def __init__(self, rank: int) -> None:
        super().__init__(torch.device("cpu"))
        self.rank = rank

    def share(self, rows: torch.Tensor, dim: int = 1) -> torch.Tensor:
        return rows.tensor_split(self.size, dim)[self.rank]


class Third(Half):
    """One of three."""

    size = 3


@pytest.mark.parametrize("minibatches", ["sequential", "random"])
def test_processes_share_the_rows_and_read_no_others(minibatches: str, tmp_path: Path, text_file: Path) -> None:
    corpus = prepare(Recipe(str(text_file)), tmp_path / "tokens", print)
    train, validation = corpus.parts["train"], corpus.parts["validation"]
    model = LanguageModel(corpus.tokenizer.size, "lstm", 8, 16).eval()
    config = LanguageModelConfig(batch_size=4, window=20, minibatches=minibatches)  # type: ignore[arg-type]
    (whole, _, _), *halves = (
        LanguageModelJob(model, corpus.tokenizer, train, validation, config, world).steps(Stretch(1, 0, 0, 20))
        for world in (World(torch.device("cpu")), Half(0), Half(1))
    )
    assert [half[0].shape for half in halves] == [(20, 2), (20, 2)]
    assert torch.equal(torch.cat([half[0] for half in halves], 1), whole)
