"""The forward run of one direction of a layer on compiled kernels."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from elman.cells.contract import StateEntry
from elman.engine.form import Form, gates_width, widened
from elman.engine.kernel import Kind
from elman.engine.packing import Packing
from elman.engine.products import Matrix
from elman.engine.program import Source
from elman.engine.runs import run_all
from elman.engine.written import Written


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
            if form.finals is not None:
                how = Source.STANDING if form.reverse else Source.SEQUENCE
                to = program.given(f"ends.{n}") + form.finals * self.packing.count * width * self.itemsize
                program.ends(how, width, sequences[n], to, ordered=True)
                continue
            final = program.result(f"final.{n}", self.batch, width)
            if self.packing.is_dense or form.reverse:
                last = 0 if form.reverse else self.total * width * self.itemsize
                program.copy(final, sequences[n] + last, self.batch * width)
            else:
                program.ends(Source.SEQUENCE, width, sequences[n], final)
        if form.output is not None:
            entry, width = self.layout.states[0]
            start, whole = form.output
            columns, packed = program.given("output") + start * self.itemsize, self.first_output(width)
            program.rows(width, columns, self.packing.count * whole, whole, sequences[entry.name] + packed, unpack=True)

    def inputs(self) -> dict[str, Matrix]:
        """See `Written.inputs`."""
        if not self.within:
            return {}
        layout, found = self.layout, {}
        columns = layout.input_size
        zeros = torch.zeros(0 if layout.input_bias else self.gates_width, dtype=self.form.dtype, device="cpu")
        none = 0 if layout.input_bias else self.program.constant(zeros)
        for gate, rows in layout.input_gates.items():
            found[f"x.{gate}"] = (self.parameter("weight_ih", rows.start), rows.stop - rows.start, columns, columns)
            bias = self.parameter("bias_ih", rows.start) if layout.input_bias else none
            self.table.place(f"x.{gate}", bias, 0, Kind.UNITS)
        self.table.place("input", self.input, columns, Kind.STEP)
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
        columns, strides = self.layout.input_size, self.input_strides
        x, biased = self.input, self.layout.input_bias
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

    def results(self, made: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The wanted sequences, [N, width] each, then the final states that were made, [B, width]."""
        sequences, finals = [], []
        for k, (entry, _) in enumerate(self.layout.states):
            sequence = made[f"sequence.{entry.name}"]
            if self.form.finals is None:
                final = made[f"final.{entry.name}"]
                finals.append(final if entry.dtype == "float" else final.to(torch.int64))
            if k < self.form.wanted:
                if self.whole:
                    sequence = sequence[: -self.batch] if self.form.reverse else sequence[self.batch :]
                sequences.append(sequence if entry.dtype == "float" else sequence.to(torch.int64))
        return (*sequences, *finals)


Made = dict[str, Tensor]


def run(packing: Packing, *runs: tuple[Forward, Mapping[str, Tensor]]) -> list[tuple[tuple[Tensor, ...], Made]]:
    """Run programs of one layer's directions on what each is given: of each its results, and all that was made."""
    made = [forward.program.make(packing) for forward, _ in runs]
    # Views are sooner made before the jobs: behind them the caches no longer hold what Python needs for it.
    results = [f.results(m) if not f.plan.integer else () for (f, _), m in zip(runs, made, strict=True)]
    run_all(packing, *((f.program, given, m) for (f, given), m in zip(runs, made, strict=True)))
    return [(r or f.results(m), m) for (f, _), r, m in zip(runs, results, made, strict=True)]


def forward_of(form: Form) -> Forward:
    """The program of a form; kept where another run may have the same."""
    form = widened(form, gates_width(form.plan.layout), form.plan.training if form.training else form.plan.inference)
    return _kept(form) if form.packing.kept else Forward(form)


@functools.lru_cache(maxsize=512)
def _kept(form: Form) -> Forward:
    return Forward(form)
