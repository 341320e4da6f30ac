"""Readers: files, gzip, folders, parts."""

import gzip
from pathlib import Path

import pytest

from elman.data.text import named_parts, read_parts, read_text, standard_library
from elman.errors import UserError


def test_text_comes_back_exactly_from_a_file_a_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "Zeile eins\r\n\tzwei: äöü 漢字 🙂\n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [read_text(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.txt")] == [text] * 3


def test_a_folder_is_its_files_in_order_each_on_lines_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, content in {
        "b.txt": "two",
        "a.txt": "one\n",
        "sub/c.txt": "three\n",
        "d.md": "four",
        "e.txt": "",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / ".hidden" / "f.txt").write_text("secret")
    assert read_text(tmp_path) == "one\ntwo\nfour\nthree\n"
    assert read_text(tmp_path, "*.txt") == "one\ntwo\nthree\n"


def test_one_file_is_cut_by_characters(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("é" * 90 + "v" * 10)
    parts = read_parts(str(file))
    assert (parts.train, parts.validation, parts.test) == ("é" * 90, "v" * 10, None)
    parts = read_parts(str(file), validation_share=0.2, test_share=0.1)
    assert (len(parts.train), parts.validation, parts.test) == (70, "é" * 20, "v" * 10)


def test_parts_given_as_paths_are_not_cut_off(tmp_path: Path) -> None:
    for name in ("all", "val", "tst"):
        (tmp_path / name).write_text(name * 10)
    parts = read_parts(str(tmp_path / "all"), validation=str(tmp_path / "val"), test=str(tmp_path / "tst"))
    assert (parts.train, parts.validation, parts.test) == ("all" * 10, "val" * 10, "tst" * 10)


@pytest.mark.parametrize("name", ["valid.txt", "validation.txt", "val.txt", "dev.txt"])
def test_a_folder_with_named_parts(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"train"))
    (tmp_path / name).write_text("valid")
    (tmp_path / "test.txt").write_text("test")
    (tmp_path / "README.md").write_text("not data")
    parts = read_parts(str(tmp_path), test_share=0.5)
    assert (parts.train, parts.validation, parts.test) == ("train", "valid", "test")


def test_a_folder_with_a_training_part_alone_is_cut(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("t" * 90 + "v" * 10)
    assert read_parts(str(tmp_path)).validation == "v" * 10


def test_two_files_for_one_part(tmp_path: Path) -> None:
    for name in ("train.txt", "dev.txt", "valid.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"dev\.txt and valid\.txt"):
        named_parts(tmp_path)


def test_the_default_text_is_always_the_same_real_python() -> None:
    text = standard_library()
    assert text == standard_library()
    assert 2_000_000 <= len(text) < 2_300_000
    assert "\ndef " in text
    assert read_parts(None).train == text[: int(len(text) * 0.9)]
