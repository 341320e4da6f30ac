"""Emit: a scheduled step as C++ parts for `recurrence.h`, beside the table of buffers and matrices that it names.

The source depends on the cell alone: sizes are filled in when it runs.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from elman.cells.layout import Layout
from elman.compiler.expressions import Expressions, point
from elman.compiler.graph import OPERATIONS
from elman.compiler.schedule import Part, Schedule, products_by_operand
from elman.compiler.stages import CHEAP


@dataclass(frozen=True)
class Group:
    """Matrices that one loop over an operand multiplies by.

    Attributes:
        products: their names; all transposed, or none.
        transposed: whether the operand is the products' gradients, in the same order.
        width: units of the result (for a plain group, of each product).
        blocks: unit blocks that are computed together, so that enough accumulators are in flight.
        inputs: whether they are products with the input, which may have been done before the loop: the names are
            those of the step's leaves, `x.<gate>`, and a run without these matrices reads buffers of the same names.
        added: for each product the leaf of an input gate that is added to it, and that nothing else reads; or empty. A
            run with these matrices sums both products as one over the operand and the input. Either way it reads the
            leaf's buffer, in which then is the bias, for all rows the same.
    """

    products: tuple[str, ...]
    transposed: bool
    width: int
    blocks: int
    inputs: bool = False
    added: tuple[str, ...] = ()


@dataclass(eq=False)
class Kernel:
    """The generated parts; equal only to itself, so that engines may keep what they derive from it.

    Attributes:
        source: C++ that defines BUFFERS, CLOCK, PARTS, SUMS and `step`, and POINTWISE where there are no products.
        buffers: width of each buffer that the source names, in the order of its numbers.
        groups: the matrices, in the order of their numbers.
        sums: how many row sums are kept.
        draws: the random choices that are made afresh at each step, in the order of their numbers; of the others the
            buffers `draw.<name>` hold 1 where a unit is chosen, else 0.
        ahead: gates whose products with the input must have been done before the loop.
        spans: for each buffer the first and the last stage that names it, counted over all parts.
    """

    source: str = ""
    buffers: dict[str, int] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    sums: int = 0
    draws: list[str] = field(default_factory=list)
    ahead: set[str] = field(default_factory=set)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


def emit(schedule: Schedule, layout: Layout, biased: frozenset[str], clocked: bool = False) -> Kernel:
    """Print a schedule.

    Args:
        schedule: of a forward or backward step.
        layout: of the cell.
        biased: products that have a bias, which is read from the buffer `bias.<product>`.
        clocked: whether units of the products are wanted only where they are due; see `clock_of`.
    """
    return _Emitter(schedule, layout, biased, clocked).emit()


_MOST_BLOCKS = 4  # of units that are computed together
_TOGETHER = 4  # MOST_TOGETHER of tiles.h

# Buffers that the header needs beside a leaf; HANDED directly after CARRY.
_COMPANIONS = {"gradient": ("carry", "handed", "sequence", "final", "fresh"), "state": ("state", "previous", "default")}


# What has a row of its own for each step, so that its numbers come from far and go far; in a forward step the states do
# not, for they have just been written. A gradient is read of its sequence.
_OF_A_STEP = {"x", "raw", "extra", "below", "saved", "next", "state", "d", "sequence"}


def _same_at_all_steps(schedule: Schedule) -> list[int]:
    """Values that depend on per-unit values alone and are worth keeping from step to step."""
    nodes = schedule.graph.nodes
    fixed: set[int] = set()
    costly: set[int] = set()
    read: set[int] = {v for part in schedule.parts for v in (*part.stores.values(), *part.totals.values())}
    for index in sorted(schedule.home):
        node = nodes[index]
        pointwise = node.op in OPERATIONS and not OPERATIONS[node.op].mask
        leaf = node.op == "number" or node.name.startswith(("vector.", "constant."))
        if leaf or (pointwise and fixed.issuperset(node.args)):
            fixed.add(index)
            if pointwise and (node.op not in CHEAP or costly.intersection(node.args)):
                costly.add(index)
        else:
            read.update(node.args)
    return sorted(costly & read)


class _Emitter:
    def __init__(self, schedule: Schedule, layout: Layout, biased: frozenset[str], clocked: bool) -> None:
        self._schedule = schedule
        self._input_size = layout.input_size
        self._products = layout.products
        self._clocked = clocked
        self._forward = any(name.startswith("next.") for part in schedule.parts for name in part.stores)
        self._graph = schedule.graph
        self._kernel = Kernel()
        self._expressions = Expressions(schedule, layout, biased, self._kernel)
        self._buffer = self._expressions.buffer
        self._vectors: list[int] = []  # of each group, its products
        stored = (i for part in schedule.parts for i in (*part.stores.values(), *part.totals.values()))
        arguments = (a for index in schedule.home for a in schedule.graph.nodes[index].args)
        self._reads = Counter([*stored, *arguments])  # of each node

    def emit(self) -> Kernel:
        for node in self._graph.nodes:
            kind, _, entry = node.name.partition(".")
            for prefix in _COMPANIONS.get(kind, ()) if node.op == "leaf" else ():
                self._buffer(f"{prefix}.{entry}", node.width)
        self._kernel.sums = len(self._expressions.sums)
        before = [self._before(index) for index in _same_at_all_steps(self._schedule)]
        bodies = [self._part(number, part) for number, part in enumerate(self._schedule.parts)]
        calls = "    arrive(c);\n".join(f"    run_part<Part{n}>(c);\n" for n in range(len(bodies)))
        first = "".join(f"    over_units<Once{n}>(c);\n" for n in self._expressions.once)
        clock = self._buffer("state.t", 1) if self._clocked else -1
        names = [*self._kernel.buffers]
        sizes = f"BUFFERS = {max(1, len(self._kernel.buffers))}, CLOCK = {clock}, MOST_BLOCKS = {_MOST_BLOCKS}"
        sizes += f", INPUT = {names.index('input') if 'input' in names else -1}"
        sizes += f", PARTS = {len(self._schedule.parts)}, SUMS = {self._kernel.sums}"
        pointwise = "" if self._kernel.groups else "#define POINTWISE\n"
        head = f'{pointwise}enum {{ {sizes} }};\n#include "recurrence.h"\n\n'
        functions = (("once", first), ("step", calls))
        bodies += [f"static void {name}(const Context &c) {{\n{lines}}}\n" for name, lines in functions]
        self._kernel.source = head + "\n".join([*before, *bodies])
        return self._kernel

    def _before(self, index: int) -> str:
        """What computes a value before the first step; each thread has the result for itself."""
        width, name = self._graph.nodes[index].width, f"once.{index}"
        self._expressions.begin(0)
        stages, _ = self._expressions.stages(Part(0, width, stores={name: index}), {}, whole=True)
        self._expressions.once[index] = name
        return (
            f"struct Once{index} {{\n    enum {{ domain_buffer = {self._buffer(f'domain.{width}', width)} }};\n"
            + point(stages)
            + "};\n"
        )

    def _part(self, number: int, part: Part) -> str:
        self._expressions.begin(number)
        accumulator: dict[int, int] = {}
        added = self._find_added(part)
        leaves = [x for x in self._inputs_of(part) if x not in added.values()] if part.products else []
        count = len(part.products) + len(leaves)
        blocks = 1 if part.width == 1 else {1: _MOST_BLOCKS, 2: _MOST_BLOCKS // 2}.get(len(part.products), 1)
        tables: list[str] = []
        calls: list[str] = []
        first = len(self._kernel.groups)
        for group in products_by_operand(self._schedule, part):
            nodes = [self._graph.nodes[index] for index in group]
            transposed = nodes[0].op == "transposed"
            names = tuple(nodes[0].name.split()) if transposed else tuple(n.name for n in nodes)
            segments = [self._read_from(a) for a in nodes[0].args]
            gates = tuple(self._graph.nodes[added[index]].name for index in group if index in added)
            given = [self._buffer(n, part.width) for n in gates]
            if gates:
                segments.append(self._buffer("input", self._input_size))
            products = Group(names, transposed, part.width, blocks, added=gates)
            name, table = self._group(products, count, group, accumulator, segments, given)
            tables.append(table)
            calls.append(f"multiply<HOW>(c, {name}, acc, row, several, block, units);")
        if leaves:
            names = tuple(self._graph.nodes[index].name for index in leaves)
            segments = [self._buffer("input", self._input_size)]
            given = [self._buffer(n, part.width) for n in names]
            inputs = Group(names, False, part.width, blocks, inputs=True)
            name, table = self._group(inputs, count, leaves, accumulator, segments, given)
            tables.append(table)
            calls.append(f"inputs<HOW>(c, {name}, acc, row, several, block, units);")
        passes = (f"pass_of({blocks * n})" for n in self._vectors[first:])
        wide = functools.reduce(lambda a, b: f"larger({a}, {b})", passes, "1")
        groups = [f"&group{n}" for n in range(first, len(self._kernel.groups))]
        transposes = any(self._graph.nodes[index].op == "transposed" for index in part.products)
        stages, kept = self._expressions.stages(part, accumulator)
        reads, writes = self._streams(part)
        named = list(self._kernel.buffers)  # by the expressions
        streams = [named.index(name) for name in reads + writes]
        first_sum = self._expressions.sums[part.sums[0]] if part.sums else 0
        domain = self._buffer(f"domain.{part.width}", part.width)
        return "".join(tables) + (
            f"struct Part{number} {{\n"
            f"    enum {{ count = {count}, blocks = {blocks}, domain_buffer = {domain}, "
            f"single = {int(part.width == 1)}, transposes = {int(transposes)}, widest = {wide}, "
            f"sums = {len(part.sums)}, first_sum = {first_sum}, stages = {len(stages)}, kept = {kept}, "
            f"reads = {len(reads)}, streams = {len(streams)} }};\n"
            f"    static constexpr const Group *groups[] = {{{', '.join([*groups, '0'])}}};\n"
            f"    static constexpr int stream[] = {{{', '.join(map(str, [*streams, 0]))}}};\n"
            f"    template <How HOW> INLINE void multiply_all(const Context &c, V *acc, int64_t row, int64_t several, "
            f"int64_t block, int64_t units) {{\n{''.join(f'        {call}' + chr(10) for call in calls)}    }}\n"
            + point(stages)
            + "};\n"
        )

    def _group(
        self,
        group: Group,
        total: int,
        indices: list[int],
        accumulator: dict[int, int],
        segments: list[int],
        given: Sequence[int] = (),
    ) -> tuple[str, str]:
        """Number a group of the `total` products of a part and give its results places.

        Returns:
            the name of its table, and the table.
        """
        first, number = len(accumulator), len(self._kernel.groups)
        places = [b * total + first + i for b in range(_TOGETHER * group.blocks) for i in range(len(indices))]
        accumulator.update({index: first + i for i, index in enumerate(indices)})
        self._kernel.groups.append(group)
        self._vectors.append(len(indices))
        name, lines = f"group{number}", []
        entries = [number, int(group.transposed), group.blocks, len(indices), total, len(segments)]
        arrays = (("int", "segments", segments), ("int32_t", "places", places), ("int", "given", given))
        for kind, what, numbers in arrays:
            if numbers:
                lines.append(f"static const {kind} {name}_{what}[] = {{{', '.join(map(str, numbers))}}};\n")
        names = [f"{name}_{what}" if numbers else "0" for _, what, numbers in arrays]
        lines.append(f"static const Group {name} = {{{', '.join([*map(str, entries), *names])}}};\n")
        return name, "".join(lines)

    def _read_from(self, index: int) -> int:
        """The buffer that holds a value from which a product reads."""
        node = self._graph.nodes[index]
        name = self._schedule.memory.get(index, node.name)
        return self._buffer(name, node.width)

    def _inputs_of(self, part: Part) -> list[int]:
        """The leaves of input gates that a part reads, as wide as itself."""
        nodes, here = self._graph.nodes, (part.level, part.width)
        read = {a for index in self._expressions.computed_here(part, here) for a in nodes[index].args} | set(
            part.stores.values()
        )
        return sorted(
            i for i in read if nodes[i].name.startswith("x.") and nodes[i].op == "leaf" and nodes[i].width == part.width
        )

    def _streams(self, part: Part) -> tuple[list[str], list[str]]:
        """The buffers whose numbers a part reads, and those that it writes, of each step once."""
        if part.width == 1:  # which fetches nothing
            return [], []
        nodes = self._graph.nodes
        computed = self._expressions.computed_here(part, (part.level, part.width))
        read = {a for index in computed for a in nodes[index].args}
        read |= {*part.stores.values(), *part.totals.values(), *(nodes[s].args[0] for s in part.sums)}
        leaves = [nodes[i].name for i in sorted(read) if nodes[i].op == "leaf" and nodes[i].width == part.width]
        names = [f"sequence.{n[9:]}" if n.startswith("gradient.") else n for n in leaves]
        kinds = _OF_A_STEP - ({"state"} if self._forward else set())
        reads, writes = ([n for n in each if n.partition(".")[0] in kinds] for each in (names, part.stores))
        return reads, writes

    def _find_added(self, part: Part) -> dict[int, int]:
        """A part's products to each of which an input gate is added, with the gate's leaf: where nothing else reads
        either, and the same is true of all products of the operand, so that they stay one group."""
        nodes, here = self._graph.nodes, (part.level, part.width)
        found: dict[int, tuple[int, int]] = {}  # by the product: the leaf and the sum
        for index in self._expressions.computed_here(part, here) if part.products else ():
            args = nodes[index].args
            for product, leaf in (args, args[::-1]) if nodes[index].op == "add" else ():
                summed = nodes[product].op == "product" and product in part.products and self._is_dense(product)
                gate = nodes[leaf].op == "leaf" and nodes[leaf].name.startswith("x.")
                if summed and gate and self._reads[product] == self._reads[leaf] == 1:
                    found[product] = (leaf, index)
        for group in products_by_operand(self._schedule, part):
            if not found.keys() >= set(group):
                found = {product: pair for product, pair in found.items() if product not in group}
        self._expressions.added |= {index: (product, leaf) for product, (leaf, index) in found.items()}
        return {product: leaf for product, (leaf, _) in found.items()}

    def _is_dense(self, index: int) -> bool:
        """Whether a product's matrix has weights everywhere."""
        product = self._products.get(self._graph.nodes[index].name)
        return product is None or not product.sparse
