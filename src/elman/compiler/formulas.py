"""Formulas: a cell's step as equations that a reader knows, printed from its graph.

An equation is printed for each new state, for each value that the step gives a name of its own (the variable's name is
the equation's), and for each longer value that is used more than once. The rest is written where it is used. Values
that `elman.cells.math` makes of several operations (softplus, layer_norm, …) are recognised and written as one.
"""

import math
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.cells.structure import Antisymmetric
from elman.compiler.graph import Node, Symbol
from elman.compiler.notation import LaTeX, Name, Notation, Plain
from elman.compiler.reading import Reading, leaf_name
from elman.compiler.trace import trace

# How tightly a written formula holds together; less than what its place asks for puts it in brackets.
_CHOICE, _SUM, _PRODUCT, _APPLICATION, _ATOM = range(5)


@dataclass(frozen=True)
class Formulas:
    """The equations of a step, each as its left and right side, in the order in which they can be computed."""

    plain: tuple[tuple[str, str], ...]
    latex: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max(len(left) for left, _ in self.plain)
        return "\n".join(f"{left:{width}} = {right}" for left, right in self.plain)

    def markdown(self) -> str:
        """One displayed block of LaTeX."""
        rows = " \\\\\n".join(f"{left} &= {right}" for left, right in self.latex)
        return f"$$\n\\begin{{aligned}}\n{rows}\n\\end{{aligned}}\n$$"

    def without(self, others: "Formulas") -> "Formulas":
        """The equations that `others` does not have."""
        kept = [k for k, pair in enumerate(self.plain) if pair not in others.plain]
        return Formulas(tuple(self.plain[k] for k in kept), tuple(self.latex[k] for k in kept))


def formulas(cell: Cell, layout: Layout, below: dict[str, int] | None = None) -> Formulas:
    """The equations of a cell's step.

    Args:
        cell: whose `step` runs, on symbols.
        layout: its sizes; those of 1 would read as numbers.
        below: width of each state of the layer below that the cell reads.

    Returns:
        W stands for `weight_ih` (W_f are the rows of gate f), U for `weight_hh`, V for the matrix of a further
        product, A for an antisymmetric matrix, b for biases.

    Raises:
        CannotCompile: the step cannot be traced; the message says why.
    """
    names: dict[int, str] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call" and not (frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), Cell)):
            return None
        for name, value in frame.f_locals.items():
            if isinstance(value, Symbol):
                names.setdefault(value.index, name)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)  # the variables of a step are seen line by line; a debugger misses these lines
    try:
        graph = trace(cell, layout, below)
    finally:
        sys.settrace(before)
    reading = Reading(graph, layout, names)
    return Formulas(tuple(_Printer(reading, Plain()).equations()), tuple(_Printer(reading, LaTeX()).equations()))


