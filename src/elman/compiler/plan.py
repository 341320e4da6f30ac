"""A cell's whole compilation at given sizes: its step, its backward step, and the kernels of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from elman.cells.contract import Cell
from elman.cells.layout import Layout, MatrixProduct
from elman.compiler.clock import clock_of
from elman.compiler.differentiate import Backward, differentiate
from elman.compiler.emit import Kernel, emit
from elman.compiler.graph import CannotCompile, Graph, Node
from elman.compiler.schedule import schedule
from elman.compiler.trace import trace


@dataclass(eq=False)
class Plan:
    """Everything that a run needs to know of a cell; equal only to itself.

    Args:
        cell, layout: the cell at its sizes.
        below: width of each state of the layer below that the cell reads.
        within: whether the products with the input are done within the step, for all its rows, and not before the loop.
            Those of a cell with a clock always are, so that units that are not due can be passed over.

    Attributes:
        graph: the step.
        clock: the constant with the periods by which all products are taken; see `clock_of`.

    Raises:
        CannotCompile: the cell's step cannot be compiled; the message says why.
    """

    cell: Cell
    layout: Layout
    below: Mapping[str, int]
    within: bool = False

    def __post_init__(self) -> None:
        self.graph: Graph = trace(self.cell, self.layout, dict(self.below))
        self.clock = clock_of(self.graph)
        if self.within or self.clock:
            self.layout = self.layout.within()
            self.graph = trace(self.cell, self.layout, dict(self.below))
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
        return emit(schedule(self.graph, stores, {}), self.layout, self.biased, self.clock is not None)

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
            elif not (kind == "x" and rest in self.shared) and not (kind == "product" and int(rest) in self.repeated):
                stores[f"d.{name}"] = index
        ordered = schedule(self.backward.graph, stores, totals)
        return emit(ordered, self.layout, frozenset(), self.clock is not None)

    @cached_property
    def shared(self) -> dict[str, int]:
        """Input gates whose gradient is also that of a product, which is then stored once: gate and product node."""
        outputs = self.backward.graph.outputs
        found: dict[str, int] = {}
        for gate in self.layout.input_gates:
            for index in self.products:
                same = f"x.{gate}" in outputs and outputs[f"x.{gate}"] == outputs.get(f"product.{index}")
                if same and index not in found.values():
                    found[gate] = index
                    break
        return found

    @cached_property
    def repeated(self) -> dict[int, int]:
        """Products whose gradient is also that of a product before, which is then stored once: that product."""
        first: dict[int, int] = {}
        found: dict[int, int] = {}
        for index in self.products:
            gradient = self.backward.graph.outputs.get(f"product.{index}")
            if gradient is not None and first.setdefault(gradient, index) != index:
                found[index] = first[gradient]
        return found

    @cached_property
    def product_names(self) -> tuple[str, ...]:
        """The names of the matrices that the step multiplies by."""
        return tuple(sorted({n.name for n in self.products.values()}))

    @cached_property
    def structured(self) -> tuple[str, ...]:
        """Of these, the ones whose matrix is not stored as the step multiplies by it."""
        declared = {n: self.layout.products.get(n) for n in self.product_names}
        return tuple(n for n, p in declared.items() if p and not p.fixed and not p.stored)

    @cached_property
    def reads_input(self) -> bool:
        """Whether the step reads the input's rows itself."""
        return any(n.op == "leaf" and n.name == "raw" for n in self.graph.nodes)

    @cached_property
    def saved_widths(self) -> dict[int, int]:
        """The nodes that forward saves for backward, with their widths."""
        return {index: self.graph.nodes[index].width for index in self.backward.saved}

    @cached_property
    def slots(self) -> dict[str, int]:
        """For input gates the node that forward may save over the gate's product with the input, which no later part of
        the step reads. For every gate or none; in a cell without products, where memory is what counts, for as many as
        can be.
        """
        return self._slots[0]

    @cached_property
    def over(self) -> bool:
        """Whether a backward step may write the gates' gradients over what was saved in their slots: no later part of
        it reads that, and memory is what counts."""
        return self._slots[1] and not self.products

    @cached_property
    def _slots(self) -> tuple[dict[str, int], bool]:
        gates = {gate: rows.stop - rows.start for gate, rows in self.layout.input_gates.items()}
        operands = {a for node in self.products.values() for a in node.args}  # read again after a backward loop
        here, there = self.training.spans, self.gradients.spans

        def forward(gate: str, node: int) -> bool:
            read = here.get(f"x.{gate}", (0, -1))[1]
            return self.graph.nodes[node].width == gates[gate] and read <= here[f"saved.{node}"][0]

        def both(gate: str, node: int) -> bool:
            gradient = f"d.product.{self.shared[gate]}" if gate in self.shared else f"d.x.{gate}"
            if not forward(gate, node) or gradient not in there:
                return False
            return there.get(f"saved.{node}", (0, -1))[1] <= there[gradient][0]

        for fits in (both, forward):
            nodes = {g: [n for n in self.saved_widths if n not in operands and fits(g, n)] for g in gates}
            found = matching(nodes)
            if found and (len(found) == len(gates) or not self.products):
                return found, fits is both
        return {}, False

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


def matching(choices: Mapping[str, list[int]]) -> dict[str, int]:
    """A choice for as many as possible, no two the same (Kuhn's algorithm)."""
    taken: dict[int, str] = {}

    def place(name: str, passed: set[int]) -> bool:
        for choice in choices[name]:
            if choice not in passed:
                passed.add(choice)
                if choice not in taken or place(taken[choice], passed):
                    taken[choice] = name
                    return True
        return False

    for name in choices:
        place(name, set())
    return {name: choice for choice, name in taken.items()}
