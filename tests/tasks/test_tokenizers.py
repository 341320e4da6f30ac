"""Tokenizers: what is a token, and the way back."""

import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from elman.data.tokenizers import Kind, TextStream, Tokenizer
from elman.errors import UserError

TEXT = "The cat sat.\r\n\n the Äpfel <unk> 漢字 🙂\tend\u2028of\x0b a\x1cb\x85c <eos> line\n"


def reference(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the library itself makes of a text, by the content of tokenizer.json."""
    return list(tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode(text).ids)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_encoding_is_that_of_the_saved_file(kind: Kind, text_file: Path) -> None:
    text = text_file.read_text()
    tokenizer = Tokenizer.build(kind, text[:10_000] + TEXT)
    for sample in (TEXT, text[9_000:12_000], "never seen: ŁŁ qwxz\n", "\n", "x"):
        assert tokenizer.encode(sample).tolist() == reference(tokenizer, sample)
    assert tokenizer.encode("").tolist() == []


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_saved_tokenizer_is_the_same(kind: Kind, tmp_path: Path) -> None:
    tokenizer = Tokenizer.build(kind, TEXT * 3)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.size, loaded.unknown) == (kind, tokenizer.size, tokenizer.unknown)
    assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_characters_and_byte_pairs_lose_nothing(kind: Kind) -> None:
    tokenizer = Tokenizer.build(kind, TEXT * 3)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_byte_pairs_write_any_text() -> None:
    tokenizer = Tokenizer.build("bpe", "abc " * 50)
    assert tokenizer.unknown is None
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_long_texts_are_encoded_in_pieces_without_loss(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    text = text_file.read_text()
    words, pairs = Tokenizer.build("word", text), Tokenizer.build("bpe", text, vocab_size=300)
    whole = words.encode(text).tolist()
    monkeypatch.setattr("elman.data.tokenizers.PIECE", 100)
    assert words.encode(text).tolist() == whole
    assert pairs.decode(pairs.encode(text)) == text


def test_words_are_what_whitespace_separates_and_a_line_end_is_a_token() -> None:
    tokenizer = Tokenizer.build("word", "a b\n\n b a.\n")
    assert [tokenizer.backend.id_to_token(token) for token in tokenizer.encode(" a  a.\n\nzz b")] == [
        *("a", "a.", "<eos>", "<eos>", "<unk>", "b")
    ]
    assert tokenizer.decode(tokenizer.encode("a b\n\n b a.\n")) == "a b\n\nb a.\n"


def test_wikitext_counts(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared/data/wikitext2"
    if not folder.is_dir():
        pytest.skip("WikiText-2 is not on this machine")
    from elman.data.prepare import prepare
    from elman.data.recipe import Recipe

    corpus = prepare(Recipe(str(folder), tokenizer="word"), tmp_path, print)
    assert corpus.tokenizer.size == 33_278
    counts = [len(corpus.parts[name].tokens) for name in ("train", "validation", "test")]
    assert counts == [2_088_628, 217_646, 245_569]


def test_vocabulary_limits() -> None:
    text = "c b b a a a\n" * 4
    assert Tokenizer.build("word", text, vocab_size=3).backend.get_vocab() == {"<unk>": 0, "a": 1, "b": 2}
    assert set(Tokenizer.build("word", text, min_frequency=8).backend.get_vocab()) == {"<unk>", "a", "b"}
    assert set(Tokenizer.build("char", "aab", min_frequency=2).backend.get_vocab()) == {"<unk>", "a"}
    assert set(Tokenizer.build("char", "abbccc", vocab_size=3).backend.get_vocab()) == {"<unk>", "b", "c"}
    assert Tokenizer.build("bpe", text, vocab_size=260).size <= 260
    with pytest.raises(UserError, match="at least 257"):
        Tokenizer.build("bpe", text, vocab_size=100)


def test_unknown_characters_and_words_are_named() -> None:
    assert Tokenizer.build("char", "abc").unknown_in("axbyx") == ["x", "y"]
    assert Tokenizer.build("word", "the cat\n").unknown_in("the dog saw\nthe dog <unk>") == ["dog", "saw"]
    assert Tokenizer.build("bpe", "abc").unknown_in("漢字") == []


def test_a_stream_of_byte_pairs_never_shows_part_of_a_character() -> None:
    tokenizer = Tokenizer.build("bpe", "abc " * 50)
    stream = TextStream(tokenizer)
    pieces = [stream.push(int(token)) for token in tokenizer.encode("a漢🙂b")]
    assert "".join(pieces) + stream.close() == "a漢🙂b"
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces.count("") == 5  # the bytes before the last of each long character


def test_any_tokens_give_text() -> None:
    tokenizer = Tokenizer.build("bpe", TEXT * 3)
    tokens = [random.Random(0).randrange(tokenizer.size) for _ in range(500)]
    assert tokenizer.decode(tokens).encode()
    assert tokenizer.decode(np.array(tokenizer.encode("🙂"))[:-1]) == "\ufffd"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path / "tokenizer.json")