class _Printer:
    """The equations in one notation."""

    def __init__(self, reading: Reading, notation: Notation) -> None:
        self.reading = reading
        self.nodes = reading.graph.nodes
        self.notation = notation

    def equations(self) -> list[tuple[str, str]]:
        """Left and right side of each equation."""
        reading, name = self.reading, self.notation.name
        found: list[tuple[str, str]] = []
        done: set[int] = set()
        for index in sorted(reading.named):
            if index in done:
                continue
            if index in reading.normalised:
                together, of = reading.normalised[index]
                done |= set(together)
                left = ", ".join(name(reading.named[k]) for k in together)
                found.append((left, self.notation.call("LN", [self.shown(k, _SUM) for k in of])))
            else:
                found.append((name(reading.named[index]), self.formula(index)[0]))
        for entry, index in reading.graph.outputs.items():
            left = name(Name(entry, time="t"))
            if reading.named.get(index) != Name(entry, time="t") and not reading.counts_steps(index):
                found.append((left, self.shown(index, _CHOICE)))
        return found

    def shown(self, index: int, place: int) -> str:
        """A node where it is used: by its name or its formula, in brackets where the place asks for them."""
        if index in self.reading.named:
            return self.notation.name(self.reading.named[index])
        content, tightness = self.formula(index)
        return content if tightness >= place else self.notation.group(content)

    def formula(self, index: int) -> tuple[str, int]:
        """The formula of a node, and how tightly it holds together."""
        notation, node = self.notation, self.nodes[index]
        if index in self.reading.known:
            function, of = self.reading.known[index]
            return notation.call(function, [self.shown(of, _SUM)]), _ATOM
        match node.op:
            case "leaf":
                return self._leaf(node)
            case "number":
                value = float(node.name)
                return ("e", _ATOM) if value == math.e else (notation.number(value), _ATOM if value >= 0 else _SUM)
            case "product":
                return self._product(node.name, node.args[0])
            case "add" | "sub" | "neg":
                return self._sum(index)
            case "mul":
                return self._factors(index)
            case "div":
                if notation.stacks:
                    return notation.fraction(*(self.shown(a, _SUM) for a in node.args)), _ATOM
                above, below = self.shown(node.args[0], _PRODUCT), self.shown(node.args[1], _ATOM)
                return notation.fraction(above, below), _PRODUCT
            case "where":
                return self._choice(index)
            case "sqrt":
                return notation.root(self.shown(node.args[0], _SUM)), _ATOM
            case "rsqrt":
                below_root = notation.root(self.shown(node.args[0], _SUM))
                return notation.fraction("1", below_root), _ATOM if notation.stacks else _PRODUCT
            case "log1p":
                return notation.call("log", [f"1 + {self.shown(node.args[0], _PRODUCT)}"]), _ATOM
            case "expm1":
                return f"{notation.call('exp', [self.shown(node.args[0], _SUM)])} - 1", _SUM
            case "floor":
                return notation.floor(self.shown(node.args[0], _SUM)), _ATOM
            case "abs":
                return notation.absolute(self.shown(node.args[0], _SUM)), _ATOM
            case "eq" | "ne" | "lt" | "le" | "gt" | "ge":
                a, b = (self.shown(k, _SUM) for k in node.args)
                return f"{a} {notation.relations[node.op]} {b}", _CHOICE
            case "mod":
                a, b = (self.shown(k, _ATOM) for k in node.args)
                return f"{a} {notation.relations['mod']} {b}", _PRODUCT
        called = {"maximum": "max", "minimum": "min"}.get(node.op, node.op)
        return notation.call(called, [self.shown(k, _SUM) for k in node.args]), _ATOM

    def _leaf(self, leaf: Node) -> tuple[str, int]:
        name = leaf_name(leaf)
        if name is not None:
            return self.notation.name(name), _ATOM
        kind, _, of = leaf.name.partition(".")
        if kind == "reciprocal":
            return self.notation.fraction("1", of), _PRODUCT
        product = (
            f"{self.notation.name(Name('W', of=of))}{self.notation.space}{self.notation.name(Name('x', time='t'))}"
        )
        bias = self.reading.bias.get(("input", of))
        return (f"{product} + {self.notation.name(bias)}", _SUM) if bias else (product, _APPLICATION)

    def _product(self, name: str, operand: int) -> tuple[str, int]:
        products, notation = self.reading.layout.products, self.notation
        if name in products:
            product = products[name]
            letter = {"weight_ih": "W", "weight_hh": "U"}.get(product.weight, "V")
            letter = "A" if isinstance(product.structure, Antisymmetric) else letter
            matrix = Name(name) if product.fixed else Name(letter, of=name.removeprefix("x."))
        else:  # the inner factor of a low-rank matrix
            inner = name.removesuffix("_in").removeprefix("weight_")
            matrix = Name("U", above="in") if inner == "hh" else Name("V", of=inner, above="in")
        written = f"{notation.name(matrix)}{notation.space}{self.shown(operand, _APPLICATION)}"
        bias = self.reading.bias.get(("product", name))
        return (f"{written} + {notation.name(bias)}", _SUM) if bias else (written, _APPLICATION)

    def _sum(self, index: int) -> tuple[str, int]:
        """Terms with their signs; biases come last, as in a text."""
        terms: list[tuple[str, str]] = []
        biases: list[tuple[str, str]] = []

        def add(k: int, sign: str, whole: bool) -> None:
            node = self.nodes[k]
            inline = k == index or (k not in self.reading.named and k not in self.reading.known)
            if inline and node.op == "add" and whole:
                add(node.args[0], sign, whole)
                add(node.args[1], sign, whole)
            elif inline and node.op == "sub" and whole:
                add(node.args[0], sign, whole)
                add(node.args[1], "-", False)
            elif inline and node.op == "neg":
                add(node.args[0], "+" if sign == "-" else "-", False)
            elif inline and node.op == "mul" and (product := self._factors(k)[0]).startswith("-"):
                terms.append(("+" if sign == "-" else "-", product[1:]))
            elif node.op == "number" and float(node.name) < 0:
                terms.append(("+" if sign == "-" else "-", self.notation.number(-float(node.name))))
            elif inline and whole and (bias := self._bias(k)):
                terms.append((sign, self.formula(k)[0].removesuffix(f" + {bias}")))
                biases.append((sign, bias))
            else:
                terms.append((sign, self.shown(k, _PRODUCT)))

        add(index, "+", True)
        (sign, first), *others = terms + biases
        written = ("-" if sign == "-" else "") + first + "".join(f" {s} {term}" for s, term in others)
        return written, _SUM

    def _bias(self, index: int) -> str | None:
        node = self.nodes[index]
        kind, of = ("product", node.name) if node.op == "product" else ("input", node.name.removeprefix("x."))
        bias = self.reading.bias.get((kind, of)) if node.op == "product" or node.name.startswith("x.") else None
        return None if bias is None else self.notation.name(bias)

    def _factors(self, index: int) -> tuple[str, int]:
        """Factors with numbers first; a circle stands between two that have a value for each unit."""
        factors: list[int] = []

        def add(k: int) -> None:
            if self.nodes[k].op == "mul" and (k == index or not (k in self.reading.named or k in self.reading.known)):
                for operand in self.nodes[k].args:
                    add(operand)
            else:
                factors.append(k)

        add(index)
        numbers = [float(self.nodes[k].name) for k in factors if self.nodes[k].op == "number"]
        rest = [k for k in factors if self.nodes[k].op != "number"]
        number = math.prod(numbers)
        written = "" if number == 1 else "-" if number == -1 else f"{self.notation.number(number)}{self.notation.space}"
        last_is_vector = False
        place = 0
        while place < len(rest):
            k = rest[place]
            power = 1
            while place + power < len(rest) and rest[place + power] == k and power < 3:
                power += 1
            factor = self.shown(k, _ATOM if len(rest) > 1 else _APPLICATION)
            if power > 1:
                name = self.reading.named.get(k)
                has_superscript = name is not None and (name.count or name.mark)
                factor = self.notation.power(self.notation.group(factor) if has_superscript else factor, power)
            is_vector = self.nodes[k].width > 1
            if place:
                written += self.notation.circle if is_vector and last_is_vector else self.notation.space
            written += factor
            last_is_vector = is_vector
            place += power
        return written, _SUM if written.startswith("-") else _PRODUCT

    def _choice(self, index: int) -> tuple[str, int]:
        cases: list[tuple[str, str]] = []
        while True:
            condition, value, index = self.nodes[index].args
            cases.append((self.shown(value, _SUM), self.shown(condition, _CHOICE)))
            if index in self.reading.named or self.nodes[index].op != "where" or index in self.reading.known:
                break
        written = self.notation.choice(cases, self.shown(index, _SUM))
        return written, _ATOM if self.notation.stacks else _CHOICE
