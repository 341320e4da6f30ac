"""Clocks: products whose results a step takes only at steps that are multiples of each unit's period."""

from elman.compiler.graph import Graph, Node


def clock_of(graph: Graph) -> str | None:
    """The constant that holds the periods by which all products and gates of a traced step are taken, or None.

    A product keeps the clock of a constant c where every way from it to a result passes through
    `where(t % c == 0, …, other)`: its units that are not due need not be computed, and their gradient is zero.
    """
    found = _clocks(graph)
    named = {found.get(i) for i, n in enumerate(graph.nodes) if n.op == "product" or n.name.startswith("x.")}
    if len(named) != 1:
        return None
    return named.pop()


def _clocks(graph: Graph) -> dict[int, str | None]:
    """For each node that a result needs, the one constant by whose clock alone it is needed, or None."""
    needed: dict[int, set[str | None]] = {index: {None} for index in graph.outputs.values()}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index not in needed:
            continue
        node = graph.nodes[index]
        here = needed[index] if len(needed[index]) == 1 else {None}
        clock = _clock_of_mask(graph, node)
        mixed = node.op in ("product", "sum")  # each unit of the result needs all units of the operand
        for place, argument in enumerate(node.args):
            taken = {clock} if clock and place == 1 and here <= {None, clock} else {None} if mixed else here
            needed.setdefault(argument, set()).update(taken)
    return {index: next(iter(found)) if len(found) == 1 else None for index, found in needed.items()}


def _clock_of_mask(graph: Graph, node: Node) -> str | None:
    """c, of a node `where(t % c == 0, …)`."""
    if node.op != "where":
        return None
    mask = graph.nodes[node.args[0]]
    if mask.op != "eq" or not _is_number(graph.nodes[mask.args[1]], 0.0):
        return None
    remainder = graph.nodes[mask.args[0]]
    if remainder.op != "mod":
        return None
    time, period = (graph.nodes[i] for i in remainder.args)
    if time.name != "state.t" or not period.name.startswith("constant.") or period.width != node.width:
        return None
    return period.name.removeprefix("constant.")


def _is_number(node: Node, value: float) -> bool:
    return node.op == "number" and float(node.name) == value
