"""One direction of a layer on compiled kernels."""

import functools
import itertools
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elman.cells.contract import StateEntry
from elman.cells.layout import Layout
from elman.compiler import build
from elman.compiler.emit import Kernel
from elman.compiler.plan import Plan
from elman.engine import reference, threads
from elman.engine.call import LayerCall
from elman.engine.draws import choose, threshold
from elman.engine.kernel import Kind, Table, at_once, chunks
from elman.engine.matrices import dense, pattern, stored
from elman.engine.packing import Packing, Ragged
from elman.engine.products import Matrix, tools
from elman.engine.program import Program


@dataclass(slots=True)
class Scene:
    """What a run knows beside its tensors."""

    call: LayerCall
    plan: Plan
    reverse: bool
    names: tuple[str, ...]
    wanted: int
    training: bool
    draws: Mapping[str, Tensor]


class Form(NamedTuple):
    """What the jobs of a run depend on: runs of the same form share a program.

    Attributes:
        names: of the tensors that a run is given.
        strides: of the input.
        gradients: of each of the forward run's results, elements from row to row of its gradient, or None; empty in a
            forward run.
        through: whether the input's gradient is wanted.
        over: whether a backward run may write over what the forward run saved.
    """

    plan: Plan
    packing: Packing | Ragged
    reverse: bool
    wanted: int
    training: bool
    names: tuple[str, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    workers: int
    isa: str
    gradients: tuple[int | None, ...] = ()
    through: bool = False
    over: bool = False


def form_of(scene: Scene, tensors: Mapping[str, Tensor]) -> Form:
    """The form of a forward run."""
    x = tensors["input"]
    return Form(
        scene.plan,
        scene.call.packing,
        scene.reverse,
        scene.wanted,
        scene.training,
        tuple(tensors),
        x.stride(),
        x.dtype,
        threads.count(),
        build.instruction_set(),
    )


def tensors_of(scene: Scene, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a run is given: all of one dtype and contiguous, but for an input of which the step reads no rows itself."""
    call, plan = scene.call, scene.plan
    dtype = call.input.dtype
    found = {}
    for name, tensor in inputs.items():
        if tensor.dtype != dtype:
            tensor = tensor.to(dtype)
        if not tensor.is_contiguous() and (name != "input" or plan.reads_input):
            tensor = tensor.contiguous()
        found[name] = tensor
    if plan.structured:
        parameters = {n.partition(".")[2]: v for n, v in found.items() if n.startswith("parameter.")}
        for n in plan.structured:
            found[f"matrix.{n}"] = dense(plan.layout, n, parameters, {}).contiguous()
    for n, rows in scene.draws.items():
        found[f"draws.{n}"] = rows
    if not call.packing.is_dense:
        found["sizes"], found["offsets"] = call.packing.sizes, call.packing.offsets
    if call.reset is not None:
        reset = reference.reset_in_reverse(call, call.reset) if scene.reverse else call.reset
        found["reset"] = reset.to(torch.uint8).contiguous()
    return found


@functools.lru_cache(maxsize=1024)
def parameter_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's parameters among a run's inputs."""
    return tuple(f"parameter.{p.name}" for p in layout.parameters)


@functools.lru_cache(maxsize=1024)
def gates_width(layout: Layout) -> int:
    """Rows of `weight_ih`: of all input gates together."""
    return max((rows.stop for rows in layout.input_gates.values()), default=0)


@functools.lru_cache(maxsize=1024)
def state_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's states among a run's inputs."""
    return tuple(f"state.{e.name}" for e, _ in layout.states)


@functools.lru_cache(maxsize=1024)
def default_names(layout: Layout) -> tuple[str, ...]:
    """The names of a layer's learned states at resets among a run's inputs."""
    return tuple(f"default.{e.name}" for e, _ in layout.states)


@dataclass(frozen=True, eq=False)
class Block:
    """Input gates side by side, whose rows are in one memory.

    Attributes:
        start, width: the first of their columns among those of all gates, and how many they are.
        gates: the first column of each, within the block.
        kept: whether all rows stay until backward, because something is saved in them.
    """

    start: int
    width: int
    gates: Mapping[str, int]
    kept: bool


@functools.lru_cache(maxsize=1024)
def _blocks(layout: Layout, slots: frozenset[str]) -> list[Block]:
    """The blocks of a layout, where what is saved has slots in some gates."""
    ordered = sorted(layout.input_gates.items(), key=lambda item: item[1].start)
    found = []
    for kept, group in itertools.groupby(ordered, key=lambda item: item[0] in slots):
        gates = list(group)
        start, end = gates[0][1].start, gates[-1][1].stop
        found.append(Block(start, end - start, {gate: rows.start - start for gate, rows in gates}, kept))
    return found


class Written:
    """What the programs of a forward and a backward run share.

    Attributes:
        program: where the jobs are written down.
        table: of the kernel.
        within: whether a forward kernel multiplies by the input itself; see `multiplies_within`.
        slots: for gates the node that is saved over their product with the input; see `Plan.slots`.
        blocks: the gates, those side by side whose rows have one memory.
    """

    def __init__(self, form: Form, kernel: Kernel) -> None:
        self.form = form
        self.plan = plan = form.plan
        self.kernel = kernel
        self.layout = plan.layout
        self.packing = form.packing
        self.batch = form.packing.batch
        self.total = form.packing.total
        self.shapes = {p.name: p.shape for p in plan.layout.parameters}
        like = torch.empty(0, dtype=form.dtype, device="cpu")
        self.constants = reference.constants(plan.cell, plan.layout.hidden_size, like)
        self.widths = {e.name: w for e, w in plan.layout.states}
        self.tools = tools(form.dtype)
        self.itemsize = form.dtype.itemsize
        self.gates_width = gates_width(plan.layout)
        self.clock = clock_runs(plan)
        self.program = Program(form.dtype, form.packing)
        self.table = Table(kernel, form.dtype, self.batch, self.program, form.workers)
        self.resets = "reset" in form.names
        self.within = multiplies_within(form)
        # What the kernel multiplies itself is nowhere that it could be written over. One node after the other is then
        # sooner read than in the rows of all gates.
        self.slots = plan.slots if form.training and not self.within else {}
        self.blocks = _blocks(self.layout, frozenset(self.slots))
        self.kept: dict[Block, int] = {}  # where the rows of blocks are that stay

    def prepare(self, backward: bool) -> None:
        """Make the kernel ready to run."""
        self.table.prepare(
            {n: self._matrix(n) for n in self.plan.product_names} | self.inputs(),
            patterns_of(self.layout, self.plan.product_names),
            self.packing,
            self.program.given("reset") if self.resets else 0,
            (backward, self.form.reverse),
            tuple(self.widths),
            self.clock,
        )

    def inputs(self) -> dict[str, Matrix]:
        """The matrices of products with the input that the kernel does itself, by the names of its leaves."""
        return {}

    def stretches(self, row_bytes: int, backward: bool) -> list[tuple[slice, slice]]:
        """Stretches of time, as steps and entries, in the order in which they run."""
        found = chunks(self.packing, row_bytes, self.kernel)
        return found[::-1] if backward != self.form.reverse else found

    def parameter(self, name: str, row: int = 0) -> int:
        """The address of a parameter's row."""
        width = self.shapes[name][1] if len(self.shapes[name]) > 1 else 1
        return self.program.given(f"parameter.{name}") + row * width * self.itemsize

    def first_output(self, width: int) -> int:
        """Bytes from the start of a state's sequence, with its initial state, to what follows the first step."""
        return 0 if self.form.reverse else self.batch * width * self.itemsize

    def _matrix(self, name: str) -> Matrix:
        """A product's matrix."""
        where, product = stored(self.layout, name), self.layout.products.get(name)
        if where is not None:
            rows, columns = self.shapes[where[0]]
            rows = product.output if product is not None else rows
            return self.parameter(where[0], where[1].start or 0), rows, columns, columns
        assert product is not None
        if not product.fixed:
            return self.program.given(f"matrix.{name}"), product.output, product.input, product.input
        fixed = dense(self.layout, name, {}, self.constants).to(self.form.dtype).contiguous()
        return self.program.constant(fixed), *fixed.shape, fixed.shape[1]

    def units(self) -> None:
        """Give the table the per-unit values: vectors, constants, biases."""
        for n in self.layout.vectors:
            self.table.place(f"vector.{n}", self.parameter(n), 0, Kind.UNITS)
        for n, v in self.constants.items():
            if f"constant.{n}" in self.table:
                value = self.program.constant(v.to(self.form.dtype).contiguous())
                self.table.place(f"constant.{n}", value, 0, Kind.UNITS)
        for p in self.layout.products.values():
            if p.bias is not None:
                self.table.place(f"bias.{p.name}", self.parameter(p.bias, p.rows.start), 0, Kind.UNITS)

    def place_saved(self, address: int) -> dict[int, int]:
        """Give the table what a forward run saves: where each node is that has no slot."""
        found, before = {}, 0
        for block in self.blocks:
            if block.kept:
                self.kept[block] = self.program.behind(address, before)
                before += block.width
                for gate, start in block.gates.items():
                    place = self.kept[block] + start * self.itemsize
                    self.table.place(f"saved.{self.slots[gate]}", place, block.width, Kind.STEP)
        for n, width in self.plan.saved_widths.items():
            if n not in self.slots.values():
                found[n] = self.program.behind(address, before)
                self.table.place(f"saved.{n}", found[n], width, Kind.STEP)
                before += width
        return found

    def states(self, sequences: Mapping[str, int]) -> None:
        """Give the table the states' sequences, and where they are read before a step."""
        table, program = self.table, self.program
        for entry, width in self.layout.states:
            sequence = sequences[entry.name]
            table.place(f"previous.{entry.name}", sequence, width, Kind.PREVIOUS)
            table.place(f"next.{entry.name}", sequence, width, Kind.NEXT)
            direct = not self.resets and (self.packing.is_dense or not self.form.reverse)
            entered = sequence if direct else program.numbers(self.batch, width)
            table.place(f"state.{entry.name}", entered, width, Kind.ENTERED)
            if self.resets:
                table.place(f"default.{entry.name}", self.default(entry, width), 0, Kind.UNITS)

    def default(self, entry: StateEntry, width: int) -> int:
        """The address of a state at resets, [width]."""
        if f"default.{entry.name}" in self.form.names:
            return self.program.given(f"default.{entry.name}")
        return self.program.constant(torch.full((width,), entry.initial, dtype=self.form.dtype))

    def draws(self) -> None:
        """Tell the table how the random choices are made; those that are the same at all steps are made beforehand."""
        for declared, width in self.layout.draws:
            name, chance = declared.name, threshold(declared.probability)
            if f"draw.{name}" in self.table:
                made = self.program.numbers(self.batch, width)
                choose(
                    self.program, self.program.given(f"draws.{name}"), chance, self.batch, width, made, self.form.dtype
                )
                self.table.place(f"draw.{name}", made, width, Kind.BATCH)
            elif self.table.draws(name):
                self.table.draw(name, self.program.given(f"draws.{name}"), chance)

    def side_inputs(self) -> None:
        """Give the table the inputs that are read as they are."""
        for n in self.form.names:
            key = "raw" if n == "input" else n
            if n.partition(".")[0] in ("extra", "below", "input") and key in self.table:
                self.table.place(key, self.program.given(n), self.kernel.buffers[key], Kind.STEP)


_RUNS = 64  # of units that a kernel can tell apart by their periods


@functools.lru_cache(maxsize=1024)
def clock_runs(plan: Plan) -> "array[int] | None":
    """First unit, end and period of each run of units with one period, of a plan with a clock; None: always due."""
    if plan.clock is None:
        return None
    periods = np.asarray(plan.cell.constants(plan.layout.hidden_size)[plan.clock], dtype=float)
    starts = [0, *(np.flatnonzero(np.diff(periods)) + 1)]
    chosen = periods[starts]
    if len(starts) > _RUNS or not ((chosen >= 1) & (chosen == np.floor(chosen)) & (chosen < 1 << 24)).all():
        return None
    ends = [*starts[1:], len(periods)]
    return array("q", [int(n) for run in zip(starts, ends, chosen, strict=True) for n in run])


@functools.lru_cache(maxsize=1024)
def patterns_of(layout: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Where the structured ones of these products have weights, by name."""
    found = {n: pattern(layout, n) for n in names}
    return {n: p for n, p in found.items() if p is not None}


# The bytes of a cell's matrices up to which, and the rows of a batch from which, the loop multiplies by the input too.
WITHIN_BYTES, WITHIN_ROWS = 1 << 19, 12


def multiplies_within(form: Form) -> bool:
    """Whether a forward kernel multiplies by the input itself, which saves writing and reading those products.

    The matrices then must stay in the threads' own caches, and be read for several rows at a time. Forward and backward
    have to agree on it, for it says where things are saved.
    """
    layout, kernel = form.plan.layout, form.plan.training if form.training else form.plan.inference
    width = sum(m.output * m.input for m in layout.products.values()) + gates_width(layout) * layout.input_size
    fits = width * form.dtype.itemsize <= WITHIN_BYTES and form.packing.batch >= WITHIN_ROWS
    return fits and not kernel.ahead and form.strides == (layout.input_size, 1)


class Forward(Written):
    """The program of a forward run.

    Each run makes `sequence.<state>`, [B + N, width]: the initial state, then the packed sequence, or where time runs
    backwards the initial state last; `final.<state>`, [B, width]; and `saved`: what backward reads and cannot compute
    again, [N, width] of each node, one after the other. First come blocks of gates, [N, width], in whose rows the
    kernel saves over the products with the input. Where there is no backward, `sequence.<state>` is [N, width], and the
    initial state stands in the memory beside the tensor, so that no view has to be made. A tensor that is saved has to
    hold it: hooks may put a copy in its place.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form, form.plan.training if form.training else form.plan.inference)
        program = self.program
        self.whole = form.training or bool(self.plan.integer)  # sequences are tensors with their initial states
        sequences = {e.name: self._sequence(e, w) for e, w in self.layout.states}
        for entry, width in self.layout.states:
            self._start(sequences[entry.name], entry, width)
        self.states(sequences)
        self.units()
        self.draws()
        self.side_inputs()
        if form.training and self.plan.saved_widths:
            self.place_saved(program.result("saved", self.total, sum(self.plan.saved_widths.values())))
        self.prepare(backward=False)
        if self.gates_width and not self.within:
            self._stretches()
        else:
            self.table.run(slice(0, self.packing.steps))
        for n, width in self.widths.items():
            final = program.result(f"final.{n}", self.batch, width)
            if self.packing.is_dense or form.reverse:
                last = 0 if form.reverse else self.total * width * self.itemsize
                program.copy(final, sequences[n] + last, self.batch * width)
            else:
                program.ends(False, width, sequences[n], final)

    def inputs(self) -> dict[str, Matrix]:
        """See `Written.inputs`."""
        if not self.within:
            return {}
        layout, found = self.layout, {}
        columns = layout.input_size
        none = 0 if layout.input_bias else self.program.constant(torch.zeros(self.gates_width, dtype=self.form.dtype))
        for gate, rows in layout.input_gates.items():
            found[f"x.{gate}"] = (self.parameter("weight_ih", rows.start), rows.stop - rows.start, columns, columns)
            bias = self.parameter("bias_ih", rows.start) if layout.input_bias else none
            self.table.place(f"x.{gate}", bias, 0, Kind.UNITS)
        self.table.place("input", self.program.given("input"), columns, Kind.STEP)
        return found

    def _sequence(self, entry: StateEntry, width: int) -> int:
        """The address of a state's sequence, with its initial state."""
        name, initial = f"sequence.{entry.name}", self.batch * width
        if self.whole:
            return self.program.result(name, self.batch + self.total, width)
        return self.program.result(name, self.total, width, margins=(0, initial) if self.form.reverse else (initial, 0))

    def _start(self, sequence: int, entry: StateEntry, width: int) -> None:
        """Write the initial state."""
        to = self.program.behind(sequence, width) if self.form.reverse else sequence
        if f"state.{entry.name}" in self.form.names:
            self.program.copy(to, self.program.given(f"state.{entry.name}"), self.batch * width)
        else:
            self.program.fill(to, self.batch * width, float(entry.initial))

    def _stretches(self) -> None:
        """Stretch by stretch of time, the products with the input, then the loop."""
        program, size = self.program, self.itemsize
        columns, strides = self.layout.input_size, self.form.strides
        x, biased = program.given("input"), self.layout.input_bias
        stretches = self.stretches(self.gates_width * size, backward=False)
        longest = max(entries.stop - entries.start for _, entries in stretches)
        memory = [self.kept[b] if b.kept else program.numbers(longest, b.width) for b in self.blocks]
        weights = [self.parameter("weight_ih", b.start) for b in self.blocks]
        packed = [0] * len(self.blocks)
        if len(stretches) > 1:
            matrices = [(weight, b.width, columns, columns) for weight, b in zip(weights, self.blocks, strict=True)]
            packed = [self.tools.packed_right(program, matrix, transposed=True) for matrix in matrices]
        for steps, entries in stretches:
            first = entries.start
            for k, block in enumerate(self.blocks):
                before = 0 if block.kept else first * block.width * size  # of rows that are not there
                self.tools.multiply(
                    program,
                    (entries.stop - first, block.width, columns),
                    (x + first * strides[0] * size, *strides),
                    (weights[k], 1, columns),
                    (memory[k] + first * block.width * size - before, block.width),
                    self.parameter("bias_ih", block.start) if biased else 0,
                    packed=packed[k],
                )
                for gate, start in block.gates.items():
                    self.table.place(f"x.{gate}", memory[k] + start * size - before, block.width, Kind.STEP)
            self.table.run(steps)

    def run(self, packing: Packing, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The wanted sequences, [N, width] each, then the final states, [B, width]; and all that was made."""
        made = self.program.make(packing)
        if self.plan.integer:
            self.program.run(packing, tensors, made)
            return self._results(made), made
        # Views are sooner made before the jobs: behind them the caches no longer hold what Python needs for it.
        results = self._results(made)
        self.program.run(packing, tensors, made)
        return results, made

    def _results(self, made: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        sequences, finals = [], []
        for k, (entry, _) in enumerate(self.layout.states):
            sequence = made[f"sequence.{entry.name}"]
            final = made[f"final.{entry.name}"]
            finals.append(final if entry.dtype == "float" else final.to(torch.int64))
            if k < self.form.wanted:
                if self.whole:
                    sequence = sequence[: -self.batch] if self.form.reverse else sequence[self.batch :]
                sequences.append(sequence if entry.dtype == "float" else sequence.to(torch.int64))
        return (*sequences, *finals)


def forward_of(form: Form) -> Forward:
    """The program of a form; kept where another run may have the same."""
    form = widened(form, gates_width(form.plan.layout), form.plan.training if form.training else form.plan.inference)
    return _kept(form) if form.packing.kept else Forward(form)


def widened(form: Form, width: int, kernel: Kernel) -> Form:
    """The form with what stands for its packing and others in its place, where all rows are a single stretch.

    Args:
        width: of the rows that wait for the kernel.
    """
    packing = form.packing
    if packing.is_dense or isinstance(packing, Ragged):
        return form
    ragged = packing.ragged
    return form._replace(packing=ragged) if at_once(ragged.capacity, width * form.dtype.itemsize, kernel) else form


@functools.lru_cache(maxsize=512)
def _kept(form: Form) -> Forward:
    return Forward(form)
