"""What a run of one direction of a layer depends on, beside the numbers in its tensors."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from elman.cells.layout import Layout
from elman.compiler import build
from elman.compiler.emit import Kernel
from elman.compiler.plan import Plan
from elman.engine import reference, threads
from elman.engine.call import LayerCall
from elman.engine.capacity import Ragged
from elman.engine.kernel import at_once
from elman.engine.matrices import dense
from elman.engine.packing import Packing
from elman.engine.products import TERM_BYTES, tools
from elman.engine.sharing import NEAR, sharing


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
    abreast: bool
    workers: int  # of forward and backward alike, however many threads torch has by then


class Form(NamedTuple):
    """What the jobs of a run depend on: runs of the same form share a program.

    Attributes:
        names: of the tensors that a run is given.
        strides: of the input.
        workers: threads that it has.
        abreast: whether it runs at once with the layer's other direction, which has as many; see `abreast`.
        gradients: of each of the forward run's results, elements from row to row of its gradient, or None; empty in a
            forward run.
        through: whether the input's gradient is wanted.
        over: whether a backward run may write over what the forward run saved.
        output: where the first state's sequence is wanted too: the first column and the width of the caller's
            [T, B, width]; in a backward run its gradient comes like that, unless batches are dense.
        finals: where final states are wanted in the caller's order, and not in packed order: the place of this
            direction in [directions, B, width].
        enters: where the input is the caller's [T, B, I], numbers from step to step and from row to row there.
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
    abreast: bool
    isa: str
    gradients: tuple[int | None, ...] = ()
    through: bool = False
    over: bool = False
    output: tuple[int, int] | None = None
    finals: int | None = None
    enters: tuple[int, int] | None = None


# Bytes of recurrent matrices up to which a layer's two directions run at once, by the rows from which it is so: what is
# read for many rows at a time may come from afar.
ABREAST_BYTES = {32: 2 * NEAR, 16: 3 * NEAR // 2, 0: NEAR}


def abreast(call: LayerCall) -> bool:
    """Whether a layer's two directions run at once, each on half of the threads.

    Then no thread of one waits for one of the other, and with two threads none for any. But where few rows are computed
    and both threads share out a direction's units, each reads only half of the matrices, which the cores' own caches
    may hold where the whole is too much for them; measured, see docs/engine.md.
    """
    if len(call.directions) != 2 or threads.count() % 2:
        return False
    size = sum(m.output * m.input for m in call.layout.products.values()) * call.input.dtype.itemsize
    return size <= abreast_bytes(call.packing.batch)


def abreast_bytes(batch: int) -> int:
    """Bytes of recurrent matrices up to which a layer's directions run at once, for so many rows."""
    return next(most for rows, most in ABREAST_BYTES.items() if batch >= rows)


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
        scene.workers,
        scene.abreast,
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
        packing = call.packing
        found["sizes"], found["offsets"], found["sequences"] = packing.sizes, packing.offsets, packing.sequences
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


# The bytes of a cell's matrices up to which, and the rows of a batch from which, the loop multiplies by the input too;
# where directions run at once, half as many bytes, since each has half of the cores.
WITHIN_BYTES, WITHIN_ROWS = 2 * NEAR, 12
# By matrix tiles it does not where a thread's terms have more bytes than this and, for each of its rows, there are more
# steps of the depth than this; measured on an Intel Xeon, docs/engine.md.
FAR_TERMS, FAR_DEPTH = 3 * NEAR // 2, 25


def multiplies_within(form: Form) -> bool:
    """Whether a forward kernel multiplies by the input itself, which saves writing and reading those products.

    The matrices then should mostly stay in the threads' own caches, and be read for several rows at a time. Forward and
    backward have to agree on it, for it says where things are saved.
    """
    layout, kernel = form.plan.layout, form.plan.training if form.training else form.plan.inference
    numbers = sum(m.output * m.input for m in layout.products.values()) + gates_width(layout) * layout.input_size
    most = WITHIN_BYTES // 2 if form.abreast else WITHIN_BYTES
    if kernel.ahead or form.strides != (layout.input_size, 1) or form.packing.batch < WITHIN_ROWS:
        return False
    return numbers * form.dtype.itemsize <= most and not _terms_from_afar(form, kernel, numbers)


def _terms_from_afar(form: Form, kernel: Kernel, numbers: int) -> bool:
    """Whether by matrix tiles a thread would read more of the terms of so many numbers at a step than its own cache
    holds, for too few rows: what writing gates and reading them again costs grows with the rows, and what reading
    matrices costs does not. Of unequal lengths a step has some half of the batch's rows."""
    rows, layout = form.packing.batch, form.plan.layout
    # A product that the layout does not name is that of an option, with a parameter's own matrix.
    widths = {p.name: p.shape[-1] for p in layout.parameters} | {n: m.input for n, m in layout.products.items()}
    exchanged = sum(widths[g.products[0]] for g in kernel.groups if not g.inputs)
    terms = tools(form.dtype).by_terms
    shared, by_tiles = sharing(numbers * form.dtype.itemsize, numbers, exchanged, rows, form.workers, terms)
    if not by_tiles or rows <= shared or numbers * TERM_BYTES <= FAR_TERMS:
        return False
    of_thread = (rows if form.packing.is_dense else rows / 2) / form.workers
    return of_thread * FAR_DEPTH < exchanged + layout.input_size


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
