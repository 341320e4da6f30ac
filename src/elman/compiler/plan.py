"""A cell's whole compilation at given sizes: its step, its backward step, and the kernels of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from elman.cells.contract import Cell
from elman.cells.layout import Layout, MatrixProduct
from elman.compiler.differentiate import Backward, differentiate
from elman.compiler.emit import Kernel, emit
from elman.compiler.graph import CannotCompile, Graph, Node
from elman.compiler.schedule import schedule
from elman.compiler.trace import trace


@dataclass
class Plan:
    """Everything that a run needs to know of a cell.

    Args:
        cell, layout: the cell at its sizes.
        below: width of each state of the layer below that the cell reads.

    Raises:
        CannotCompile: the cell's step cannot be compiled; the message says why.
    """

    cell: Cell
    layout: Layout
    below: Mapping[str, int]

    def __post_init__(self) -> None:
        self.graph: Graph = trace(self.cell, self.layout, dict(self.below))
        self.integer = frozenset(e.name for e, _ in self.layout.states if e.dtype == "int64")
        self.biased = frozenset(p.name for p in self.layout.products.values() if p.bias)
        if not self.integer <= {"t"}:
            raise CannotCompile(f"it has integer states other than the step index: {', '.join(self.integer)}")

    @cached_property
    def backward(self) -> Backward:
        """The backward step."""
        return differentiate(self.graph, self.integer)

    @cached_property
    def inference(self) -> Kernel:
        """Forward, storing states alone."""
        return self._forward(())

    @cached_property
    def training(self) -> Kernel:
        """Forward, storing also what backward reads."""
        return self._forward(self.backward.saved)

    def _forward(self, saved: tuple[int, ...]) -> Kernel:
        stores = {f"next.{e}": index for e, index in self.graph.outputs.items()}
        stores |= {f"saved.{index}": index for index in saved}
        return emit(schedule(self.graph, stores, {}), self.biased)

    @cached_property
    def gradients(self) -> Kernel:
        """Backward."""
        stores: dict[str, int] = {}
        totals: dict[str, int] = {}
        for name, index in self.backward.graph.outputs.items():
            kind, _, rest = name.partition(".")
            if kind == "vector":
                totals[f"total.{rest}"] = index
            elif kind == "state":
                stores[f"handed.{rest}"] = index
            elif not (kind == "x" and self.shares_gradients):
                stores[f"d.{name}"] = index
        return emit(schedule(self.backward.graph, stores, totals), frozenset())

    @cached_property
    def shares_gradients(self) -> bool:
        """Whether each input gate has the gradient of the recurrent gate of its name, so that one buffer serves."""
        outputs = self.backward.graph.outputs
        pairs = [(f"x.{name}", f"product.{index}") for index, name in self.recurrent.items()]
        return (
            list(self.recurrent.values()) == list(self.layout.input_gates)
            and len(self.recurrent) == len(self.layout.input_gates)
            and all(x in outputs and outputs[x] == outputs[p] for x, p in pairs)
        )

    @cached_property
    def products(self) -> dict[int, Node]:
        """The product nodes of the step."""
        return {i: n for i, n in enumerate(self.graph.nodes) if n.op == "product"}

    @cached_property
    def recurrent(self) -> dict[int, str]:
        """Product nodes of the recurrent gates in the order of `weight_hh`'s rows, each with its gate."""
        order = [p.name for p in self.layout.products.values() if p.weight == "weight_hh"]
        found = [(i, n.name) for i, n in self.products.items() if n.name in order]
        return dict(sorted(found, key=lambda pair: (order.index(pair[1]), pair[0])))

    def product(self, name: str) -> MatrixProduct | None:
        """The declared product of a node's name; None for the inner factor of a low-rank one."""
        return self.layout.products.get(name)
