"""Schedule: which part of a step computes what.

A part runs over blocks of units and tiles of rows: it takes the products of one level and one width, and what is
computed unit by unit from them. A product, or a sum over units, of something that a part computes waits for a later
part. Values that a later part reads are written to memory and read again; what is cheap to have is computed again.
"""

from dataclasses import dataclass, field

from elman.compiler.graph import OPERATIONS, Graph, Node


@dataclass
class Part:
    """One part of a step.

    Attributes:
        level: products on the longest path to what it computes.
        width: units of its domain.
        products: "product" and "transposed" nodes that it computes.
        stores: values that it writes, by the names of buffers.
        sums: "sum" nodes that it feeds.
        totals: values that it adds up over rows, by the names of buffers.
    """

    level: int
    width: int
    products: list[int] = field(default_factory=list)
    stores: dict[str, int] = field(default_factory=dict)
    sums: list[int] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)


@dataclass
class Schedule:
    """The parts in the order in which they run, and where each stored value is.

    `memory` gives the buffer from which a part other than the one that computes it reads a value, products included.
    """

    graph: Graph
    parts: list[Part]
    memory: dict[int, str]
    home: dict[int, tuple[int, int]]


def schedule(graph: Graph, stores: dict[str, int], totals: dict[str, int]) -> Schedule:
    """Schedule a graph.

    Args:
        graph: of a forward or a backward step.
        stores: values to write, by the names of buffers; a value may be named twice.
        totals: values to add up over rows, by the names of buffers.
    """
    needed = _needed(graph, [*stores.values(), *totals.values()])
    levels = _levels(graph)
    home = {index: (levels[index], graph.nodes[index].width) for index in needed}
    parts: dict[tuple[int, int], Part] = {}

    def part(index: int) -> Part:
        key = home[index]
        return parts.setdefault(key, Part(*key))

    memory: dict[int, str] = {}
    for name, index in stores.items():
        part(index).stores[name] = index
        memory.setdefault(index, name)
    for name, index in totals.items():
        part(index).totals[name] = index
    for index in needed:
        node = graph.nodes[index]
        if node.op in ("product", "transposed"):
            part(index).products.append(index)
        if node.op == "sum":
            part(node.args[0]).sums.append(index)

    def keep(index: int) -> None:
        """Have a value in memory."""
        node = graph.nodes[index]
        if index not in memory and (node.op != "leaf" or node.name.startswith("gradient.")):
            memory[index] = f"scratch.{index}"
            part(index).stores[memory[index]] = index

    for index in needed:
        node = graph.nodes[index]
        if node.op in ("product", "transposed"):
            for argument in node.args:
                keep(argument)
    changed = True
    while changed:  # storing a value may bring new reads with it
        before = len(memory)
        for each in list(parts.values()):
            sinks = [*each.stores.values(), *each.totals.values(), *(graph.nodes[s].args[0] for s in each.sums)]
            for index in _read_elsewhere(graph, home, sinks, (each.level, each.width)):
                keep(index)
        changed = len(memory) != before
    ordered = [parts[key] for key in sorted(parts, key=lambda key: (key[0], key[1]))]
    return Schedule(graph, ordered, memory, home)


def is_free(graph: Graph, home: dict[int, tuple[int, int]], index: int) -> bool:
    """Whether any part may compute a value for itself: inputs, numbers, and what is cheap on top of them.

    What comes of a sum over units is computed once for a row, by a part of width 1, and not for each vector of units.
    """
    node = graph.nodes[index]
    if node.op in ("leaf", "number"):
        return True
    if node.op in ("product", "transposed", "sum") or home[index][0] > 0:
        return False
    if index not in graph.free:
        graph.free[index] = all(is_free(graph, home, a) for a in node.args)
    return graph.free[index]


def in_place(graph: Graph, home: dict[int, tuple[int, int]], index: int) -> bool:
    """Whether a part computes a value itself though another does too: what is free, and truth values, which no buffer
    holds (their operands may be read)."""
    node = graph.nodes[index]
    return is_free(graph, home, index) or (node.op in OPERATIONS and OPERATIONS[node.op].mask)


def _read_elsewhere(
    graph: Graph, home: dict[int, tuple[int, int]], sinks: list[int], here: tuple[int, int]
) -> list[int]:
    """Values that a part needs for its sinks and must read, because another part computes them."""
    found, seen, stack = [], set(sinks), list(sinks)
    while stack:
        index = stack.pop()
        node = graph.nodes[index]
        if node.op in ("leaf", "number"):
            continue
        if home[index] != here and not in_place(graph, home, index):
            found.append(index)
            continue
        if node.op in ("product", "transposed", "sum"):
            continue
        for argument in node.args:
            if argument not in seen:
                seen.add(argument)
                stack.append(argument)
    return found


def _levels(graph: Graph) -> list[int]:
    levels: list[int] = []
    for node in graph.nodes:
        below = max((levels[a] for a in node.args), default=0)
        levels.append(below + (node.op in ("product", "transposed", "sum")))
    return levels


def _needed(graph: Graph, roots: list[int]) -> list[int]:
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack += graph.nodes[index].args
    return sorted(seen)


def products_by_operand(schedule: Schedule, part: Part) -> list[list[int]]:
    """A part's products in groups that share their operand; a "transposed" node is a group of its own."""
    groups: dict[object, list[int]] = {}
    for index in part.products:
        node: Node = schedule.graph.nodes[index]
        groups.setdefault(node.args[0] if node.op == "product" else ("transposed", index), []).append(index)
    return list(groups.values())
