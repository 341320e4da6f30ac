"""Trace: a cell's step, run once on symbols, as a graph."""

from typing import Any

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.cells.named import Named
from elman.cells.structure import LowRank
from elman.compiler.graph import CannotCompile, Graph, Node, Symbol


def trace(cell: Cell, layout: Layout, below: dict[str, int] | None = None) -> Graph:
    """The graph of one step.

    Args:
        cell: whose `step` runs.
        layout: its sizes; input gates that are products there (see `Layout.within`) are products here.
        below: width of each state of the layer below that the cell reads.

    Returns:
        A graph with "draw" nodes for the cell's random choices, with leaves `x.<gate>`, `raw`, `extra.<name>`,
        `below.<state>`, `state.<entry>`, `vector.<name>` and `constant.<name>`, and an output for each state entry.

    Raises:
        CannotCompile: the step does something that a kernel cannot; the message says what.
    """
    graph = Graph(tracing=True)
    inputs: dict[str, Any] = {
        gate: graph.leaf(f"x.{gate}", rows.stop - rows.start) for gate, rows in layout.input_gates.items()
    }
    inputs |= {e.name: graph.leaf(f"extra.{e.name}", e.width) for e in layout.extras}
    inputs |= {d.name: graph.add(Node("draw", (), width, d.name)) for d, width in layout.draws}
    raw = inputs["raw"] = graph.leaf("raw", layout.input_size)
    for name, product in layout.products.items():
        if name.startswith("x.") and not cell.input_within:
            gate = graph.add(Node("product", (raw.index,), product.output, name))
            inputs[name.removeprefix("x.")] = gate
    inputs["below"] = Named(**{n: graph.leaf(f"below.{n}", w) for n, w in (below or {}).items()})
    values = {name: graph.leaf(f"vector.{name}", _vector_width(layout, name)) for name in layout.vectors}
    for name, array in cell.constants(layout.hidden_size).items():
        if array.ndim == 1:
            values[name] = graph.leaf(f"constant.{name}", len(array))
    state = cell.State(*(graph.leaf(f"state.{e.name}", width) for e, width in layout.states))

    try:
        result = cell.step(Named(**inputs), _Products(graph, layout), state, Named(**values))
    except CannotCompile:
        raise
    except Exception as error:
        raise CannotCompile(f"step fails on symbols: {type(error).__name__}: {error}") from error
    if not isinstance(result, tuple) or len(result) != len(layout.states):
        raise CannotCompile("step does not return self.State(...)")
    for value, (entry, width) in zip(result, layout.states, strict=True):
        if not isinstance(value, (Symbol, int, float)):
            raise CannotCompile(f"step returns {entry.name} as a {type(value).__name__}")
        symbol = value if isinstance(value, Symbol) else graph.number(value)
        if symbol.is_mask:
            raise CannotCompile(f"step returns truth values as {entry.name}; where(condition, 1.0, 0.0) makes numbers")
        if symbol.width != width:
            raise CannotCompile(f"step returns {entry.name} with {symbol.width} units, declared {width}")
        graph.outputs[entry.name] = symbol.index
    graph.tracing = False
    return graph


def _vector_width(layout: Layout, name: str) -> int:
    return next(p.shape[0] for p in layout.parameters if p.name == name)


class _Products:
    """The `u` of a step on symbols."""

    def __init__(self, graph: Graph, layout: Layout) -> None:
        self._graph = graph
        self._layout = layout

    def __getitem__(self, name: str) -> Any:
        product = self._layout.products.get(name)
        if product is None:
            raise AttributeError(f"the cell declares no product {name!r}")

        def times(operand: Any) -> Symbol:
            if not isinstance(operand, Symbol) or operand.width != product.input:
                width = operand.width if isinstance(operand, Symbol) else type(operand).__name__
                raise CannotCompile(f"u.{name} takes {product.input} units, got {width}")
            if isinstance(product.structure, LowRank):
                inner = Node("product", (operand.index,), product.structure.rank, f"{product.weight}_in")
                operand = self._graph.add(inner)
            return self._graph.add(Node("product", (operand.index,), product.output, name))

        return times

    def __getattr__(self, name: str) -> Any:
        return self[name]
