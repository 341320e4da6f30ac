"""Two notations of mathematics, plain characters and LaTeX, for the printer in `elman.compiler.formulas`."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_GREEK = {
    **dict(zip(("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"), "αβγδεζηθ", strict=True)),
    **dict(zip(("kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma"), "κλμνξπρσ", strict=True)),
    **dict(zip(("tau", "phi", "chi", "psi", "omega"), "τφχψω", strict=True)),
}


@dataclass(frozen=True)
class Name:
    """A name with what stands around it: V_{e_m}, b'_f, c_{t-1}, f⁽²⁾.

    Attributes:
        base: the name itself; its parts after underscores, and its last digits, are subscripts; "bar" is a line above.
        of: a further name, as a subscript.
        time: "t" or "t-1".
        mark: primes.
        above: a superscript in words.
        count: which of several of the same name, from 1; 0 for the only one.
    """

    base: str
    of: str = ""
    time: str = ""
    mark: str = ""
    above: str = ""
    count: int = 0


class Notation(Protocol):
    """How the parts of a formula are written. Arguments are formulas that are written already."""

    circle: str  # between factors that are multiplied unit by unit
    space: str  # between a number or a matrix and what it multiplies
    relations: dict[str, str]
    stacks: bool  # whether a fraction has a line of its own, so that it needs no brackets

    def name(self, name: Name) -> str:
        """A name with its subscripts."""

    def call(self, function: str, arguments: Sequence[str]) -> str:
        """A function of its arguments, in brackets."""

    def group(self, content: str) -> str:
        """The content in brackets."""

    def fraction(self, a: str, b: str) -> str:
        """a divided by b."""

    def power(self, base: str, exponent: int) -> str:
        """A power; the exponent is 2 or 3."""

    def root(self, content: str) -> str:
        """The square root of content that has no brackets yet."""

    def absolute(self, content: str) -> str:
        """The absolute value."""

    def floor(self, content: str) -> str:
        """The largest integer that is not above."""

    def choice(self, cases: Sequence[tuple[str, str]], otherwise: str) -> str:
        """The value of the first case whose condition holds."""

    def number(self, value: float) -> str:
        """A number, to six digits."""


def _parts(name: str) -> list[str]:
    """`delta_z` is δ with the subscript z, `z1` is z with the subscript 1."""
    found: list[str] = []
    for part in name.strip("_").split("_"):
        letters = re.fullmatch(r"([A-Za-z]+)(\d+)", part)
        found += letters.groups() if letters else [part]
    return found


class Plain:
    """Plain characters, as in the docstrings: c_t = f ∘ c_{t-1}."""

    circle = " ∘ "
    space = " "
    relations = {"eq": "=", "ne": "≠", "lt": "<", "le": "≤", "gt": ">", "ge": "≥", "mod": "mod"}  # noqa: RUF012
    stacks = False

    def name(self, name: Name) -> str:
        base, *subscripts = _parts(name.base)
        base = "Δt" if name.base == "dt" else _GREEK.get(base, base)
        if subscripts[:1] == ["bar"]:
            base, subscripts = unicodedata.normalize("NFC", base + "\u0304"), subscripts[1:]
        subscripts = [_GREEK.get(part, part) for part in subscripts]
        if name.of:
            subscripts.append(self.name(Name(name.of)))
        if name.time:
            subscripts.append(name.time)
        inside = ",".join(subscripts)
        below = "" if not inside else f"_{inside}" if inside.isalnum() else f"_{{{inside}}}"
        above = f"^{{{name.above}}}" if name.above else ""
        count = "⁽" + str(name.count).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) + "⁾" if name.count else ""
        return f"{base}{name.mark}{below}{above}{count}"

    def call(self, function: str, arguments: Sequence[str]) -> str:
        return f"{function.replace('sigmoid', 'σ')}({', '.join(arguments)})"

    def group(self, content: str) -> str:
        return f"({content})"

    def fraction(self, a: str, b: str) -> str:
        return f"{a} / {b}"

    def power(self, base: str, exponent: int) -> str:
        return f"{base}{'²' if exponent == 2 else '³'}"

    def root(self, content: str) -> str:
        return f"√({content})"

    def absolute(self, content: str) -> str:
        return f"|{content}|"

    def floor(self, content: str) -> str:
        return f"⌊{content}⌋"

    def choice(self, cases: Sequence[tuple[str, str]], otherwise: str) -> str:
        return "; ".join([f"{value} where {condition}" for value, condition in cases] + [f"{otherwise} elsewhere"])

    def number(self, value: float) -> str:
        digits, _, exponent = f"{value:.6g}".partition("e")
        superscript = str(int(exponent or 0)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{digits}·10{superscript}" if exponent else digits


class LaTeX:
    r"""LaTeX mathematics, within what GitHub shows (which has no \operatorname)."""

    circle = r" \circ "
    space = r"\,"
    relations = {  # noqa: RUF012
        **{"eq": "=", "ne": r"\ne", "lt": r"\lt", "le": r"\le", "gt": r"\gt", "ge": r"\ge"},
        "mod": r"\bmod",
    }
    stacks = True

    def name(self, name: Name) -> str:
        base, *subscripts = map(self._word, _parts(name.base))
        if name.base == "dt":
            base = r"\Delta t"
        if subscripts[:1] == [self._word("bar")]:
            base, subscripts = rf"\bar{{{base}}}", subscripts[1:]
        if name.of:
            subscripts.append(self.name(Name(name.of)))
        if name.time:
            subscripts.append(name.time)
        above = rf"^{{\mathrm{{{name.above}}}}}" if name.above else f"^{{({name.count})}}" if name.count else ""
        below = f"_{{{','.join(subscripts)}}}" if subscripts else ""
        return f"{base}{name.mark}{below}{above}"

    def _word(self, word: str) -> str:
        if word in _GREEK:
            return f"\\{word}"
        return word if len(word) == 1 or word.isdigit() else rf"\mathrm{{{word}}}"

    def call(self, function: str, arguments: Sequence[str]) -> str:
        known = {"sigmoid": r"\sigma", "log sigmoid": r"\log \sigma"}
        standard = ("tanh", "exp", "log", "sin", "cos", "max", "min")
        called = known.get(function) or (f"\\{function}" if function in standard else rf"\mathrm{{{function}}}")
        return f"{called}{self.group(', '.join(arguments))}"

    def group(self, content: str) -> str:
        tall = r"\frac" in content or r"\begin" in content
        return rf"\left({content}\right)" if tall else f"({content})"

    def fraction(self, a: str, b: str) -> str:
        return rf"\frac{{{a}}}{{{b}}}"

    def power(self, base: str, exponent: int) -> str:
        return f"{base}^{{{exponent}}}"

    def root(self, content: str) -> str:
        return rf"\sqrt{{{content}}}"

    def absolute(self, content: str) -> str:
        return rf"\left|{content}\right|"

    def floor(self, content: str) -> str:
        return rf"\left\lfloor {content} \right\rfloor"

    def choice(self, cases: Sequence[tuple[str, str]], otherwise: str) -> str:
        rows = [rf"{value} & \text{{where }} {condition}" for value, condition in cases]
        return r"\begin{cases} " + r" \\ ".join([*rows, rf"{otherwise} & \text{{elsewhere}}"]) + r" \end{cases}"

    def number(self, value: float) -> str:
        digits, _, exponent = f"{value:.6g}".partition("e")
        return rf"{digits} \cdot 10^{{{int(exponent)}}}" if exponent else digits
