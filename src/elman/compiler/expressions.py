"""The expressions of a step's parts, as C++ for one vector of units."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elman.cells.layout import Layout
from elman.compiler.graph import OPERATIONS
from elman.compiler.schedule import Part, Schedule, in_place
from elman.compiler.stages import MOST_STAGES, stages_of

if TYPE_CHECKING:
    from elman.compiler.emit import Kernel


def point(stages: Sequence[Sequence[str]]) -> str:
    """The function of a part that computes one stage of its expressions."""
    lines = []
    for number, stage in enumerate(stages):
        condition = f"        if constexpr (STAGE == {number}) {{\n" if len(stages) > 1 else "        {\n"
        lines += [condition, *(f"            {line}\n" for line in stage), "        }\n"]
    return (
        "    template <bool WHOLE, int N, int DOWN, int STAGE>\n"
        "    INLINE void point(const Context &c, int64_t row, int64_t unit, int64_t left, const V *acc, "
        f"int64_t stride, V *keep)\n    {{\n{''.join(lines)}    }}\n"
    )


class Expressions:
    """Prints what parts compute on top of their products.

    Args:
        schedule, layout, biased: see `emit`.
        kernel: whose table of buffers, draws and gates the expressions fill.

    Attributes:
        sums: the number of each row sum, by its node.
        once: the buffers of what is computed before the first step.
        added: sums of a product and an input gate that nothing else reads.
    """

    def __init__(self, schedule: Schedule, layout: Layout, biased: frozenset[str], kernel: "Kernel") -> None:
        self._schedule = schedule
        self._graph = schedule.graph
        self._locked = {declared.name for declared, _ in layout.draws if declared.locked}
        self._biased = biased
        self._kernel = kernel
        self.sums = {index: n for n, index in enumerate(i for part in schedule.parts for i in part.sums)}
        self.once: dict[int, str] = {}
        self.added: dict[int, tuple[int, int]] = {}
        self._number = 0  # of the stage that is being printed

    def begin(self, part: int) -> None:
        """From here on the part of this number is printed."""
        self._number = part * MOST_STAGES

    def buffer(self, name: str, width: int) -> int:
        """The number of a buffer, which the stage that is being printed names."""
        buffers, spans = self._kernel.buffers, self._kernel.spans
        buffers.setdefault(name, width)
        spans[name] = (spans.get(name, (self._number,))[0], self._number)
        return list(buffers).index(name)

    def _draw(self, name: str) -> int:
        if name not in self._kernel.draws:
            self._kernel.draws.append(name)
        return self._kernel.draws.index(name)

    def computed_here(self, part: Part, here: tuple[int, int]) -> list[int]:
        """The values that a part computes for what it stores, totals and sums, operands first."""
        graph, home = self._graph, self._schedule.home
        stack = [*part.stores.values(), *part.totals.values(), *(graph.nodes[s].args[0] for s in part.sums)]
        seen: set[int] = set()
        while stack:
            index = stack.pop()
            node = graph.nodes[index]
            if (
                index in seen
                or index in self.once
                or node.op not in OPERATIONS
                or (home[index] != here and not in_place(graph, home, index))
            ):
                continue
            seen.add(index)
            stack += node.args
        return sorted(seen)

    def stages(self, part: Part, accumulator: dict[int, int], whole: bool = False) -> tuple[list[list[str]], int]:
        """The statements of each stage, and how many values of a vector are kept from stage to stage.

        Args:
            part: whose expressions these are.
            accumulator: where the results of its products stand.
            whole: whether to have one stage only; else see `stages_of`.
        """
        graph, schedule = self._graph, self._schedule
        here = (part.level, part.width)
        computed_here = self.computed_here(part, here)
        stage_of = dict.fromkeys(computed_here, 0) if whole else stages_of(graph, computed_here)
        last = max(stage_of.values(), default=0)
        places: dict[int, int] = {}  # of the values that are kept
        lines: list[str] = []
        done: dict[int, str] = {}
        stage = 0

        def is_mask(index: int) -> bool:
            op = graph.nodes[index].op
            return op in OPERATIONS and OPERATIONS[op].mask

        def loaded(name: str, width: int) -> str:
            if name.startswith("gradient."):
                entry = name.removeprefix("gradient.")
                carry, given = self.buffer(f"carry.{entry}", width), self.buffer(f"sequence.{entry}", width)
                if width == 1:
                    return f"read_one(c, {carry}, ROW) + (c.p[{given}] ? read_one(c, {given}, ROW) : V{{}})"
                return f"read<WHOLE>(c, {carry}, AT, left) + read_if<WHOLE>(c, {given}, AT, left)"
            if name.startswith("x."):
                self._kernel.ahead.add(name.removeprefix("x."))
            number = self.buffer(name, width)
            return f"read_one(c, {number}, ROW)" if width == 1 else f"read<WHOLE>(c, {number}, AT, left)"

        def computed(index: int) -> str:
            node = graph.nodes[index]
            if stage_of.get(index, stage) < stage:
                kept = f"keep[k * KEPT + {places.setdefault(index, len(places))}]"
                return f"(Integers){kept}" if is_mask(index) else kept
            if node.op == "leaf" and index in accumulator:
                return f"acc[k * stride + {accumulator[index]}]"
            if node.op == "leaf" or index in self.once:
                return loaded(self.once.get(index, node.name), node.width)
            if node.op == "number":
                return f"splat((real){node.name})" if node.name not in ("inf", "-inf") else f"splat({node.name}inity)"
            if node.op == "sum" and schedule.home[index] == here:
                return f"read_sum(c, {self.sums[index]}, ROW)"
            if node.op == "draw" and node.name in self._locked:
                return f"({loaded(f'draw.{node.name}', node.width)} != 0)"
            if node.op == "draw":
                number = self._draw(node.name)
                return f"draw_one(c, {number}, ROW)" if node.width == 1 else OPERATIONS["draw"].cpp.format(number)
            if index in accumulator:
                bias = ""
                if node.op == "product" and node.name in self._biased:
                    bias = f" + {loaded(f'bias.{node.name}', node.width)}"
                return f"acc[k * stride + {accumulator[index]}]{bias}"
            if schedule.home[index] != here and not in_place(graph, schedule.home, index):
                return loaded(schedule.memory[index], node.width)
            if index in self.added:
                product, leaf = self.added[index]
                number = self.buffer(graph.nodes[leaf].name, node.width)
                return f"{computed(product)} + read<WHOLE>(c, {number}, AT, left)"
            return OPERATIONS[node.op].cpp.format(*(value(a) for a in node.args))

        def value(index: int) -> str:
            if index not in done:
                node, text = graph.nodes[index], computed(index)
                kind = "Integers" if is_mask(index) else "V"
                if node.op == "number":
                    done[index] = f"v{index}"
                    lines.append(f"const V v{index} = {text};")
                elif node.width == 1:  # the same for all units
                    done[index] = f"v{index}[k * DOWN]"
                    lines.append(f"{kind} v{index}[IN_ROWS]; EACH_ROW v{index}[k * DOWN] = {text};")
                else:
                    done[index] = f"v{index}[k]"
                    lines.append(f"{kind} v{index}[N]; EACH v{index}[k] = {text};")
            return done[index]

        first = self._number
        stages: list[list[str]] = []
        for stage in range(last + 1):
            self._number = first + stage
            lines, done = [], {}
            for index in computed_here:  # operands first, so that no chain is too long to descend
                if stage_of[index] == stage:
                    value(index)
            # All is read before anything is written, so that no write stands between the vectors' computations.
            writes = []
            for name, index in part.stores.items():
                if stage_of.get(index, last) == stage:
                    text = value(index)
                    writes.append(f"EACH write<WHOLE>(c, {self.buffer(name, part.width)}, AT, left, {text});")
            for name, index in part.totals.items():
                if stage_of.get(index, last) == stage:
                    text = value(index)
                    writes.append(f"EACH total<WHOLE>(c, {self.buffer(name, part.width)}, UNIT, left, {text});")
            for index in part.sums:
                summed = graph.nodes[index].args[0]
                if stage_of.get(summed, last) == stage:
                    text = value(summed)
                    writes.append(f"EACH sum<WHOLE>(c, {self.sums[index]}, ROW, left, {text});")
            stages.append(lines + writes)
        for index, place in places.items():
            text = f"v{index}[k * DOWN]" if graph.nodes[index].width == 1 else f"v{index}[k]"
            text = f"(V){text}" if is_mask(index) else text
            stages[stage_of[index]].append(f"EACH keep[k * KEPT + {place}] = {text};")
        return [[line.replace("KEPT", str(len(places))) for line in each] for each in stages], len(places)
