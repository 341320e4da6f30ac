"""Which text a user's files give, and how it is cut into parts."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from elman.data.files import named_parts
from elman.data.prepare import prepare
from elman.data.recipe import Recipe
from elman.data.standard_library import standard_library_files
from elman.data.tokenizers import Tokenizer
from elman.errors import UserError

TEXT = "Zeile eins\r\n\tzwei: äöü 漢字 🙂\n\n"
CHARACTERS = Tokenizer.of_counts("char", dict.fromkeys(map(chr, [*range(1, 0x3000), *map(ord, "漢字🙂")]), 1))


def parts(cache: Path, data: "Path | None", **options: object) -> dict[str, str]:
    """The text of each part, read back from its tokens."""
    recipe = Recipe(None if data is None else str(data), **options)  # type: ignore[arg-type]
    corpus = prepare(recipe, cache, print, tokenizer=CHARACTERS)
    texts = {name: CHARACTERS.decode(part.tokens[:]) for name, part in corpus.parts.items()}
    for name, text in texts.items():
        assert corpus.parts[name].characters == len(text) - 1
    return texts


def whole(cache: Path, data: Path, **options: object) -> str:
    return parts(cache, data, whole=True, **options)["train"]


def test_text_comes_back_exactly_from_a_file_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert [whole(tmp_path / "t", tmp_path / name) for name in ("a.txt", "b.txt")] == [TEXT] * 2


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "lzma"])
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(
        suffix, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)
    )
    data = compress((TEXT * 1000).encode())
    file = tmp_path / f"a.txt.{suffix}"
    file.write_bytes(data)
    assert whole(tmp_path / "t", file) == TEXT * 1000
    if suffix != "lzma":
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=rf"a\.txt\.{suffix} is not a whole"):
            whole(tmp_path / "t", file)


def test_zstandard(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    file = tmp_path / "a.txt.zst"
    with pyarrow.output_stream(str(file), compression="zstd") as stream:
        stream.write((TEXT * 1000).encode())
    assert whole(tmp_path / "t", file) == TEXT * 1000
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"a\.txt\.zst is not a whole zstd file"):
        whole(tmp_path / "t", file)


RECORDS = [TEXT, "no line end", 'quotes " and, commas\nand lines', "x" * 200_000]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.csv", "a.tsv", "a.csv.xz", "a.parquet", "a.dat"])
def test_records(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    content = io.StringIO(newline="")
    if "json" in name or name == "a.dat":
        for number, record in enumerate(RECORDS):
            content.write(json.dumps({"id": number, "body": record}, ensure_ascii=number % 2 == 0) + "\n\n")
        content.write(json.dumps("a text alone"))
    else:
        writer = csv.writer(content, delimiter="\t" if "tsv" in name else ",")
        writer.writerows([["id", "body"], *([number, record] for number, record in enumerate(RECORDS))])
    data = content.getvalue().encode()
    file.write_bytes({"gz": gzip.compress, "xz": lzma.compress}.get(name.split(".")[-1], bytes)(data))
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"body": RECORDS, "id": [1, 2, 3, 4]}), file, row_group_size=2)
    options = {"field": "body", "data_format": "jsonl" if name == "a.dat" else None}
    expected = "".join(record if record.endswith("\n") else record + "\n" for record in RECORDS)
    if data.endswith(b'alone"'):
        expected += "a text alone\n"
    assert whole(tmp_path / "t", file, **options) == expected
    recipe = Recipe(str(file), whole=True, **options)  # type: ignore[arg-type]
    tokens = prepare(recipe, tmp_path / "t", print, tokenizer=CHARACTERS).parts["train"].tokens
    starts = [0]
    for record in RECORDS:
        starts.append(starts[-1] + len(record) + (not record.endswith("\n")))
    found = tokens.document_starts(1, len(tokens)).tolist()  # type: ignore[attr-defined]
    assert found[: len(RECORDS) - 1] == starts[1:-1]
    with pytest.raises(UserError, match=r"has no field 'text'; it has .*body.*; --field chooses one"):
        whole(tmp_path / "t", file, data_format=options["data_format"])


BAD_RECORDS = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2 is not JSON"),
    ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1 is not JSON"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": null}\n', r"a\.jsonl, line 3: 'text' must be a text, got NoneType"),
    ("a.jsonl", b"7\n", r"line 1: 'text' must be a text, got int"),
    ("a.jsonl", b'{"text": "a\\u0000"}\n', "holds a zero character"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "a lone surrogate"),
    ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl is not UTF-8 text: byte 0xff at offset 10"),
    ("a.jsonl", b"{}\n", r"line 1 has no field 'text'; it has none"),
    ("a.csv", b"id,text\n1,a\n2\n", r"a\.csv, line 3 has 1 columns; 'text' is column 2"),
    ("a.csv", b'id,text\n1,"a\n2,b\n', r"a\.csv, line 3 is not CSV: unexpected end of data"),
    ("a.csv", b"id,text\n1,\xff\n", r"a\.csv is not UTF-8 text near line"),
    ("a.csv", b"id,text\n", r"train part of .*a\.csv is empty"),
    ("a.parquet", b"PAR1 and nothing more", r"cannot read .*a\.parquet: "),
    ("a.parquet.gz", b"", "is compressed inside"),
    ("a.txt.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3abc", r"a\.txt\.gz is not a whole gzip file"),
    ("a.txt.bz2", b"none", r"a\.txt\.bz2 is not a whole bzip2 file"),
    ("a.txt.xz", b"none", r"a\.txt\.xz is not a whole xz file"),
    ("a.txt.zst", b"none", r"a\.txt\.zst is not a whole zstd file"),
    ("a.txt", b"ab\0c", r"a\.txt is binary, not text: it holds a zero byte at offset 2"),
    ("a.txt", b"x" * (1 << 20) + b"\n" + b"caf\xe9", r"a\.txt is not UTF-8 text: byte 0xe9 at offset 1048580"),
    ("a.txt", b"", r"a\.txt is empty"),
]


def test_blanks_hold_no_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \t" * 50)
    with pytest.raises(UserError, match=r"the train part of .*a\.txt is empty"):
        prepare(Recipe(str(tmp_path / "a.txt"), tokenizer="word", whole=True), tmp_path / "t", print)


@pytest.mark.parametrize(("name", "content", "message"), BAD_RECORDS, ids=[f"{n} {m}" for n, _, m in BAD_RECORDS])
def test_bad_files_are_named_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(("parquet", "zst")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content or (b"x" if "parquet" in name else b""))
    with pytest.raises(UserError, match=message) as error:
        whole(tmp_path / "t", tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name} needs pyarrow: pip install 'elman\[data\]'"):
        whole(tmp_path / "t", tmp_path / name)


def test_a_folder_is_its_files_in_order_each_on_lines_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    contents = {"b.txt": "two", "a.txt": "one\n", "sub/c.txt": "three\n", "d.md": "four", "e.txt": ""}
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / ".hidden" / "f.txt").write_text("secret")
    (folder / "g.jsonl").write_text('{"text": "five"}\n')
    assert whole(tmp_path / "t", folder) == "one\ntwo\nfour\nfive\nthree\n"
    assert whole(tmp_path / "t", folder, pattern="*.txt") == "one\ntwo\nthree\n"
    with pytest.raises(UserError, match=r"every file in .* is empty"):
        whole(tmp_path / "t", folder, pattern="e.*")
    with pytest.raises(UserError, match="is no pattern of file names"):
        whole(tmp_path / "t", folder, pattern="/etc/*")


def test_one_file_is_cut_by_characters(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("é" * 90 + "v" * 10)
    assert parts(tmp_path / "t", file) == {"train": "é" * 90, "validation": "v" * 10}
    found = parts(tmp_path / "t", file, validation_share=0.2, test_share=0.1)
    assert found == {"train": "é" * 70, "validation": "é" * 20, "test": "v" * 10}


def test_parts_given_as_paths_are_not_cut_off(tmp_path: Path) -> None:
    for name in ("all", "val", "tst"):
        (tmp_path / name).write_text(name * 10)
    found = parts(tmp_path / "t", tmp_path / "all", validation=str(tmp_path / "val"), test=str(tmp_path / "tst"))
    assert found == {"train": "all" * 10, "validation": "val" * 10, "test": "tst" * 10}


@pytest.mark.parametrize("name", ["valid.txt", "validation.txt", "val.txt", "dev.txt"])
def test_a_folder_with_named_parts(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt.gz").write_bytes(gzip.compress(b"train"))
    (folder / name).write_text("valid")
    (folder / "test.txt").write_text("test")
    (folder / "README.md").write_text("not data")
    found = parts(tmp_path / "t", folder, test_share=0.5)
    assert found == {"train": "train", "validation": "valid", "test": "test"}
    assert whole(tmp_path / "t", folder) == "test"


def test_a_folder_with_parts_in_shards(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    (folder / "dev").mkdir(parents=True)
    for number in range(3):
        (folder / f"train-{number:05d}-of-00003.txt").write_text(f"train {number}")
        (folder / "dev" / f"{number}.txt").write_text(f"dev {number}")
    assert parts(tmp_path / "t", folder) == {
        "train": "train 0\ntrain 1\ntrain 2\n",
        "validation": "dev 0\ndev 1\ndev 2\n",
    }


def test_a_folder_with_a_training_part_alone_is_cut(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("t" * 90 + "v" * 10)
    assert parts(tmp_path / "t", tmp_path / "text")["validation"] == "v" * 10


@pytest.mark.parametrize("names", [("train.txt", "dev.txt", "valid.txt"), ("train.txt", "train-00000.txt")])
def test_two_files_for_one_part(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(
        UserError, match=r"holds two (validation|train) parts: (dev\.txt and valid\.txt|train-00000\.txt)"
    ):
        named_parts(tmp_path)


def test_the_default_text_is_always_the_same_real_python(tmp_path: Path) -> None:
    files = standard_library_files()
    assert files == standard_library_files()
    text = "".join(file.read_text(encoding="utf-8-sig") for file in files)
    assert 2_000_000 <= len(text) < 2_300_000
    assert "\ndef " in text
    assert parts(tmp_path / "t", None)["train"] == text[: int(len(text) * 0.9)]
