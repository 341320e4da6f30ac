"""Damaged and strange files: one line each, never a traceback."""

import io
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from elman.cli import main  # noqa: E402
from elman.data.prepare import prepare  # noqa: E402
from elman.data.recipe import Recipe  # noqa: E402
from elman.data.tokenizers import Tokenizer  # noqa: E402
from elman.errors import UserError  # noqa: E402
from elman.train import checkpoint  # noqa: E402

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MINUTES = float(os.environ.get("ELMAN_FUZZ_MINUTES", "10"))

NAMES = [
    "a.txt",
    "a.jsonl",
    "a.csv",
    "a.tsv",
    "a.parquet",
    "a.txt.gz",
    "a.csv.bz2",
    "a.jsonl.xz",
    "a.txt.zst",
    "a.lzma",
]
JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["text", "a"]), inner),
).map(repr)
CONTENT = st.one_of(
    st.binary(max_size=2000),
    st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(JSON_TEXT, max_size=5).map(
        lambda lines: "\n".join(lines).replace("'", '"').encode("utf-8", "surrogatepass")
    ),
    st.lists(st.text(alphabet='text,"\n\r\t', max_size=30), max_size=20).map(
        lambda t: b"text,b\n" + "".join(t).encode()
    ),
)
CUT = st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 40))


def damaged(content: bytes, cut: tuple[float, bytes, int]) -> bytes:
    """The content with some bytes replaced."""
    place, new, dropped = cut
    at = int(place * len(content))
    return content[:at] + new + content[at + dropped :]


def whole_files() -> dict[str, bytes]:
    """A good file of each form."""
    import bz2
    import gzip
    import lzma

    text = "some text, and more\n" * 50
    table = "text,b\n" + '"a, b",2\n' * 20
    lines = '{"text": "a line"}\n' * 30
    files = {
        "a.txt": text.encode(),
        "a.jsonl": lines.encode(),
        "a.csv": table.encode(),
        "a.tsv": table.replace(",", "\t").encode(),
        "a.txt.gz": gzip.compress(text.encode()),
        "a.csv.bz2": bz2.compress(table.encode()),
        "a.jsonl.xz": lzma.compress(lines.encode()),
    }
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return files
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"] * 50}), sink)
    files["a.parquet"] = sink.getvalue()
    files["a.txt.zst"] = pyarrow.compress(text.encode(), codec="zstd", asbytes=True)
    return files


WHOLE = whole_files()


def expect(true: bool, error: UserError) -> None:
    """An error's form is wrong unless ``true``."""
    assert true, error


def read(name: str, content: bytes) -> None:
    """Prepare a file in every way; whatever is wrong with it must be a UserError of one line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        for recipe in (Recipe(str(file)), Recipe(str(file), whole=True, tokenizer="word")):
            try:
                corpus = prepare(recipe, Path(folder) / "tokens", lambda line: None)
                for part in corpus.parts.values():
                    assert max(part.tokens[:].tolist()) < corpus.tokenizer.size
                    corpus.tokenizer.decode(part.tokens[:])
            except UserError as error:
                expect("\n" not in str(error), error)


def load(content: bytes) -> None:
    """Read a checkpoint and a tokenizer of this content."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_bytes(content)
        for reader in (checkpoint.load, Tokenizer.load):
            try:
                reader(file)
            except UserError as error:
                expect("is damaged" in str(error), error)


@QUICK
@given(name=st.sampled_from(NAMES), content=CONTENT)
def test_any_content(name: str, content: bytes) -> None:
    read(name, content)


@QUICK
@given(name=st.sampled_from(sorted(WHOLE)), cut=CUT)
def test_damaged_files(name: str, cut: tuple[float, bytes, int]) -> None:
    read(name, damaged(WHOLE[name], cut))


def kept(run: Path) -> list[Path]:
    """The files of a run that are read again."""
    return sorted(file for file in run.rglob("*") if file.is_file() and "tensorboard" not in str(file))


@QUICK
@given(cut=CUT, number=st.integers(0, 9))
def test_damaged_checkpoints(trained: Path, cut: tuple[float, bytes, int], number: int) -> None:
    files = [*sorted((trained / "checkpoints").iterdir()), trained / "model.safetensors", trained / "tokenizer.json"]
    load(damaged(files[number % len(files)].read_bytes(), cut))


def damage_a_run(trained: Path, number: int, cut: tuple[float, bytes, int], resume: bool) -> None:
    """The command line on a run with one damaged file: a status, not a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(trained, run)
        file = kept(run)[number % len(kept(run))]
        file.write_bytes(damaged(file.read_bytes(), cut))
        if resume:
            assert main(["train", "lm", "--run", str(run), "--resume", "--max-steps", "31"]) in (0, 1, 2)
        else:
            assert main(["evaluate", str(run)]) in (0, 1, 2)


@settings(QUICK, max_examples=8)
@given(number=st.integers(0, 9), cut=CUT, resume=st.booleans())
def test_damaged_runs(trained: Path, number: int, cut: tuple[float, bytes, int], resume: bool) -> None:
    damage_a_run(trained, number, cut, resume)


@pytest.mark.slow
def test_ten_minutes_without_a_traceback(trained: Path) -> None:
    end = time.monotonic() + MINUTES * 60
    seed = 0
    while time.monotonic() < end:

        @hypothesis.seed(seed)
        @settings(QUICK, max_examples=200, derandomize=False, database=None)
        @given(
            which=st.integers(0, 9), name=st.sampled_from(NAMES), content=CONTENT, good=st.sampled_from(sorted(WHOLE)),
            cut=CUT, number=st.integers(0, 9), resume=st.booleans(),
        )  # fmt: skip
        def round_of(
            which: int, name: str, content: bytes, good: str, cut: tuple[float, bytes, int], number: int, resume: bool
        ) -> None:
            if time.monotonic() > end:
                return
            if which < 4:
                read(name, content)
            elif which < 8:
                read(good, damaged(WHOLE[good], cut))
            elif which < 9:
                load(damaged(kept(trained)[number % len(kept(trained))].read_bytes(), cut))
            else:
                damage_a_run(trained, number, cut, resume)

        round_of()
        seed += 1
    print(f"{seed} rounds of 200 files")
