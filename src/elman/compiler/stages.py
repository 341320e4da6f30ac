"""Stages: a part's expressions in pieces, none of which has one costly function wait for another."""

from collections.abc import Sequence

from elman.compiler.graph import OPERATIONS, Graph

MOST_STAGES = 4

# Operations that cost no more than reading their result would.
CHEAP = {"add", "sub", "mul", "neg", "abs", "relu", "maximum", "minimum", "where"}


def stages_of(graph: Graph, computed: Sequence[int]) -> dict[int, int]:
    """The stage in which each value is computed, from 0 on.

    A processor looks ahead over about two vectors' operations. Where a function's value goes into another function (the
    LSTM's sigmoids into the cell state's tanh), it would wait for the first before it finds other work; so a stage is
    done for several vectors before the next one. Each value comes as late as it can: that leaves fewest to be kept.

    Args:
        computed: a part's values, operands first.
    """
    nodes = graph.nodes
    here = set(computed)

    def costly(index: int) -> bool:
        node = nodes[index]
        return node.op not in CHEAP and not OPERATIONS[node.op].mask and node.width > 1

    depth: dict[int, int] = {}  # how many costly operations follow one another up to here
    for index in computed:
        depth[index] = max((depth[a] for a in nodes[index].args if a in here), default=0) + costly(index)
    last = min(max(depth.values(), default=0), MOST_STAGES) - 1
    found: dict[int, int] = {}
    for index in reversed(computed):
        stage = found.setdefault(index, max(last, 0))
        for operand in nodes[index].args:
            if operand in here:
                earlier = max(stage - (costly(index) and depth[operand] > 0), 0)
                found[operand] = min(found.get(operand, earlier), earlier)
    return found
