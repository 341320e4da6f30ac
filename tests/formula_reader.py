"""Reads printed formulas back and computes them: what is printed is then known to be what a step does."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_TOKEN = re.compile(
    rf"(?P<number>\d+(\.\d+)?(·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?)"
    rf"|(?P<name>[^\W\d_²³]+\u0304?'*(_([^\W²³]+|{_BRACES}))?(\^{_BRACES})?(⁽[⁰¹²³⁴⁵⁶⁷⁸⁹]+⁾)?)"
    r"|(?P<mark>[-+∘/=≠<≤>≥;,()|⌊⌋√²³])|\s+"
)
_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_FUNCTIONS = {
    **{name: getattr(torch, name) for name in ("tanh", "relu", "exp", "log", "sin", "cos")},
    "σ": torch.sigmoid,
    "max": torch.maximum,
    "min": torch.minimum,
    "softplus": torch.nn.functional.softplus,
    "mean": lambda v: v.mean(-1, keepdim=True),
}
_RELATIONS = {"=": torch.eq, "≠": torch.ne, "<": torch.lt, "≤": torch.le, ">": torch.gt, "≥": torch.ge}


def layer_norm(*values: Tensor) -> tuple[Tensor, ...]:
    """LN over all the arguments together."""
    whole = torch.stack(values, -1)
    normal = (whole - whole.mean((1, 2), keepdim=True)) / (whole.var((1, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    return normal.unbind(-1)


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """The value of a formula, or a tuple of them for LN. `names` holds tensors [B, width] and matrices as functions."""
    reader = _Reader(text, names)
    value = reader.choice()
    assert reader.at == len(reader.tokens), f"{text!r} goes on after {reader.at} tokens"
    return value


class _Reader:
    """Recursive descent: choice > sum > product > application > atom."""

    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self.names = names
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            assert found, f"{text!r}: what is {text[place:]!r}?"
            place = found.end()
            if found.lastgroup:
                kind = next(k for k in ("number", "name", "mark") if found[k])
                self.tokens.append((kind, found[0]))
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        assert not expected or token == expected, f"{expected!r} expected, got {token!r}"
        self.at += 1
        return token

    def choice(self) -> Any:
        value = self.sum()
        cases = []
        while self.peek() == "where":
            self.take()
            left = self.sum()
            relation = _RELATIONS[self.take()]
            cases.append((relation(left, torch.as_tensor(self.sum(), dtype=left.dtype)), value))
            self.take(";")
            value = self.sum()
        if cases:
            self.take("elsewhere")
        for condition, taken in reversed(cases):
            value = torch.where(condition, taken, value)
        return value

    def sum(self) -> Any:
        sign = self.take() if self.peek() == "-" else ""
        value = self.product()
        value = -value if sign else value
        while self.peek() in ("+", "-"):
            plus = self.take() == "+"
            value = value + self.product() if plus else value - self.product()
        return value

    def product(self) -> Any:
        value = self.application()
        while self.at < len(self.tokens) and self.peek() not in ("+", "-", ";", ",", ")", "⌋", *_RELATIONS, "|"):
            if self.peek() in ("where", "elsewhere"):
                break
            if self.peek() == "/":
                self.take()
                value = value / self.application()
            elif self.peek() == "mod":
                self.take()
                value = value % self.application()
            else:
                if self.peek() == "∘":
                    self.take()
                value = value * self.application()
        return value

    def application(self) -> Any:
        kind, token = self.tokens[self.at]
        if (
            kind == "name"
            and token not in _FUNCTIONS
            and token not in ("log", "LN")
            and callable(self.names.get(token))
        ):
            self.take()
            return self.names[token](self.application())
        return self.atom()

    def atom(self) -> Any:
        kind, token = self.tokens[self.at]
        self.take()
        if kind == "number":
            digits, _, exponent = token.partition("·10")
            value: Any = float(digits) * 10.0 ** int(exponent.translate(_DIGITS) or 0)
        elif kind == "name" and token == "log" and self.peek() == "σ":
            self.take()
            value = torch.nn.functional.logsigmoid(*self.arguments())
        elif kind == "name" and token == "LN":
            return layer_norm(*self.arguments())
        elif kind == "name" and token in _FUNCTIONS and self.peek() == "(":
            given = self.arguments()
            tensor = next((v for v in given if isinstance(v, Tensor)), torch.zeros(()))
            value = _FUNCTIONS[token](*(torch.as_tensor(v, dtype=torch.float64).expand_as(tensor) for v in given))
        elif kind == "name":
            assert token in self.names, f"no value for {token!r}"
            value = self.names[token]
        elif token == "(":
            value = self.choice()
            self.take(")")
        elif token == "√":
            value = self.arguments()[0].sqrt()
        elif token in ("|", "⌊"):
            inside = self.sum()
            self.take({"|": "|", "⌊": "⌋"}[token])
            value = inside.abs() if token == "|" else inside.floor()
        else:
            raise AssertionError(f"a value was expected, got {token!r}")
        if self.peek() in ("²", "³"):
            value = value ** (2 if self.take() == "²" else 3)
        return value

    def arguments(self) -> list[Any]:
        self.take("(")
        found = [self.choice()]
        while self.peek() == ",":
            self.take()
            found.append(self.choice())
        self.take(")")
        return found
