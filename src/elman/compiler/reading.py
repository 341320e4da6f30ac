"""A step's graph as a reader sees it: which values have names, and which operations are one function."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from elman.cells import math as functions
from elman.cells.layout import Layout
from elman.compiler.graph import OPERATIONS, CannotCompile, Graph, Node, Symbol
from elman.compiler.notation import Name, Plain

Known = dict[int, tuple[str, int]]
Normalised = dict[int, tuple[tuple[int, ...], tuple[int, ...]]]

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "softplus": functions.softplus,
    "log sigmoid": functions.log_sigmoid,
    "mean": functions.mean,
}


class Reading:
    """What the formulas of a step show.

    Args:
        graph, layout: of the step.
        names: of the step's own variables, by node.

    Attributes:
        known: nodes that a function of `elman.cells.math` made: its name, and the node that it is applied to.
        normalised: nodes that one `layer_norm` made together, each with all of them and what it was applied to.
        named: names of nodes that have an equation of their own.
        bias: the name of each bias, by "input" or "product" and what it belongs to.
    """

    def __init__(self, graph: Graph, layout: Layout, names: dict[int, str]) -> None:
        self.graph = graph
        self.layout = layout
        self.known, self.normalised = _recognised(graph)
        self.reached, self.uses = self._reach()
        self.named = self._name(names)
        self.bias = self._name_biases()

    def operands(self, index: int) -> tuple[int, ...]:
        """The nodes that the formula of a node shows."""
        if index in self.known:
            return (self.known[index][1],)
        if index in self.normalised:
            return self.normalised[index][1]
        return self.graph.nodes[index].args

    def _reach(self) -> tuple[list[int], Counter[int]]:
        uses: Counter[int] = Counter()
        stack, seen = list(set(self.graph.outputs.values())), set(self.graph.outputs.values())
        while stack:
            index = stack.pop()
            if index in self.normalised:  # what was normalised together is shown, and counted, together
                together = self.normalised[index][0]
                seen |= set(together)
                stack = [k for k in stack if k not in together]
            for operand in self.operands(index):
                uses[operand] += 1
                if operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        return sorted(seen), uses

    def _name(self, names: dict[int, str]) -> dict[int, Name]:
        nodes = self.graph.nodes
        named: dict[int, Name] = {}
        taken = {Plain().name(name) for name in map(leaf_name, nodes) if name is not None}
        taken |= {Plain().name(Name(entry, time="t")) for entry in self.graph.outputs}
        computed = [k for k in self.reached if nodes[k].op not in ("leaf", "number") and not self._is_mask(k)]
        computed = [k for k in computed if not self.counts_steps(k)]
        for entry, index in sorted(self.graph.outputs.items(), key=lambda item: item[0] != names.get(item[1])):
            if index in computed and index not in named:
                named[index] = Name(entry, time="t")
        letters = {*names.values(), *taken, *(entry.name for entry, _ in self.layout.states)}
        shared = next(letter for letter in ("v", "w", "a", "value") if letter not in letters)
        words: dict[str, list[int]] = {}
        for index in computed:
            if index in named:
                continue
            if index in names:
                words.setdefault(names[index], []).append(index)
            elif index in self.normalised or (self.uses[index] > 1 and not self._is_short(index)):
                words.setdefault(shared, []).append(index)
        for word, indices in words.items():
            marks = (Name(word, mark="'" * count) for count in range(len(taken) + 1))
            name = next(n for n in marks if Plain().name(n) not in taken)
            for count, index in enumerate(indices, start=1):
                named[index] = replace(name, count=count if len(indices) > 1 else 0)
        return named

    def counts_steps(self, index: int) -> bool:
        """Whether a node is the step index, one further."""
        return self.graph.outputs.get("t") == index and self._is_short(index)

    def _is_mask(self, index: int) -> bool:
        operation = OPERATIONS.get(self.graph.nodes[index].op)
        return operation is not None and operation.mask

    def _is_short(self, index: int) -> bool:
        """Whether a value is written sooner than named: 1 - z, 2 z, -z."""
        operands = [self.graph.nodes[k].op for k in self.operands(index)]
        arithmetic = self.graph.nodes[index].op in ("add", "sub", "mul", "div", "neg") and index not in self.known
        return arithmetic and (len(operands) == 1 or "number" in operands)

    def _name_biases(self) -> dict[tuple[str, str], Name]:
        taken = {Name(vector) for vector in self.layout.vectors}
        found: dict[tuple[str, str], Name] = {}
        owners = [("input", gate) for gate in self.layout.input_gates if self.layout.input_bias]
        owners += [("product", product.name) for product in self.layout.products.values() if product.bias]
        for kind, of in owners:
            gate = of.removeprefix("x.")
            marks = (Name("b", of=gate, mark="'" * count) for count in range(len(taken) + 1))
            name = next(n for n in marks if n not in taken and Name(f"b_{gate}", mark=n.mark) not in taken)
            taken.add(name)
            found[kind, of] = name
        return found


def leaf_name(node: Node) -> Name | None:
    """The name of an input of the step, but for the products with the input, which have none."""
    kind, _, name = node.name.partition(".")
    if node.op != "leaf":
        return None
    match kind:
        case "raw":
            return Name("x", time="t")
        case "state":
            return Name(name, time="" if name == "t" else "t-1")
        case "below":
            return Name(name, time="t", above="below")
        case "extra":
            return Name(name, time="" if name == "dt" else "t")
        case "vector" | "constant":
            return Name(name)
    return None


def _recognised(graph: Graph) -> tuple[Known, Normalised]:
    """Nodes that a function of several operations gives: applied again, it finds the nodes that are there."""
    again, count = Graph(), len(graph.nodes)
    for node in graph.nodes:
        again.add(node)

    def applied(function: Callable[..., Any], *arguments: int) -> list[int]:
        try:
            result = function(*(Symbol(again, k) for k in arguments))
        except CannotCompile:
            return []
        made = [v.index for v in (result if isinstance(result, tuple) else (result,))]
        return made if max(made) < count and not set(made) & set(arguments) else []

    known: Known = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "number" and not (node.op in OPERATIONS and OPERATIONS[node.op].mask):
            for name, function in _FUNCTIONS.items():
                known |= dict.fromkeys(applied(function, index), (name, index))
    normalised: Normalised = {}
    means = {k: of for k, (name, of) in known.items() if name == "mean"}
    for node in graph.nodes:
        if node.op == "sub":
            over = tuple(means[k] for k in _terms(graph, node.args[1]) if k in means)
            results = tuple(applied(functions.layer_norm, *over)) if over else ()
            normalised |= dict.fromkeys(results, (results, over))
    return known, normalised


def _terms(graph: Graph, index: int) -> list[int]:
    """The terms of a sum that is perhaps divided by a number."""
    node = graph.nodes[index]
    if node.op == "div" and graph.nodes[node.args[1]].op == "number":
        return _terms(graph, node.args[0])
    return [k for a in node.args for k in _terms(graph, a)] if node.op == "add" else [index]
