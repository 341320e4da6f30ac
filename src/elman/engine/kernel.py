"""A compiled kernel and its memory: buffers by name, matrices packed as the kernel reads them."""

import ctypes
import functools
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.compiler import build
from elman.compiler.emit import Group, Kernel
from elman.engine import threads
from elman.engine.packing import Packing
from elman.engine.products import REALS, lanes, pack

ALIGNMENT = 64  # bytes to which rows are padded, whatever the instruction set


class Kind(IntEnum):
    """How a buffer's row is found; see `recurrence.h`, which counts in the same order."""

    STEP = 0
    PREVIOUS = 1
    NEXT = 2
    ENTERED = 3
    CARRY = 4
    HANDED = 5
    BATCH = 6
    UNITS = 7
    TOTALS = 8
    ABSENT = 9


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
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
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


def padded(width: int, dtype: torch.dtype) -> int:
    """Elements of a row of this width with its padding."""
    units = ALIGNMENT // dtype.itemsize
    return -(-width // units) * units


def vector_rows(tensor: Tensor) -> Tensor:
    """The tensor with rows that a kernel may read in whole vectors: contiguous, and padded unless of width 1."""
    width = tensor.shape[-1]
    whole = padded(width, tensor.dtype)
    if width in (1, whole):
        return tensor.contiguous()
    if tensor.dim() == 2 and tensor.stride() == (whole, 1) and tensor.data_ptr() % ALIGNMENT == 0:
        past = tensor.storage_offset() + tensor.shape[0] * whole
        if past * tensor.element_size() <= tensor.untyped_storage().nbytes():
            return tensor
    return F.pad(tensor, (0, whole - width))


def whole_rows(tensor: Tensor, width: int) -> Tensor:
    """As `vector_rows`, also for width 1: a kernel's own rows are always padded."""
    whole = padded(width, tensor.dtype)
    return tensor.contiguous() if width == whole else F.pad(tensor, (0, whole - width))


@functools.lru_cache(maxsize=4096)
def _library(source: str, real: str, isa: str) -> Any:
    library = build.load(source, real)
    library.elman_run.argtypes = [ctypes.c_void_p]
    return library


class Table:
    """The buffers and matrices of one run of a kernel; holds every tensor that the kernel sees."""

    def __init__(self, kernel: Kernel, dtype: torch.dtype, batch: int) -> None:
        self._kernel = kernel
        self._dtype = dtype
        self._held: list[Any] = []
        self._call: Any = None
        self.numbers = {name: i for i, name in enumerate(kernel.buffers)}
        self.array = (_Buffer * max(1, len(kernel.buffers)))()
        for buffer, (name, width) in zip(self.array, kernel.buffers.items(), strict=False):
            buffer.kind, buffer.width = Kind.ABSENT, width
            if name.startswith("scratch."):
                self.set(name, torch.empty(batch, padded(width, dtype), dtype=dtype), Kind.BATCH)
            elif name.startswith("reciprocal."):
                self.set(name, torch.full((1,), 1.0 / int(name.partition(".")[2]), dtype=dtype), Kind.UNITS)

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

    def shift(self, name: str, rows: int) -> None:
        """Let a buffer's memory begin so many rows of the packed sequence later."""
        if name in self.numbers:
            buffer = self.array[self.numbers[name]]
            buffer.base -= rows * buffer.stride * self._dtype.itemsize

    def steps(self, first: int, last: int) -> None:
        """Choose the steps that the prepared kernel runs next; at first it is all."""
        self._call.first, self._call.last = first, last

    def prepare(
        self,
        matrices: Mapping[str, Tensor],
        patterns: Mapping[str, Tensor],
        packing: Packing,
        reset: Tensor | None,
        backward: bool,
        entries: list[str],
        workers: int | None = None,
    ) -> Callable[[], object]:
        """Pack the matrices and point to everything; what is returned runs the kernel over all steps.

        Args:
            matrices: dense, by the names of the graph's products.
            patterns: where structured ones have weights.
            packing: the steps and their rows.
            reset: [N] uint8, or None.
            backward: whether time runs from the last step to the first.
            entries: the states' names.
            workers: threads; by default as many as torch uses.
        """
        library = _library(self._kernel.source, REALS[self._dtype], build.instruction_set())
        width = lanes(self._dtype)
        weights = [
            pack([matrices[p] for p in g.products], g.width, g.blocks, g.transposed) for g in self._kernel.groups
        ]
        ranges = [_ranges(g, patterns, width) for g in self._kernel.groups]
        workers = workers or threads.count()
        split_units = packing.batch < 8 * workers
        sums = torch.empty(max(1, self._kernel.sums), workers, packing.batch, width, dtype=self._dtype)
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
            workers,
            backward,
            split_units,
            0,
            packing.steps,
            packing.sizes.data_ptr(),
            packing.offsets.data_ptr(),
            None if reset is None else reset.data_ptr(),
            ctypes.addressof(self.array),
            ctypes.addressof(weight_array),
            ctypes.addressof(range_array),
            sums.data_ptr(),
            len(entering) // 3,
            ctypes.addressof(entering_array),
            len(finals) // 2,
            ctypes.addressof(finals_array),
            *(threads.pool() or (None, None, None)),
        )
        self._held += [weights, ranges, sums, packing, reset, entering_array, finals_array, weight_array, range_array]
        self._call = call
        return functools.partial(library.elman_run, ctypes.addressof(call))


CHUNK_BYTES = 8 << 20  # of the products with the input that wait for the loop: they stay in the cache
CHUNK_ROWS = 384  # at the least, so that the products stay large


def chunks(packing: Packing, row_bytes: int) -> list[tuple[slice, slice]]:
    """Stretches of time, as steps and as entries of the packed sequence, whose rows take about CHUNK_BYTES."""
    total = sum(packing.batch_sizes)
    wanted = max(CHUNK_BYTES // max(row_bytes, 1), CHUNK_ROWS)
    if total <= wanted * 3 // 2:
        return [(slice(0, packing.steps), slice(0, total))]
    found, first, start, end = [], 0, 0, 0
    for step, size in enumerate(packing.batch_sizes):
        end += size
        if end - start >= wanted or step == packing.steps - 1:
            found.append((slice(first, step + 1), slice(start, end)))
            first, start = step + 1, end
    return found


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
