"""What the programs of a forward and a backward run have in common."""

import functools
import itertools
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.cells.contract import StateEntry
from elman.cells.layout import Layout
from elman.compiler.emit import Kernel
from elman.compiler.plan import Plan
from elman.engine import reference
from elman.engine.draws import choose, threshold
from elman.engine.form import Form, gates_width, multiplies_within
from elman.engine.kernel import Kind, Table, chunks
from elman.engine.matrices import dense, pattern, stored
from elman.engine.products import Matrix, tools
from elman.engine.program import Program


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
        input, input_strides: where the input's packed rows are, and their strides.
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
        self.program = Program(form.dtype, form.packing, form.workers, form.abreast)
        self.input, self.input_strides = self._packed_input()
        self.table = Table(kernel, form.dtype, self.batch, self.program, form.workers)
        self.resets = "reset" in form.names
        self.within = multiplies_within(form)
        # What the kernel multiplies itself is nowhere that it could be written over. One node after the other is then
        # sooner read than in the rows of all gates.
        self.slots = plan.slots if form.training and not self.within else {}
        self.blocks = _blocks(self.layout, frozenset(self.slots))
        self.kept: dict[Block, int] = {}  # where the rows of blocks are that stay

    def _packed_input(self) -> tuple[int, tuple[int, ...]]:
        """The address of the input's packed rows, and their strides."""
        form, program, columns = self.form, self.program, self.layout.input_size
        if form.enters is None:
            return program.given("input"), form.strides
        rows = program.numbers(self.total, columns)
        program.rows(columns, program.given("input"), *form.enters, rows, unpack=False)
        return rows, (columns, 1)

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
        return self.program.constant(torch.full((width,), entry.initial, dtype=self.form.dtype, device="cpu"))

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
                at = self.input if n == "input" else self.program.given(n)
                self.table.place(key, at, self.kernel.buffers[key], Kind.STEP)


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
