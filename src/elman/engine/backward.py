"""One direction of a layer on compiled kernels: backward."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.engine.arrangement import arrangement
from elman.engine.form import Form, gates_width, widened
from elman.engine.forward import Made
from elman.engine.gradients import Products
from elman.engine.kernel import Kind, chunks
from elman.engine.packing import Packing
from elman.engine.program import Source
from elman.engine.runs import run_all
from elman.engine.written import Block, Written, clock_runs


class Backward(Written):
    """The program of a backward run from what a forward run made.

    The jobs make gradients, `d.<name>` of what `Scene.names` says, and what `run` turns into such.

    Args:
        form: of the run; its names are those of the forward run.
        due: for a cell with a clock, the units that are due; see `due_of`.
    """

    def __init__(self, form: Form, due: "Due | None") -> None:
        super().__init__(form, form.plan.gradients)
        program, table = self.program, self.table
        self.arrangement = arrangement(self.plan)
        self.due = due
        self.sequences = {n: program.given(f"sequence.{n}") for n in self.widths}
        self.totals: list[str] = []  # vectors whose gradient is a total of each thread's
        self.fresh: list[str] = []  # states whose default at resets has such a gradient
        self.handed: dict[str, int] = {}  # carries of states that were given; behind the loop, what reached the start
        self.states(self.sequences)
        self.units()
        self.draws()
        self.side_inputs()
        self.saved = self.place_saved(program.given("saved")) if self.plan.saved_widths else {}
        self._flows()
        rows = self.gates_width + self.arrangement.rest
        stretches = self.stretches(rows * self.itemsize, backward=True)
        longest = max(entries.stop - entries.start for _, entries in stretches)
        over = form.over and self.plan.over
        self._gates: list[tuple[Block, int, bool]] = []  # where the gradients of gates are, and whether for all entries
        for block in self.blocks:
            kept = over and block.kept
            at = self.kept[block] if kept else program.numbers(longest, block.width)
            self._gates.append((block, at, kept))
            if self.arrangement.idle and not kept:
                program.fill(at, program.at_most(longest) * block.width)
        self._rest = program.numbers(longest, self.arrangement.rest)
        self._direct()
        self.prepare(backward=True)
        self.products = Products(self, len(stretches) > 1)
        for steps, entries in stretches:
            self._place(entries.start)
            table.run(steps)
            self.products.take(steps, entries)
        self.products.finish()
        if form.reverse and not self.packing.is_dense:
            for n, carry in self.handed.items():
                width = self.widths[n]
                program.ends(Source.CARRIED, width, carry, program.result(f"d.state.{n}", self.batch, width))

    def _flows(self) -> None:
        """Give the table the gradients that enter from outside, and memory for those handed from step to step."""
        table, program, wanted = self.table, self.program, self.form.wanted
        for k, (entry, width) in enumerate(self.layout.states):
            stride = self.form.gradients[k] if k < wanted else None
            if stride is not None and k == 0 and self.form.output is not None and not self.packing.is_dense:
                start, whole = self.form.output
                at, columns = program.numbers(self.total, width), program.given("gradient.0") + start * self.itemsize
                program.rows(width, columns, self.packing.count * whole, whole, at, unpack=False)
                table.place(f"sequence.{entry.name}", at, width, Kind.STEP)
            elif stride is not None:
                table.place(f"sequence.{entry.name}", program.given(f"gradient.{k}"), stride, Kind.STEP)
            if self.form.gradients[wanted + k] is not None and entry.dtype != "int64":
                table.place(f"final.{entry.name}", program.given(f"gradient.{wanted + k}"), width, Kind.BATCH)
            if f"carry.{entry.name}" in table:
                if f"state.{entry.name}" in self.form.names:
                    self.handed[entry.name] = carry = program.result(f"carry.{entry.name}", 2 * self.batch, width)
                else:
                    carry = program.numbers(2 * self.batch, width)
                table.place(f"carry.{entry.name}", carry, width, Kind.CARRY)
                table.place(f"handed.{entry.name}", carry, width, Kind.HANDED)

    def _direct(self) -> None:
        """Give the table memory for the gradients of side inputs, and for those that are totals over rows."""
        for entry, width in self.layout.states:
            if f"default.{entry.name}" in self.form.names and f"carry.{entry.name}" in self.table:
                self._total(f"fresh.{entry.name}", width)
                self.fresh.append(entry.name)
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                name = "d.input" if n == "d.raw" else n
                self.table.place(n, self.program.result(name, self.total, width), width, Kind.STEP)
            elif n.startswith("total."):
                self._total(n, width)
                self.totals.append(n[6:])

    def _total(self, name: str, width: int) -> None:
        # A page apart: at the end of its row a thread's processor fetches ahead what would be the other's, row for row.
        stride = width + 4096 // self.itemsize
        total = self.program.result(name, self.form.workers, stride)
        self.program.fill(total, self.form.workers * stride)
        self.table.place(name, total, stride, Kind.TOTALS)

    def _place(self, first: int) -> None:
        """Let the kernel write the gradients of a stretch that starts at an entry to the memory that is kept for it."""
        places = {f"d.x.{gate}": (True, columns.start) for gate, columns in self.layout.input_gates.items()}
        places |= {f"d.product.{index}": place for index, place in self.arrangement.places.items()}
        for name, (among_gates, start) in places.items():
            address, stride = self.columns(among_gates, start, first)
            self.table.place(name, address - first * stride * self.itemsize, stride, Kind.STEP)

    def columns(self, among_gates: bool, start: int, first: int) -> tuple[int, int]:
        """The address of a column of the gradients of gates, or of the other products, and their stride.

        Args:
            first: the first entry of the stretch of time whose gradients they are.
        """
        if not among_gates:
            return self._rest + start * self.itemsize, self.arrangement.rest
        block, at, kept = next(g for g in reversed(self._gates) if g[0].start <= start)
        before = first * block.width if kept else 0
        return at + (before + start - block.start) * self.itemsize, block.width

    def views(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of what a run makes, the gradients that it writes themselves."""
        found = {n[2:]: v for n, v in made.items() if n.startswith("d.")}
        half = self.packing.steps & 1 if self.form.reverse else 1
        for n in self.handed:
            whole = made.get(f"d.state.{n}")
            found[f"state.{n}"] = made[f"carry.{n}"][half * self.batch :][: self.batch] if whole is None else whole
        return found

    @functools.cached_property
    def computes(self) -> bool:
        """Whether `rest` reads what the jobs have written."""
        return bool(self.totals or self.fresh) or self.products.computes("d.input" in self.program.names)

    def rest(self, found: dict[str, Tensor], made: dict[str, Tensor]) -> None:
        """Add the other gradients to those; behind a run, unless it only has to name them."""
        found |= {f"parameter.{n}": made[f"total.{n}"][:, : self.shapes[n][0]].sum(0) for n in self.totals}
        found |= {f"default.{n}": made[f"fresh.{n}"][:, : self.widths[n]].sum(0) for n in self.fresh}
        self.products.give(found, made)


