"""Differentiate: reverse mode over the graph of a step, giving the graph of its backward step."""

from dataclasses import dataclass

from elman.compiler.graph import OPERATIONS, Graph, Node, Symbol, row_sum


@dataclass(frozen=True)
class Backward:
    """The backward step.

    `graph` has the leaves of the forward step, `gradient.<entry>` for what each state entry receives from the loss at
    this step and from the step after, and `saved.<node>` for forward values that are stored; its outputs are
    `x.<gate>`, `raw`, `extra.<name>`, `below.<state>`, `state.<entry>`, `vector.<name>` (to be summed over rows) and
    `product.<node>`, each the gradient of that leaf or product of the forward step; `state` of every entry that is
    differentiated, so that a zero is handed on where nothing else is.
    `saved` are the forward nodes that the forward step must store.
    """

    graph: Graph
    saved: tuple[int, ...]


def differentiate(forward: Graph, integer: frozenset[str]) -> Backward:
    """The backward step of a traced step.

    Args:
        forward: the traced step.
        integer: state entries that carry no gradient.

    What to store: a forward value that backward reads is computed again where that takes only inputs, states (which
    are kept anyway), per-unit values and stored values; otherwise (it comes from a product, a sum, or from `x`, whose
    memory is reused) it is stored.
    """
    graph = Graph()
    carried: dict[int, Symbol] = {}

    def copy(index: int) -> Symbol:
        """The forward value, as a placeholder that `_resolve` later recomputes or reads."""
        if index not in carried:
            node = forward.nodes[index]
            name = node.name if node.op in ("leaf", "number") else f"forward.{index}"
            carried[index] = graph.number(float(name)) if node.op == "number" else graph.leaf(name, node.width)
        return carried[index]

    gradients: dict[int, Symbol] = {}

    def give(index: int, gradient: Symbol | None) -> None:
        if gradient is None:
            return
        if forward.nodes[index].width == 1:
            gradient = row_sum(gradient)
        if gradient.node.op == "number" and float(gradient.node.name) == 0:
            return
        gradients[index] = gradients[index] + gradient if index in gradients else gradient

    for entry, index in forward.outputs.items():
        if entry not in integer:
            give(index, graph.leaf(f"gradient.{entry}", forward.nodes[index].width))

    products: dict[int, list[tuple[str, Symbol]]] = {}  # by operand
    results: dict[str, Symbol] = {}
    for index in range(len(forward.nodes) - 1, -1, -1):
        node = forward.nodes[index]
        group = products.pop(index, [])
        if group:  # operands come first, so all products of this value have their gradients by now
            names = " ".join(name for name, _ in group)
            give(index, graph.add(Node("transposed", tuple(v.index for _, v in group), node.width, names)))
        gradient = gradients.get(index)
        if gradient is None:
            continue
        if node.op == "leaf":
            if (
                not node.name.startswith(("constant.", "reciprocal."))
                and node.name.removeprefix("state.") not in integer
            ):
                results[node.name] = gradient
        elif node.op == "product":
            products.setdefault(node.args[0], []).append((node.name, gradient))
            results[f"product.{index}"] = gradient
        elif node.op == "sum":
            give(node.args[0], gradient)
        elif node.op != "number":
            operands = [copy(a) for a in node.args]
            parts = OPERATIONS[node.op].derivative(copy(index), gradient, *operands)
            for argument, part in zip(node.args, parts, strict=True):
                give(argument, part)
    for node in forward.nodes:
        entry = node.name.removeprefix("state.")
        if node.op == "leaf" and entry in forward.outputs and entry not in integer and node.name not in results:
            results[node.name] = graph.add(Node("number", (), node.width, "0.0"))
    graph.outputs = {name: symbol.index for name, symbol in results.items()}
    _read_all(forward, graph, integer)
    return _resolve(forward, graph, integer)


