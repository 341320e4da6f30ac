"""Stages of a part's expressions: operands first, and no costly function behind another in one stage."""

import pytest

from elman import Recurrent
from elman.compiler.graph import OPERATIONS, Graph
from elman.compiler.plan import Plan
from elman.compiler.stages import CHEAP, MOST_STAGES, stages_of


def _computed(graph: Graph) -> list[int]:
    """All that is computed unit by unit, as if it were one part."""
    return [i for i, node in enumerate(graph.nodes) if node.op in OPERATIONS and node.op not in ("sum", "product")]


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "slstm", "brc", "rg_lru", "phased_lstm", "nas", "ltc"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_no_function_waits_for_another(name: str, backward: bool) -> None:
    cell, layout = Recurrent(name, 16, 16).layers[0]
    plan = Plan(cell, layout, {})
    graph = plan.backward.graph if backward else plan.graph
    computed = _computed(graph)
    stages = stages_of(graph, computed)
    assert stages.keys() == set(computed)
    assert max(stages.values()) < MOST_STAGES

    def costly(index: int) -> bool:
        node = graph.nodes[index]
        return node.op not in CHEAP and not OPERATIONS[node.op].mask and node.width > 1

    behind: dict[int, bool] = {}  # whether a costly value is among what a value is made of within its own stage
    for index in computed:
        operands = [a for a in graph.nodes[index].args if a in stages]
        assert all(stages[a] <= stages[index] for a in operands)
        here = [a for a in operands if stages[a] == stages[index]]
        waits = any(behind[a] or costly(a) for a in here)
        behind[index] = waits
        # The first stage has all that is left where functions follow one another more often than there are stages.
        assert not (costly(index) and waits) or stages[index] == 0


@pytest.mark.parametrize(("name", "wanted"), [("elman", 1), ("lstm", 2), ("gru", 2)])
def test_the_number_of_stages(name: str, wanted: int) -> None:
    cell, layout = Recurrent(name, 16, 16).layers[0]
    assert f"stages = {wanted}," in Plan(cell, layout, {}).inference.source
