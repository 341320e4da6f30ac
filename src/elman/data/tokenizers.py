"""Tokenizers: characters, words, byte pairs. All three are Hugging Face ``tokenizers``, kept as ``tokenizer.json``."""

from __future__ import annotations

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from elman.errors import UserError

Kind = Literal["char", "word", "bpe"]
Tokens = npt.NDArray[np.int32]

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
PIECE = 1 << 16  # characters encoded at a time: bounds the memory that encoding takes
DEFAULT_BPE_SIZE = 8000
# str.split takes these for spaces too; Unicode, and so the tokenizer's file, does not
SPLIT_BY_PYTHON_ALONE = "\x1c\x1d\x1e\x1f"
WORD = re.compile(r"(?:[^\s]|[\x1c-\x1f])+")


class Tokenizer:
    """Text to tokens and back.

    ``char``: each character is a token. ``word``: whitespace separates tokens and a line end is ``<eos>``, as in the
    Penn Treebank and WikiText sets. ``bpe``: byte-level byte pairs, which can write any text. What the first two do
    not know becomes ``<unk>``.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.unknown: int | None = backend.token_to_id(UNKNOWN)
        self.size: int = backend.get_vocab_size()
        if isinstance(backend.model, models.BPE):
            self.kind: Kind = "bpe"
        else:
            self.kind = "word" if isinstance(backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit) else "char"
        self._character_ids = self._table() if self.kind == "char" else None
        self._word_ids = WordIds(backend.get_vocab(), self.unknown) if self.kind == "word" else None

    @classmethod
    def build(cls, kind: Kind, text: str, *, vocab_size: int | None = None, min_frequency: int = 1) -> Tokenizer:
        """Make the vocabulary from ``text``: at most ``vocab_size`` tokens, each seen ``min_frequency`` times or more.

        ``vocab_size`` None keeps all characters or words, or 8,000 byte pairs. Raises UserError where it is too small.
        """
        if kind == "bpe":
            return cls.byte_pairs(_pieces(text), vocab_size=vocab_size, min_frequency=min_frequency)
        return cls.of_counts(kind, count(kind, text), vocab_size=vocab_size, min_frequency=min_frequency)

    @classmethod
    def of_counts(
        cls, kind: Kind, counts: Mapping[str, int], *, vocab_size: int | None = None, min_frequency: int = 1
    ) -> Tokenizer:
        """Characters, in the order of their code points, or words, by falling frequency, from how often each occurs."""
        check_vocabulary_size(kind, vocab_size)
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [token for token, times in common if times >= min_frequency and token != UNKNOWN]
        known = known[: vocab_size - 1] if vocab_size is not None else known
        known = sorted(known) if kind == "char" else known
        return cls(_word_level(kind, {UNKNOWN: 0, **{token: index for index, token in enumerate(known, 1)}}))

    @classmethod
    def byte_pairs(cls, texts: Iterable[str], *, vocab_size: int | None = None, min_frequency: int = 1) -> Tokenizer:
        """Byte pairs learned from the texts, 8,000 unless ``vocab_size`` says otherwise."""
        check_vocabulary_size("bpe", vocab_size)
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size or DEFAULT_BPE_SIZE,
            min_frequency=min_frequency,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``. Raises UserError where it is missing or damaged."""
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"no such file: {path}") from None
        except Exception as error:  # the library raises plain Exception for any malformed file
            raise UserError(f"{path} is damaged: {error}") from None

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return str(self.backend.to_str(pretty=True))

    def encode(self, text: str) -> Tokens:
        """Text to token numbers, int32 ``[N]``. Long texts are encoded in pieces that end at line ends."""
        return self.encode_each(list(_pieces(text)))[0]

    def encode_each(self, texts: Sequence[str]) -> tuple[Tokens, list[int]]:
        """Several texts, each by itself: the token numbers of all, int32 ``[N]``, and how many each has."""
        if self._character_ids is not None:
            codes, counts = _codes("".join(texts)), [len(text) for text in texts]
            return self._character_ids[codes], counts
        if self._word_ids is not None:
            words = [_words(text) for text in texts]
            found = map(self._word_ids.__getitem__, itertools.chain.from_iterable(words))
            return np.fromiter(found, dtype=np.int32), [len(some) for some in words]
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)  # on all cores
        parts = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return np.concatenate([np.zeros(0, dtype=np.int32), *parts]), [len(part) for part in parts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Token numbers to text; what is no whole UTF-8 character becomes U+FFFD."""
        stream = TextStream(self)
        return "".join([*(stream.push(int(token)) for token in tokens), stream.close()])

    def unknown_in(self, text: str) -> list[str]:
        """The characters or words of ``text`` that are not in the vocabulary, each once, in order."""
        if self.kind == "bpe":
            return []
        found = self.backend.pre_tokenizer.pre_tokenize_str(self._normalized(text))
        return [word for word in dict.fromkeys(word for word, _ in found) if self.backend.token_to_id(word) is None]

    def _normalized(self, text: str) -> str:
        return text if self.backend.normalizer is None else str(self.backend.normalizer.normalize_str(text))

    def _table(self) -> Tokens:
        """The vocabulary as a table over all code points."""
        assert self.unknown is not None
        table = np.full(0x110000, self.unknown, dtype=np.int32)
        for token, index in self.backend.get_vocab().items():
            if len(token) == 1:
                table[ord(token)] = index
        return table


class WordIds(dict[str, int]):
    """Numbers of words; that of ``<unk>`` for all others."""

    def __init__(self, known: dict[str, int], unknown: int | None) -> None:
        super().__init__(known)
        self._unknown = unknown

    def __missing__(self, word: str) -> int:
        assert self._unknown is not None
        return self._unknown


class TextStream:
    """Turns tokens into text one at a time: :meth:`push` gives the text that the token completes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line_begins = True

    def push(self, token: int) -> str:
        """The new text; empty while a character's bytes are incomplete."""
        text = str(self.tokenizer.backend.id_to_token(token))
        if self.tokenizer.kind == "char":
            return text
        if self.tokenizer.kind == "bpe":
            return self._utf8.decode(bytes(BYTE_OF[character] for character in text))
        ends_line = text == END_OF_LINE
        separator = "" if ends_line or self._line_begins else " "
        self._line_begins = ends_line
        return "\n" if ends_line else separator + text

    def close(self) -> str:
        """What is left: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", final=True)


def _word_level(kind: Kind, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if kind == "char":
        backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        backend.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def check_vocabulary_size(kind: Kind, size: int | None) -> None:
    """Raises UserError where a vocabulary cannot be as small as that."""
    smallest = 257 if kind == "bpe" else 2
    if size is not None and size < smallest:
        raise UserError(f"--vocab-size must be at least {smallest} for --tokenizer {kind}, got {size}")


def count(kind: Kind, text: str) -> Counter[str]:
    """How often each character or word occurs."""
    if kind == "word":
        return Counter(_words(text))
    times = np.bincount(_codes(text))
    return Counter({chr(code): int(times[code]) for code in np.flatnonzero(times)})


def _codes(text: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint32]:
    """The code points of a text."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _words(text: str) -> list[str]:
    """What stands between spaces, and an END_OF_LINE for each line end: as the word tokenizer's file says."""
    text = text.replace("\n", f" {END_OF_LINE} ")
    return WORD.findall(text) if any(mark in text for mark in SPLIT_BY_PYTHON_ALONE) else text.split()


def _pieces(text: str) -> Iterator[str]:
    """Cut a text at line ends, into pieces of about ``PIECE`` characters."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed: printable bytes as they are, the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


BYTE_OF: dict[str, int] = _byte_of()
__all__ = ["Kind", "TextStream", "Tokenizer", "Tokens"]