def _read_all(forward: Graph, backward: Graph, integer: frozenset[str]) -> None:
    """Let the backward step read what each state receives, if for nothing: a kernel hands on only what it takes over.

    A state that is made by steps alone, such as `floor(v)`, passes nothing on of what it receives.
    """
    read = {node.name for node in _reachable(backward)}
    for entry, index in forward.outputs.items():
        name = f"gradient.{entry}"
        if entry not in integer and name not in read:
            received, nothing = backward.leaf(name, forward.nodes[index].width), backward.number(0)
            itself = received == received
            ignored = Node("where", (itself.index, nothing.index, nothing.index), received.width)
            old = backward.outputs[f"state.{entry}"]
            total = Node("add", (old, backward.add(ignored).index), received.width)
            backward.outputs[f"state.{entry}"] = backward.add(total).index


def _resolve(forward: Graph, backward: Graph, integer: frozenset[str]) -> Backward:
    """Replace `forward.<i>` placeholders by stored values or by what computes them again; drop what is unused."""
    needed = [int(n.name.split(".")[1]) for n in _reachable(backward) if n.name.startswith("forward.")]
    kept = {index: entry for entry, index in forward.outputs.items() if entry not in integer}
    # The gradient of a product's weights needs its operand, row by row.
    saved = {a for n in forward.nodes if n.op == "product" for a in n.args if forward.nodes[a].op != "leaf"} - set(kept)
    cheap: dict[int, bool] = {}

    def available(index: int) -> bool:
        """Whether backward can have the value without storing it."""
        if index not in cheap:
            node = forward.nodes[index]
            if node.op == "leaf":
                cheap[index] = not node.name.startswith("x.")
            elif index in kept or index in saved:
                cheap[index] = True
            else:
                cheap[index] = node.op not in ("product", "sum") and all(available(a) or a in saved for a in node.args)
        return cheap[index]

    def require(index: int) -> None:
        if available(index):
            return
        node = forward.nodes[index]
        if node.op in OPERATIONS and OPERATIONS[node.op].mask:  # no number: what it compares is stored instead
            for argument in node.args:
                require(argument)
        else:
            saved.add(index)
        cheap[index] = True

    for index in sorted({*needed, *_needed_leaves(forward, backward)}):
        require(index)

    result = Graph()
    built: dict[int, Symbol] = {}
    known: dict[int, Symbol] = {}

    def again(index: int) -> Symbol:
        if index not in known:
            known[index] = computed(index)
        return known[index]

    def computed(index: int) -> Symbol:
        node = forward.nodes[index]
        if index in saved:
            return result.leaf(f"saved.{index}", node.width)
        if index in kept and node.op not in ("leaf", "number"):
            return result.leaf(f"next.{kept[index]}", node.width)
        if node.op == "number":
            return result.number(float(node.name))
        return result.add(Node(node.op, tuple(again(a).index for a in node.args), node.width, node.name))

    x_leaves = {n.name: i for i, n in enumerate(forward.nodes) if n.op == "leaf"}
    for index, node in enumerate(backward.nodes):
        if node.name.startswith("forward."):
            built[index] = again(int(node.name.split(".")[1]))
        elif node.op == "leaf" and node.name in x_leaves:
            built[index] = again(x_leaves[node.name])
        else:
            args = tuple(built[a].index for a in node.args)
            built[index] = result.add(Node(node.op, args, node.width, node.name))
    result.outputs = {name: built[index].index for name, index in backward.outputs.items()}
    return Backward(_pruned(result), tuple(sorted(saved)))


def _needed_leaves(forward: Graph, backward: Graph) -> list[int]:
    names = {n.name for n in _reachable(backward) if n.op == "leaf"}
    return [i for i, n in enumerate(forward.nodes) if n.op == "leaf" and n.name in names]


def _reachable(graph: Graph) -> list[Node]:
    seen: set[int] = set()
    stack = list(graph.outputs.values())
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack += graph.nodes[index].args
    return [graph.nodes[i] for i in sorted(seen)]


def _pruned(graph: Graph) -> Graph:
    """The graph without the nodes that no output needs."""
    result = Graph()
    moved: dict[int, Symbol] = {}
    keep = set(graph.outputs.values())
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in keep:
            keep |= set(graph.nodes[index].args)
    for index in sorted(keep):
        node = graph.nodes[index]
        moved[index] = result.add(Node(node.op, tuple(moved[a].index for a in node.args), node.width, node.name))
    result.outputs = {name: moved[index].index for name, index in graph.outputs.items()}
    return result
