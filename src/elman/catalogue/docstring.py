"""A cell's docstring, taken apart: what it is, who published it, what is to be known of it."""

import inspect
import re
from dataclasses import dataclass

from elman.cells.contract import Cell

# Authors, title and the rest: Gers & Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
_REFERENCE = re.compile(r"(?P<authors>[^\".:;]*(?:\b[A-Z]\. [^\".:;]*|et al\.)?), \"(?P<title>[^\"]+)\"")
# A line that starts with a symbol or two and an equals sign.
_EQUATION = re.compile(r"(\S{1,16}|\([\w, ]+\)|[\w, ]{1,12}|\S+\[block j\]) (=|←) ")


@dataclass(frozen=True)
class Docstring:
    """Paragraphs of a cell's docstring.

    Attributes:
        text: all of it, as it stands.
        summary: its first paragraph.
        notes: the paragraphs of prose after that, the source among them.
        source: authors and year of the first text that is quoted, or "".
    """

    text: str
    summary: str
    notes: tuple[str, ...]
    source: str


def read(cell: type[Cell]) -> Docstring:
    """The docstring of a cell class; empty where it has none of its own."""
    text = inspect.cleandoc(cell.__dict__.get("__doc__") or "")
    if text.startswith(f"{cell.__name__}("):  # what a dataclass writes where its author wrote nothing
        text = ""
    summary, *others = text.split("\n\n")
    prose = [_joined(p) for p in others if not _EQUATION.match(p) and not p.startswith(("or, ", "Shapes:"))]
    return Docstring(text, _joined(summary), tuple(prose), _source(prose))


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _source(prose: list[str]) -> str:
    for paragraph in prose:
        found = _REFERENCE.search(paragraph)
        year = found and re.search(r"\b(19|20)\d\d\b", paragraph[found.end("title") :])
        if found and year:
            return f"{_surnames(found['authors'].strip())} {year[0]}"
    return ""


def _surnames(authors: str) -> str:
    names = re.split(r", | & ", authors)
    last = [re.sub(r"^\S+ [A-Z]\. ", "", name) for name in names]
    if len(last) == 1 or last[0].endswith("et al."):
        return last[0]
    return " & ".join(last) if len(last) == 2 else f"{last[0]} et al."
