"""The cpu engine: compiled kernels for any cell, forward and backward, and the large products around them."""

import ctypes
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.compiler import build
from elman.compiler.emit import Group, Kernel
from elman.compiler.graph import CannotCompile
from elman.compiler.plan import Plan
from elman.engine import reference
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.matrices import dense, pattern, stored_gradient, weight_parameter

name = "cpu"

_REALS = {torch.float32: "float", torch.float64: "double"}
_KINDS = ("step", "previous", "next", "entered", "carry", "handed", "batch", "units", "totals", "absent")
_STEP, _PREVIOUS, _NEXT, _ENTERED, _CARRY, _HANDED, _BATCH, _UNITS, _TOTALS, _ABSENT = range(len(_KINDS))
_ALIGNMENT = 64  # bytes to which rows are padded, whatever the instruction set


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("steps", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("backward", ctypes.c_int64),
        ("split_units", ctypes.c_int64),
        ("batch_sizes", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("reset", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("states", ctypes.c_int64),
        ("entering", ctypes.c_void_p),
        ("carries", ctypes.c_int64),
        ("finals", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("team_size", ctypes.c_void_p),
        ("arrived", ctypes.c_int32),
        ("generation", ctypes.c_int32),
    )


@functools.cache
def _thread_pool() -> tuple[int, int, int] | None:
    """Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads in torch's own OpenMP runtime."""
    folder = Path(torch.__file__).parent
    for names in ("lib/libgomp*.so*", "../torch.libs/libgomp*.so*", "lib/libiomp5*.so*", "lib/libomp*.so*"):
        for path in sorted(folder.glob(names)):
            library = ctypes.CDLL(str(path))
            functions = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            if all(hasattr(library, f) for f in functions):
                addresses = [ctypes.cast(getattr(library, f), ctypes.c_void_p).value for f in functions]
                return tuple(addresses)  # type: ignore[return-value]
    return None


# ---- choice ---------------------------------------------------------------------------------------------------------


def why_not(call: LayerCall) -> str | None:
    """The reason why kernels cannot run the call, or None."""
    if call.input.device.type != "cpu":
        return f"the cpu engine does not run on {call.input.device.type}"
    if call.input.dtype not in _REALS:
        return f"the cpu engine has no kernels for {call.input.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "the cpu engine does not run under autocast"
    if call.packing.batch == 0:
        return "the batch has no rows"
    try:
        plan_of(call)
    except CannotCompile as error:
        return f"{call.cell!r} cannot be compiled: {error}"
    steps = [v for d in call.directions for v in d.state if v.dtype == torch.int64]
    if any(int(v.max()) + call.packing.steps >= 1 << 24 for v in steps):
        return "the step index passes 2^24, beyond which the kernels cannot count"
    return _build_problem(call.input.dtype)


@functools.cache
def _build_problem(dtype: torch.dtype) -> str | None:
    """Why nothing can be compiled here, or None; said once as a warning."""
    try:
        build.instruction_set()
        if build.compiler() is not None:
            return None
        problem = "no C++ compiler was found (g++, clang++, or the one that CXX names)"
    except build.BuildError as error:
        problem = str(error)
    warnings.warn(
        f"Elman's kernels cannot be compiled: {problem}. Layers run on slower engines; install a compiler "
        "(Debian: apt install g++; pip: ziglang, with CXX='python -m ziglang c++')",
        stacklevel=2,
    )
    return problem


@functools.lru_cache(maxsize=1024)
def _plan(cell: Any, layout: Any, below: tuple[tuple[str, int], ...]) -> Plan | CannotCompile:
    try:
        return Plan(cell, layout, dict(below))
    except CannotCompile as error:
        return error


def plan_of(call: LayerCall) -> Plan:
    """The compilation of a call's cell.

    Raises:
        CannotCompile: see its message.
    """
    below = tuple((k, v.shape[1]) for k, v in call.directions[0].below.items())
    plan = _plan(call.cell, call.layout, below)
    if isinstance(plan, CannotCompile):
        raise plan
    return plan


@functools.lru_cache(maxsize=4096)
def _library(source: str, real: str, isa: str) -> Any:
    library = build.load(source, real)
    library.elman_run.argtypes = [ctypes.c_void_p]
    return library


# ---- running --------------------------------------------------------------------------------------------------------


def run(call: LayerCall) -> list[DirectionResult]:
    """Run a layer; see `LayerCall` for shapes."""
    return [_run_direction(call, direction) for direction in call.directions]


def _run_direction(call: LayerCall, direction: Direction) -> DirectionResult:
    inputs = {
        "input": call.input,
        **{f"parameter.{k}": v for k, v in direction.parameters.items()},
        **{f"state.{e.name}": v for (e, _), v in zip(call.layout.states, direction.state, strict=True)},
        **{f"extra.{k}": v for k, v in call.extras.items()},
        **{f"below.{k}": v for k, v in direction.below.items()},
    }
    wanted = len(direction.state) if call.every_state else 1
    scene = _Scene(call, direction.reverse, tuple(inputs), wanted)
    results = _Recurrence.apply(scene, *inputs.values())  # type: ignore[no-untyped-call]
    return DirectionResult(tuple(results[:wanted]), tuple(results[wanted:]))


@dataclass(frozen=True)
class _Scene:
    """What a run knows beside its tensors."""

    call: LayerCall
    reverse: bool
    names: tuple[str, ...]
    wanted: int


def _padded(width: int, dtype: torch.dtype) -> int:
    units = _ALIGNMENT // dtype.itemsize
    return -(-width // units) * units


def _rows_padded(tensor: Tensor) -> Tensor:
    """The tensor with rows that a kernel may read in whole vectors: contiguous, and padded unless of width 1."""
    width = tensor.shape[-1]
    padded = _padded(width, tensor.dtype)
    if width in (1, padded):
        return tensor.contiguous()
    if tensor.dim() == 2 and tensor.stride() == (padded, 1) and tensor.data_ptr() % _ALIGNMENT == 0:
        past = tensor.storage_offset() + tensor.shape[0] * padded
        if past * tensor.element_size() <= tensor.untyped_storage().nbytes():
            return tensor
    return F.pad(tensor, (0, padded - width))


class _Table:
    """The buffers and matrices of one run of a kernel; holds every tensor that the kernel sees."""

    def __init__(self, kernel: Kernel, dtype: torch.dtype, batch: int) -> None:
        self._kernel = kernel
        self._dtype = dtype
        self._held: list[Any] = []
        self.numbers = {name: i for i, name in enumerate(kernel.buffers)}
        self.array = (_Buffer * max(1, len(kernel.buffers)))()
        for buffer, (name, width) in zip(self.array, kernel.buffers.items(), strict=False):
            buffer.kind, buffer.width = _ABSENT, width
            if name.startswith("scratch."):
                self.set(name, torch.empty(batch, _padded(width, dtype), dtype=dtype), _BATCH)
            elif name.startswith("reciprocal."):
                self.set(name, torch.full((1,), 1.0 / int(name.partition(".")[2]), dtype=dtype), _UNITS)

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def set(self, name: str, tensor: Tensor, kind: int, column: int = 0) -> None:
        """Give a buffer its memory; a buffer that the kernel does not name is passed over."""
        if name in self.numbers:
            buffer = self.array[self.numbers[name]]
            buffer.base = tensor.data_ptr() + column * tensor.element_size()
            buffer.stride = tensor.stride(0) if tensor.dim() > 1 else 0
            buffer.kind = kind
            self._held.append(tensor)

    def run(
        self,
        matrices: Mapping[str, Tensor],
        patterns: Mapping[str, Tensor],
        scene: _Scene,
        reset: Tensor | None,
        backward: bool,
        entries: list[str],
    ) -> None:
        """Run the kernel over all steps."""
        packing = scene.call.packing
        library = _library(self._kernel.source, _REALS[self._dtype], build.instruction_set())
        lanes = library.elman_lanes()
        sizes = torch.tensor(packing.batch_sizes)
        offsets = sizes.cumsum(0) - sizes
        weights = [_pack(g, matrices, lanes) for g in self._kernel.groups]
        ranges = [_ranges(g, patterns, lanes) for g in self._kernel.groups]
        pool = _thread_pool()
        threads = torch.get_num_threads() if pool else 1
        split_units = packing.batch < 8 * threads
        sums = torch.empty(max(1, self._kernel.sums), threads, packing.batch, lanes, dtype=self._dtype)
        n = self.numbers
        entering = [n[f"{k}.{e}"] for e in entries if f"state.{e}" in n for k in ("previous", "state", "default")]
        finals = [n[f"{k}.{e}"] for e in entries if f"carry.{e}" in n for k in ("carry", "final")]
        entering_array, finals_array = (
            (ctypes.c_int64 * len(entering))(*entering),
            (ctypes.c_int64 * len(finals))(*finals),
        )
        weight_array = (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights))
        range_array = (ctypes.c_void_p * len(ranges))(*(None if r is None else r.data_ptr() for r in ranges))
        call = _Call(
            packing.steps,
            packing.batch,
            threads,
            backward,
            split_units,
            sizes.data_ptr(),
            offsets.data_ptr(),
            None if reset is None else reset.data_ptr(),
            ctypes.addressof(self.array),
            ctypes.addressof(weight_array),
            ctypes.addressof(range_array),
            sums.data_ptr(),
            len(entering) // 3,
            ctypes.addressof(entering_array),
            len(finals) // 2,
            ctypes.addressof(finals_array),
            *(pool or (None, None, None)),
        )
        library.elman_run(ctypes.addressof(call))


def _pack(group: Group, matrices: Mapping[str, Tensor], lanes: int) -> Tensor:
    """A group's matrices as the kernel reads them: [block, depth, unit block of it, product, lane]."""
    unit = group.blocks * lanes
    blocks = -(-group.width // unit)
    missing = blocks * unit - group.width
    if group.transposed:
        columns = torch.cat([matrices[p] for p in group.products])  # [depth, width]
        columns = F.pad(columns, (0, missing)) if missing else columns
        return columns.reshape(-1, blocks, unit).transpose(0, 1).contiguous()
    stack = torch.stack([matrices[p] for p in group.products])  # [product, width, depth]
    stack = F.pad(stack, (0, 0, 0, missing)) if missing else stack
    return stack.reshape(len(group.products), blocks, group.blocks, lanes, -1).permute(1, 4, 2, 0, 3).contiguous()


def _ranges(group: Group, patterns: Mapping[str, Tensor], lanes: int) -> Tensor | None:
    """Begin and end of the columns that each block of a group uses, [blocks, 2] int64; None where it is all."""
    found = [patterns.get(p) for p in group.products]
    if any(p is None for p in found):
        return None
    used = torch.cat([p.T for p in found], 1).T if not group.transposed else torch.cat(found).T  # type: ignore[arg-type, union-attr]
    if not group.transposed:
        used = torch.stack(found).any(0)  # type: ignore[arg-type]
    unit = group.blocks * lanes
    blocks = -(-group.width // unit)
    used = F.pad(used, (0, 0, 0, blocks * unit - group.width)).unflatten(0, (blocks, unit)).any(1)
    positions = torch.arange(used.shape[1])
    begin = torch.where(used, positions, used.shape[1]).min(1).values
    end = torch.where(used, positions + 1, 0).max(1).values
    return torch.stack([begin, end], 1).contiguous()


class _Recurrence(torch.autograd.Function):
    """One direction of a layer as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, scene: _Scene, *tensors: Tensor) -> Any:
        call = scene.call
        plan = plan_of(call)
        training = any(ctx.needs_input_grad)
        forward = _Forward(scene, plan, dict(zip(scene.names, tensors, strict=True)), training)
        results = forward.run()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(v for v in results if not v.is_floating_point()))
        if training:
            ctx.scene = scene
            ctx.plan = plan
            kept = forward.kept()
            ctx.kept_names = tuple(kept)
            ctx.save_for_backward(*tensors, *kept.values())
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        scene = ctx.scene
        tensors = ctx.saved_tensors
        count = len(scene.names)
        inputs = dict(zip(scene.names, tensors[:count], strict=True))
        if torch.is_grad_enabled():
            return (None, *_through_reference(scene, inputs, gradients))
        kept = dict(zip(ctx.kept_names, tensors[count:], strict=True))
        found = _Backward(scene, ctx.plan, inputs, kept, gradients).run()
        return (
            None,
            *(found.get(n) if need else None for n, need in zip(scene.names, ctx.needs_input_grad[1:], strict=True)),
        )


def _through_reference(scene: _Scene, inputs: Mapping[str, Tensor], gradients: tuple[Tensor | None, ...]) -> list[Any]:
    """The gradients by way of the reference engine, so that they can be differentiated again."""
    call, _ = _as_call(scene, inputs)
    with torch.enable_grad():
        (result,) = reference.run(call)
        outputs = [*result.sequences, *result.state]
        pairs = [(v, g) for v, g in zip(outputs, gradients, strict=True) if g is not None and v.requires_grad]
        wanted = [n for n, v in inputs.items() if v.requires_grad]
        found = torch.autograd.grad(
            [v for v, _ in pairs],
            [inputs[n] for n in wanted],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    by_name = dict(zip(wanted, found, strict=True))
    return [by_name.get(n) for n in scene.names]


def _as_call(scene: _Scene, inputs: Mapping[str, Tensor]) -> tuple[LayerCall, Direction]:
    def named(kind: str) -> dict[str, Tensor]:
        return {n.partition(".")[2]: v for n, v in inputs.items() if n.startswith(f"{kind}.")}

    direction = Direction(named("parameter"), tuple(named("state").values()), scene.reverse, named("below"))
    call = scene.call
    made = LayerCall(
        call.cell,
        call.layout,
        call.packing,
        inputs["input"],
        call.reset,
        named("extra"),
        (direction,),
        scene.wanted > 1 or len(call.layout.states) == 1,
    )
    return made, direction


class _Base:
    """What the forward and the backward run share."""

    def __init__(self, scene: _Scene, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
        self.scene = scene
        self.plan = plan
        self.inputs = inputs
        call = scene.call
        self.layout = call.layout
        self.packing = call.packing
        self.dtype = call.input.dtype
        self.batch = call.packing.batch
        self.total = sum(call.packing.batch_sizes)
        self.parameters = {n.partition(".")[2]: v.detach() for n, v in inputs.items() if n.startswith("parameter.")}
        self.constants = reference.constants(call.cell, call.layout.hidden_size, call.input)
        reset = call.reset
        if reset is not None and scene.reverse:
            reset = reference.reset_in_reverse(call, reset).index_select(0, call.packing.reversal)
        self.reset = None if reset is None else reset.to(torch.uint8).contiguous()
        self.widths = {e.name: w for e, w in call.layout.states}
        self.gate_widths = {g: r.stop - r.start for g, r in call.layout.input_gates.items()}

    def empty(self, rows: int, width: int) -> Tensor:
        """Memory for a kernel's rows."""
        return torch.empty(rows, _padded(width, self.dtype), dtype=self.dtype)

    def in_order(self, tensor: Tensor) -> Tensor:
        """[N, *] in the order of this direction's steps, or back."""
        return tensor.index_select(0, self.packing.reversal) if self.scene.reverse else tensor

    def matrices(self) -> dict[str, Tensor]:
        """All products' matrices, by the names of the graph's nodes."""
        names = {n.name for n in self.plan.products.values()}
        return {n: dense(self.layout, n, self.parameters, self.constants) for n in names}

    def patterns(self) -> dict[str, Tensor]:
        """Where structured matrices have weights."""
        return _patterns(self.plan)

    def columns(self) -> dict[str, int]:
        """Where each input gate's padded columns start."""
        starts, start = {}, 0
        for gate, width in self.gate_widths.items():
            starts[gate] = start
            start += _padded(width, self.dtype)
        return starts

    def input_weight(self) -> tuple[Tensor | None, Tensor | None]:
        """`weight_ih` and `bias_ih` with each gate's rows padded."""
        if not self.gate_widths:
            return None, None
        weight = self.parameters["weight_ih"]
        bias = self.parameters["bias_ih"] if self.layout.input_bias else None
        if all(w == _padded(w, self.dtype) for w in self.gate_widths.values()):
            return weight, bias
        rows = torch.tensor([start + k for g, start in self.columns().items() for k in range(self.gate_widths[g])])
        total = sum(_padded(w, self.dtype) for w in self.gate_widths.values())
        wide = weight.new_zeros(total, weight.shape[1]).index_copy_(0, rows, weight)
        return wide, None if bias is None else bias.new_zeros(total).index_copy_(0, rows, bias)

    def units(self, table: _Table) -> None:
        """Give a table the per-unit values: vectors, constants, biases, defaults."""
        for n in self.layout.vectors:
            table.set(f"vector.{n}", _rows_padded(self.parameters[n]), _UNITS)
        for n, v in self.constants.items():
            if v.dim() == 1:
                table.set(f"constant.{n}", _rows_padded(v.to(self.dtype)), _UNITS)
        for p in self.layout.products.values():
            if p.bias is not None:
                table.set(f"bias.{p.name}", _rows_padded(self.parameters[p.bias][p.rows]), _UNITS)

    def states(self, table: _Table, sequences: Mapping[str, Tensor]) -> None:
        """Give a table the states' sequences, and where they are read before a step."""
        for entry, width in self.layout.states:
            sequence = sequences[entry.name]
            table.set(f"previous.{entry.name}", sequence, _PREVIOUS)
            table.set(f"next.{entry.name}", sequence, _NEXT)
            if self.reset is None:
                table.set(f"state.{entry.name}", sequence, _ENTERED)
            else:
                table.set(f"state.{entry.name}", self.empty(self.batch, width), _ENTERED)
            default = torch.full((_padded(width, self.dtype),), entry.initial, dtype=self.dtype)
            table.set(f"default.{entry.name}", default, _UNITS)

    def side_inputs(self, table: _Table) -> None:
        """Give a table the inputs that are read as they are."""
        for n, v in self.inputs.items():
            kind = n.partition(".")[0]
            if kind in ("extra", "below") or n == "input":
                key = "raw" if n == "input" else n
                if key in table:
                    table.set(key, _rows_padded(self.in_order(v.detach())), _STEP)


@functools.lru_cache(maxsize=1024)
def _patterns_of(layout: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    found = {n: pattern(layout, n) for n in names}
    return {n: p for n, p in found.items() if p is not None}


def _patterns(plan: Plan) -> dict[str, Tensor]:
    return _patterns_of(plan.layout, tuple(sorted({n.name for n in plan.products.values()})))


class _Forward(_Base):
    def __init__(self, scene: _Scene, plan: Plan, inputs: Mapping[str, Tensor], training: bool) -> None:
        super().__init__(scene, plan, inputs)
        self.kernel = plan.training if training else plan.inference
        self.training = training
        self.sequences: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}

    def run(self) -> tuple[Tensor, ...]:
        table = _Table(self.kernel, self.dtype, self.batch)
        x = self.in_order(self.inputs["input"].detach())
        weight, bias = self.input_weight()
        if weight is not None:
            rows = F.linear(x, weight, bias)
            for gate, start in self.columns().items():
                table.set(f"x.{gate}", rows, _STEP, start)
        for entry, width in self.layout.states:
            sequence = self.empty(self.batch + self.total, width)
            sequence[: self.batch, :width] = self.inputs[f"state.{entry.name}"].detach()
            self.sequences[entry.name] = sequence
        self.states(table, self.sequences)
        self.units(table)
        self.side_inputs(table)
        for n, width in self.kernel.buffers.items():
            if n.startswith("saved."):
                self.saved[n] = self.empty(self.total, width)
                table.set(n, self.saved[n], _STEP)
        entries = list(self.widths)
        table.run(self.matrices(), self.patterns(), self.scene, self.reset, False, entries)
        return self._results()

    def _results(self) -> tuple[Tensor, ...]:
        sequences, finals = [], []
        for k, (entry, width) in enumerate(self.layout.states):
            whole = self.sequences[entry.name][:, :width]
            if self.packing.is_dense:
                final = whole[-self.batch :].clone()
            else:
                final = whole.index_select(0, self.packing.last_steps + self.batch)
            sequence = self.in_order(whole[self.batch :]) if k < self.scene.wanted else None
            if entry.dtype == "int64":
                final, sequence = final.to(torch.int64), None if sequence is None else sequence.to(torch.int64)
            finals.append(final)
            if sequence is not None:
                sequences.append(sequence)
        return (*sequences, *finals)

    def kept(self) -> dict[str, Tensor]:
        """What backward needs beside the inputs."""
        return {**{f"sequence.{n}": v for n, v in self.sequences.items()}, **self.saved}


class _Backward(_Base):
    def __init__(
        self,
        scene: _Scene,
        plan: Plan,
        inputs: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        super().__init__(scene, plan, inputs)
        self.kept = kept
        self.gradients = gradients
        self.kernel = plan.gradients
        self.found: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        table = _Table(self.kernel, self.dtype, self.batch)
        sequences = {n: self.kept[f"sequence.{n}"] for n in self.widths}
        self.states(table, sequences)
        self.units(table)
        self.side_inputs(table)
        for n in self.kernel.buffers:
            if n.startswith("saved."):
                table.set(n, self.kept[n], _STEP)
        wanted = self.scene.wanted
        carries = {}
        for k, (entry, width) in enumerate(self.layout.states):
            given = self.gradients[k] if k < wanted else None
            if given is not None:
                table.set(f"sequence.{entry.name}", _rows_padded_wide(self.in_order(given), width), _STEP)
            final = self.gradients[wanted + k]
            if final is not None and entry.dtype != "int64":
                table.set(f"final.{entry.name}", _rows_padded_wide(final, width), _BATCH)
            if f"carry.{entry.name}" in table:
                carries[entry.name] = torch.empty(2 * self.batch, _padded(width, self.dtype), dtype=self.dtype)
                table.set(f"carry.{entry.name}", carries[entry.name], _CARRY)
                table.set(f"handed.{entry.name}", carries[entry.name], _HANDED)
        product_gradients = self._product_buffers(table)
        x_gradients = self._x_buffers(table, product_gradients)
        side = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                side[n[2:]] = self.empty(self.total, width)
                table.set(n, side[n[2:]], _STEP)
        totals = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith("total."):
                totals[n[6:]] = torch.zeros(torch.get_num_threads(), _padded(width, self.dtype), dtype=self.dtype)
                table.set(n, totals[n[6:]], _TOTALS)
        entries = list(self.widths)
        table.run(self.matrices(), self.patterns(), self.scene, self.reset, True, entries)

        for n, v in totals.items():
            self.found[f"parameter.{n}"] = v.sum(0)[: self.parameters[n].shape[0]]
        for n, carry in carries.items():
            self.found[f"state.{n}"] = carry[self.batch :, : self.widths[n]]
        for n, v in side.items():
            width = self.layout.input_size if n == "raw" else self.inputs[n].shape[1]
            self.found["input" if n == "raw" else n] = self.in_order(v[:, :width])
        self._input_products(x_gradients)
        self._recurrent_products(product_gradients, sequences)
        return self.found

    def _product_buffers(self, table: _Table) -> dict[int, Tensor]:
        """Memory for the gradient of each product; the recurrent gates' lie side by side."""
        found: dict[int, Tensor] = {}
        recurrent = [i for i in self.plan.recurrent if f"d.product.{i}" in table]
        wide = self.empty(self.total, sum(_padded(self.plan.products[i].width, self.dtype) for i in recurrent))
        start = 0
        for index in recurrent:
            padded = _padded(self.plan.products[index].width, self.dtype)
            table.set(f"d.product.{index}", wide, _STEP, start)
            found[index] = wide[:, start : start + padded]
            start += padded
        for index, node in self.plan.products.items():
            if index not in found and f"d.product.{index}" in table:
                found[index] = self.empty(self.total, node.width)
                table.set(f"d.product.{index}", found[index], _STEP)
        return found

    def _x_buffers(self, table: _Table, products: Mapping[int, Tensor]) -> Tensor | None:
        """Memory for the gradient of the input gates, [N, padded columns], perhaps shared with the products'."""
        if not self.gate_widths:
            return None
        if self.plan.shares_gradients:
            first = next(iter(products.values()))
            width = sum(_padded(w, self.dtype) for w in self.gate_widths.values())
            return first.as_strided((self.total, width), (first.stride(0), 1))
        width = sum(_padded(w, self.dtype) for w in self.gate_widths.values())
        absent = [g for g in self.gate_widths if f"d.x.{g}" not in table]
        rows = torch.zeros(self.total, width, dtype=self.dtype) if absent else self.empty(self.total, width)
        for gate, start in self.columns().items():
            table.set(f"d.x.{gate}", rows, _STEP, start)
        return rows

    def _compact(self, wide: Tensor, widths: list[int]) -> Tensor:
        """Rows of padded columns without the padding."""
        if all(w == _padded(w, self.dtype) for w in widths):
            return wide
        parts = wide.split([_padded(w, self.dtype) for w in widths], 1)
        return torch.cat([p[:, :w] for p, w in zip(parts, widths, strict=True)], 1)

    def _input_products(self, wide: Tensor | None) -> None:
        if wide is None:
            return
        d = self._compact(wide, list(self.gate_widths.values()))
        x = self.in_order(self.inputs["input"].detach())
        self.found["parameter.weight_ih"] = d.T @ x
        if self.layout.input_bias:
            self.found["parameter.bias_ih"] = d.sum(0)
        if self.inputs["input"].requires_grad:
            through = self.in_order(d @ self.parameters["weight_ih"])
            self.found["input"] = self.found["input"] + through if "input" in self.found else through

    def _recurrent_products(self, gradients: Mapping[int, Tensor], sequences: Mapping[str, Tensor]) -> None:
        nodes = self.plan.products
        for operand in dict.fromkeys(n.args[0] for n in nodes.values()):
            group = [i for i, n in nodes.items() if n.args[0] == operand and i in gradients]
            group = [i for i in self.plan.recurrent if i in group] + [i for i in group if i not in self.plan.recurrent]
            for run in self._adjacent(group, gradients):
                first = gradients[run[0]]
                widths = [nodes[i].width for i in run]
                span = sum(_padded(w, self.dtype) for w in widths)
                d = self._compact(first.as_strided((self.total, span), first.stride(), first.storage_offset()), widths)
                dense_gradient = d.T @ self._operand(operand, sequences)
                bias_gradient = d.sum(0)
                start = 0
                for index, width in zip(run, widths, strict=True):
                    rows = slice(start, start + width)
                    self._give(nodes[index].name, dense_gradient[rows], bias_gradient[rows])
                    start += width

    def _adjacent(self, group: list[int], gradients: Mapping[int, Tensor]) -> list[list[int]]:
        """Products of one operand whose gradients lie side by side, so that one matrix product serves them."""
        runs: list[list[int]] = []
        for index in group:
            if runs:
                last = gradients[runs[-1][-1]]
                follows = last.storage_offset() + last.shape[1] == gradients[index].storage_offset()
                if follows and last.untyped_storage().data_ptr() == gradients[index].untyped_storage().data_ptr():
                    runs[-1].append(index)
                    continue
            runs.append([index])
        return runs

    def _operand(self, index: int, sequences: Mapping[str, Tensor]) -> Tensor:
        """What a product read at each step, [N, width]."""
        node = self.plan.graph.nodes[index]
        if node.op != "leaf":
            entry = next((e for e, i in self.plan.graph.outputs.items() if i == index), None)
            rows = self.kept[f"saved.{index}"] if entry is None else sequences[entry][self.batch :]
            return rows[:, : node.width]
        kind, _, rest = node.name.partition(".")
        if kind == "state":
            whole = sequences[rest][:, : node.width]
            if self.packing.is_dense and self.reset is None:
                return whole[: self.total]
            rows = whole.index_select(0, self.packing.previous_steps)
            if self.reset is not None:
                rows[self.reset.bool()] = {e.name: e.initial for e, _ in self.layout.states}[rest]
            return rows
        return self.in_order(self.inputs["input" if kind == "raw" else node.name].detach())

    def _give(self, product: str, weight: Tensor, bias: Tensor) -> None:
        """Add a product's gradients to those of the parameters that store it."""
        declared = self.layout.products.get(product)
        if declared is not None and declared.fixed:
            return
        stored, rows = weight_parameter(self.layout, product)
        for key, at, value in (
            (stored, rows, stored_gradient(self.layout, product, weight)),
            (declared.bias if declared else None, rows, bias),
        ):
            if key is not None:
                name = f"parameter.{key}"
                if name not in self.found:
                    whole = self.parameters[key].shape == value.shape
                    self.found[name] = value if whole else torch.zeros_like(self.parameters[key])
                    if whole:
                        continue
                self.found[name][at] += value


def _rows_padded_wide(tensor: Tensor, width: int) -> Tensor:
    """As `_rows_padded`, also for width 1: a kernel's own rows are always padded."""
    padded = _padded(width, tensor.dtype)
    return tensor.contiguous() if width == padded else F.pad(tensor, (0, padded - width))
