"""The one intermediate form: a small graph of values, and the table of operations that may join them.

A value is one vector for each row of the batch, of width H, or another declared width, or 1. Equal values are one node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Derivative = Callable[..., tuple["Symbol | None", ...]]


@dataclass(frozen=True)
class Operation:
    """One row of the table: a unit-by-unit operation.

    `cpp` is the C++ expression of its operands; `derivative(y, dy, *operands)` gives what each operand receives, None
    for nothing. A `mask` operation yields truth values, which carry no derivative.
    """

    cpp: str
    derivative: Derivative
    mask: bool = False


def _none(y: "Symbol", dy: "Symbol", *operands: "Symbol") -> tuple[None, ...]:
    return (None,) * len(operands)


def _maximum(y: "Symbol", dy: "Symbol", a: "Symbol", b: "Symbol", sign: int = 1) -> tuple["Symbol", "Symbol"]:
    first, second = (a, b) if sign > 0 else (b, a)
    taken = where(first == second, dy * 0.5, where(first > second, dy, dy * 0.0))
    return taken, dy - taken


def _comparison(operator: str) -> Operation:
    return Operation(f"({{0}} {operator} {{1}})", _none, mask=True)


OPERATIONS: dict[str, Operation] = {
    "add": Operation("({0} + {1})", lambda y, dy, a, b: (dy, dy)),
    "sub": Operation("({0} - {1})", lambda y, dy, a, b: (dy, -dy)),
    "mul": Operation("({0} * {1})", lambda y, dy, a, b: (dy * b, dy * a)),
    "div": Operation("({0} / {1})", lambda y, dy, a, b: (dy / b, -(dy * y) / b)),
    "neg": Operation("(-{0})", lambda y, dy, a: (-dy,)),
    "mod": Operation("remainder({0}, {1})", lambda y, dy, a, b: (dy, -(dy * apply("floor", a / b)))),
    "floor": Operation("floor({0})", _none),
    "sigmoid": Operation("sigmoid({0})", lambda y, dy, a: (dy * (y * (1 - y)),)),
    "tanh": Operation("tanh({0})", lambda y, dy, a: (dy * (1 - y * y),)),
    "relu": Operation("relu({0})", lambda y, dy, a: (where(a > 0, dy, dy * 0.0),)),
    "exp": Operation("exp({0})", lambda y, dy, a: (dy * y,)),
    "expm1": Operation("expm1({0})", lambda y, dy, a: (dy * (y + 1),)),
    "log": Operation("log({0})", lambda y, dy, a: (dy / a,)),
    "log1p": Operation("log1p({0})", lambda y, dy, a: (dy / (a + 1),)),
    "sqrt": Operation("sqrt({0})", lambda y, dy, a: (dy * 0.5 / y,)),
    "rsqrt": Operation("rsqrt({0})", lambda y, dy, a: (dy * -0.5 * (y * y * y),)),
    "sin": Operation("sin({0})", lambda y, dy, a: (dy * apply("cos", a),)),
    "cos": Operation("cos({0})", lambda y, dy, a: (-(dy * apply("sin", a)),)),
    "abs": Operation("abs({0})", lambda y, dy, a: (where(a > 0, dy, where(a < 0, -dy, dy * 0.0)),)),
    "maximum": Operation("maximum({0}, {1})", _maximum),
    "minimum": Operation("minimum({0}, {1})", lambda y, dy, a, b: _maximum(y, dy, a, b, -1)),
    "where": Operation(
        "({0} ? {1} : {2})", lambda y, dy, m, a, b: (None, where(m, dy, dy * 0.0), where(m, dy * 0.0, dy))
    ),
    "eq": _comparison("=="),
    "ne": _comparison("!="),
    "lt": _comparison("<"),
    "le": _comparison("<="),
    "gt": _comparison(">"),
    "ge": _comparison(">="),
    # A random choice has no operands: {0} is its number.
    "draw": Operation("draw(c, {0}, AT)", _none, mask=True),
}


@dataclass(frozen=True)
class Node:
    """One value.

    `op` is a row of OPERATIONS (of a "draw", `name` says which), or: "leaf" (`name` says which input), "number" (`name`
    its value), "product" (of the operand with the matrix `name`), "transposed" (the sum, over the matrices named in
    `name` as a space-separated list, of their transposes times the operands), "sum" (over the units of a row, width 1).
    """

    op: str
    args: tuple[int, ...]
    width: int
    name: str = ""


@dataclass
class Graph:
    """Nodes in an order in which operands come first, and the named results."""

    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    tracing: bool = False  # a step, which may make mistakes
    free: dict[int, bool] = field(default_factory=dict, repr=False)  # what `schedule` has found out
    _known: dict[Node, int] = field(default_factory=dict, repr=False)

    def add(self, node: Node) -> "Symbol":
        """The symbol of a node, which is added unless an equal one exists."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return Symbol(self, self._known[node])

    def leaf(self, name: str, width: int) -> "Symbol":
        """An input of the step."""
        return self.add(Node("leaf", (), width, name))

    def number(self, value: float) -> "Symbol":
        """A constant."""
        return self.add(Node("number", (), 1, repr(float(value))))


class CannotCompile(Exception):  # noqa: N818  (it reads as what it says)
    """A cell says something that the compiler does not know; the message says what."""