class Work:
    """Programs of one layer's directions, ready to run.

    Args:
        runs: of each its program, what it is given, and what its run makes, as `Program.make` gives it.
        padded: where the gradient of the input that all directions share is wanted, [T, B, I] in the caller's order.
        run: what runs the programs, if it is to be something else than `run_all`; then nothing need be given.

    Attributes:
        found: of each direction the gradients of the inputs, by the names of `Scene.names`; those that are absent are
            zero, and that of the input is where it is wanted.
        whole: whether all are there before the jobs, which only write them. What Python has to do with them is sooner
            done then: behind the jobs the caches hold nothing of it.
    """

    def __init__(
        self,
        packing: Packing,
        *runs: tuple[Backward, Mapping[str, Tensor], Made],
        padded: Tensor | None = None,
        run: Callable[[], object] | None = None,
    ) -> None:
        self.found = [backward.views(made) for backward, _, made in runs]
        pairs = zip(runs, self.found, strict=True)
        through = [m["through"] for (_, _, m), views in pairs if "through" in m and "input" not in views]
        self._rows = packing.unpacking(padded, *through) if padded is not None and len(through) == len(runs) else None
        self._packing, self._runs, self._padded, self._run = packing, runs, padded, run
        self.whole = padded is None and not any(backward.computes for backward, _, _ in runs)
        if self.whole:
            self._finish()

    def run(self) -> list[dict[str, Tensor]]:
        """Run the jobs; gives `found`."""
        if self._run is not None:
            self._run()
        else:
            run_all(self._packing, *((b.program, given, made) for b, given, made in self._runs), rows=self._rows)
        if not self.whole:
            self._finish()
        return self.found

    def _finish(self) -> None:
        for (backward, _, made), gradients in zip(self._runs, self.found, strict=True):
            backward.rest(gradients, made)
        if self._padded is not None:
            parts = [gradients.pop("input") for gradients in self.found]
            if self._rows is None:
                self._packing.move(self._padded, *(part.contiguous() for part in parts), unpack=True)


Due = dict[int, list[tuple[Tensor, int, int]]]


def backward_of(form: Form, tensors: Mapping[str, Tensor]) -> Backward:
    """The program of a form; kept where another run may have the same.

    Args:
        tensors: what it is given.
    """
    runs = clock_runs(form.plan)
    if runs is not None:
        return Backward(form, due_of(form, tensors, np.asarray(runs).reshape(-1, 3)))
    form = widened(form, gates_width(form.plan.layout) + arrangement(form.plan).rest, form.plan.gradients)
    return _kept(form) if form.packing.kept else Backward(form, None)


@functools.lru_cache(maxsize=512)
def _kept(form: Form) -> Backward:
    return Backward(form, None)


def due_of(form: Form, tensors: Mapping[str, Tensor], runs: Any) -> Due:
    """By the first entry of each stretch of time, rows of it and neighbouring units that are due at their steps alone.

    Args:
        runs: [runs, 3]: first unit, end and period.

    Returns:
        Rows, counted from the stretch's first, and the first unit and the end.
    """
    plan, packing = form.plan, form.packing
    assert isinstance(packing, Packing)
    times = tensors["sequence.t"][:, 0]
    if "reset" in tensors or not packing.is_dense:
        times = times[packing.next_steps if form.reverse else packing.previous_steps]
        if "reset" in tensors:
            (initial,) = (e.initial for e, _ in plan.layout.states if e.name == "t")
            times = times.masked_fill(tensors["reset"].bool(), initial)
    else:
        times = times[packing.batch :] if form.reverse else times
    rows = gates_width(plan.layout) + arrangement(plan).rest
    found: Due = {}
    for _, entries in chunks(packing, rows * form.dtype.itemsize, plan.gradients):
        time = times[entries].numpy().astype(np.int32)
        sets = (time[:, None] % runs[:, 2].astype(np.int32) == 0) @ (1 << np.arange(len(runs)))
        found[entries.start] = []
        for chosen in torch.from_numpy(sets).unique().tolist():  # numpy's loads a package of its own first
            numbers = torch.from_numpy(np.flatnonzero(sets == chosen))
            edges = np.flatnonzero(np.diff([0, *(chosen >> k & 1 for k in range(len(runs))), 0]))
            found[entries.start] += [(numbers, int(runs[a, 0]), int(runs[b - 1, 1])) for a, b in edges.reshape(-1, 2)]
    return found