class Symbol:
    """A node of a graph, with the operators of a tensor."""

    __hash__ = object.__hash__

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph = graph
        self.index = index

    @property
    def node(self) -> Node:
        """The node itself."""
        return self.graph.nodes[self.index]

    @property
    def width(self) -> int:
        """Units of a row."""
        return self.node.width

    @property
    def is_mask(self) -> bool:
        """Whether it holds truth values."""
        return self.node.op in OPERATIONS and OPERATIONS[self.node.op].mask

    def __elman_apply__(self, name: str, operands: Sequence[Any]) -> "Symbol":
        if name == "mean":
            return row_sum(self) * self.graph.leaf(f"reciprocal.{self.width}", 1) if self.width > 1 else self
        return apply(name, *operands)

    def __bool__(self) -> bool:
        raise CannotCompile("step branches on a value, which a kernel cannot; use where(condition, a, b)")

    def __iter__(self) -> Any:
        raise CannotCompile("step iterates over the units of a value")

    def __getitem__(self, key: Any) -> "Symbol":
        raise CannotCompile(f"step takes a slice of a value, [{key!r}]")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in OPERATIONS:
            return lambda *others: apply(name, self, *others)
        raise CannotCompile(f"step uses {name!r} of a value, which the compiler does not know")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Symbol":
        name = {"true_divide": "div", "remainder": "mod", "multiply": "mul", "subtract": "sub"}.get(
            function.__name__, function.__name__
        )
        if name not in OPERATIONS or kwargs:
            raise CannotCompile(f"step uses torch.{function.__name__}, which the compiler does not know")
        return apply(name, *args)

    def _in_place(self, other: Any) -> Any:
        if self.node.op == "leaf":  # of a tensor, everybody else's would change too
            raise CannotCompile("step changes what it is given in place; write h = s.h + a in place of h = s.h; h += a")
        return NotImplemented  # then Python takes the operator without the assignment

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __imod__ = __ipow__ = _in_place

    def __add__(self, other: Any) -> "Symbol":
        return apply("add", self, other)

    def __radd__(self, other: Any) -> "Symbol":
        return apply("add", other, self)

    def __sub__(self, other: Any) -> "Symbol":
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> "Symbol":
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> "Symbol":
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> "Symbol":
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> "Symbol":
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> "Symbol":
        return apply("div", other, self)

    def __mod__(self, other: Any) -> "Symbol":
        return apply("mod", self, other)

    def __neg__(self) -> "Symbol":
        return apply("neg", self)

    def __pow__(self, exponent: Any) -> "Symbol":
        if isinstance(exponent, Symbol) or exponent not in (2, 3):
            raise CannotCompile(f"step raises a value to the power {_shown(exponent)}; the compiler knows 2 and 3")
        return self * self if exponent == 2 else self * self * self

    def __eq__(self, other: Any) -> "Symbol":  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: Any) -> "Symbol":  # type: ignore[override]
        return apply("ne", self, other)

    def __lt__(self, other: Any) -> "Symbol":
        return apply("lt", self, other)

    def __le__(self, other: Any) -> "Symbol":
        return apply("le", self, other)

    def __gt__(self, other: Any) -> "Symbol":
        return apply("gt", self, other)

    def __ge__(self, other: Any) -> "Symbol":
        return apply("ge", self, other)


def apply(name: str, *operands: Any) -> Symbol:
    """The result of an operation on symbols and numbers; arithmetic with 0 and 1 is done at once."""
    if name not in OPERATIONS:
        raise CannotCompile(f"the compiler does not know the operation {name!r}")
    graph = next(v.graph for v in operands if isinstance(v, Symbol))
    values = [v if isinstance(v, Symbol) else _as_number(graph, v) for v in operands]
    if graph.tracing:
        _check_masks(name, values)
    widths = {v.width for v in values} - {1}
    if len(widths) > 1:
        raise CannotCompile(f"{name} of values of {' and '.join(map(str, sorted(widths)))} units")
    simple = _simplified(name, values)
    if simple is not None:
        return simple
    return graph.add(Node(name, tuple(v.index for v in values), widths.pop() if widths else 1))


def _shown(exponent: Any) -> str:
    return "of another" if isinstance(exponent, Symbol) else repr(exponent)


def _check_masks(name: str, values: Sequence[Symbol]) -> None:
    """Truth values choose in `where` and are equal or not, and nothing else."""
    masks = [v.is_mask for v in values]
    if name in ("eq", "ne") and all(masks):
        return
    if name == "where" and not masks[0]:
        raise CannotCompile("where takes a comparison or a random choice as its condition, such as a > 0")
    if any(masks[1:] if name == "where" else masks):
        raise CannotCompile(f"step computes {name} of a truth value; choose by where(condition, a, b)")


def _as_number(graph: Graph, value: Any) -> Symbol:
    if isinstance(value, (int, float)) and value == value:  # no NaN
        return graph.number(value)
    shown = "NaN" if isinstance(value, float) else f"a {type(value).__name__}"
    raise CannotCompile(f"step mixes its values with {shown}")


def _simplified(name: str, values: list[Symbol]) -> Symbol | None:
    numbers = [float(v.node.name) if v.node.op == "number" else None for v in values]
    if name == "add":
        if numbers[0] == 0:
            return values[1]
        if numbers[1] == 0:
            return values[0]
    if name == "div" and numbers[1] == 1:
        return values[0]
    if name == "sub" and numbers[1] == 0:
        return values[0]
    if name == "mul":
        for number, this, other in ((numbers[0], values[0], values[1]), (numbers[1], values[1], values[0])):
            if number == 1:
                return other
            if number == 0:
                return this
    if name == "neg" and numbers[0] == 0:
        return values[0]
    if name == "where" and values[1].index == values[2].index:
        return values[1]
    return None


def where(condition: Symbol, a: Symbol, b: Symbol) -> Symbol:
    """`a` where the condition holds, else `b`."""
    return apply("where", condition, a, b)


def row_sum(v: Symbol) -> Symbol:
    """The sum over the units of each row."""
    return v if v.width == 1 else v.graph.add(Node("sum", (v.index,), 1))
