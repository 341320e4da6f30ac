"""A compiled kernel and its memory: buffers by name, matrices packed as the kernel reads them."""

import ctypes
import functools
from array import array
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
from elman.engine.products import REALS, Matrix, tools


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


SPLIT_ROWS = 8  # rows for each thread: with no more of them the threads share out the units,
SPLIT_BYTES = 1 << 17  # unless the matrices are smaller than this: meeting after each step would cost more


class _Fixed:
    """What all runs of a kernel share: its library, and a table of buffers in which none has memory yet."""

    def __init__(self, kernel: Kernel, dtype: torch.dtype, isa: str) -> None:
        library = build.load(kernel.source, REALS[dtype])
        library.elman_run.argtypes = [ctypes.c_void_p]
        self.run = library.elman_run
        self.tools = tools(dtype)
        self.numbers = {name: i for i, name in enumerate(kernel.buffers)}
        self.scratch = [(n, w) for n, w in kernel.buffers.items() if n.startswith("scratch.")]
        self.once = [(n, w) for n, w in kernel.buffers.items() if n.startswith("once.")]
        self.held: list[Tensor] = []
        self.table = array("q")
        for name, width in kernel.buffers.items():
            address, kind = 0, Kind.ABSENT
            if name.startswith("reciprocal."):
                number = torch.full((1,), 1.0 / int(name.partition(".")[2]), dtype=dtype)
                self.held.append(number)
                address, kind = number.data_ptr(), Kind.UNITS
            self.table.extend((address, 0, kind, width))
        if not kernel.buffers:
            self.table.extend((0, 0, Kind.ABSENT, 0))
        self._kernel = kernel
        self._indices: dict[tuple[str, ...], tuple[array[int], array[int]]] = {}
        self._ranges: dict[int, Any] = {}

    def entries(self, names: tuple[str, ...]) -> tuple["array[int]", "array[int]"]:
        """The buffers through which the states of these names enter a step, and those of their gradients."""
        if names not in self._indices:
            n = self.numbers
            entering = [n[f"{k}.{e}"] for e in names if f"state.{e}" in n for k in ("previous", "state", "default")]
            finals = [n[f"{k}.{e}"] for e in names if f"carry.{e}" in n for k in ("carry", "final", "fresh")]
            self._indices[names] = (array("q", entering), array("q", finals))
        return self._indices[names]

    def ranges(self, patterns: Mapping[str, Tensor]) -> tuple["array[int]", list[Any]]:
        """Addresses of the groups' non-zero columns, and what holds them."""
        if id(patterns) not in self._ranges:
            found = [_ranges(g, patterns, self.tools.lanes) for g in self._kernel.groups]
            addresses = array("q", [0 if r is None else r.data_ptr() for r in found])
            self._ranges[id(patterns)] = (addresses, [found, patterns])
        result: tuple[array[int], list[Any]] = self._ranges[id(patterns)]
        return result


@functools.lru_cache(maxsize=4096)
def _fixed(kernel: Kernel, dtype: torch.dtype, isa: str) -> _Fixed:
    return _Fixed(kernel, dtype, isa)


# Of the call's numbers, those that change between stretches of time; see `Call` in recurrence.h.
_FIRST, _LAST = 5, 6


class Table:
    """The buffers and matrices of one run of a kernel.

    It holds what it is given as tensors; what is given by address must stay where it is.
    """

    def __init__(self, kernel: Kernel, dtype: torch.dtype, batch: int) -> None:
        self._kernel = kernel
        self._dtype = dtype
        self._fixed = _fixed(kernel, dtype, build.instruction_set())
        self._held: list[Any] = []
        self._call: Any = None
        self._itemsize = dtype.itemsize
        self.numbers = self._fixed.numbers
        self._table = self._fixed.table[:]  # for each buffer: address, stride, kind, width
        self._batch = batch
        self._draws = array("q", (0, 0, 0) * len(kernel.draws))

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def set(self, name: str, tensor: Tensor, kind: int) -> None:
        """Give a buffer a tensor's memory; a buffer that the kernel does not name is passed over."""
        number = self.numbers.get(name)
        if number is not None:
            at, table = 4 * number, self._table
            table[at] = tensor.data_ptr()
            table[at + 1] = tensor.stride(0) if tensor.dim() > 1 else 0
            table[at + 2] = kind
            self._held.append(tensor)

    def place(self, name: str, address: int, stride: int, kind: int) -> None:
        """Give a buffer memory by its address and the elements from row to row, as `set`."""
        number = self.numbers.get(name)
        if number is not None:
            at, table = 4 * number, self._table
            table[at] = address
            table[at + 1] = stride
            table[at + 2] = kind

    def draw(self, name: str, rows: Tensor, moving: bool, threshold: int) -> None:
        """Say how a random choice is made (see `draws.h`); one that the kernel does not make is passed over."""
        if name in self._kernel.draws:
            at = 3 * self._kernel.draws.index(name)
            self._draws[at : at + 3] = array("q", (rows.data_ptr(), moving, threshold))
            self._held.append(rows)

    def steps(self, first: int, last: int) -> None:
        """Choose the steps that the prepared kernel runs next; at first it is all."""
        self._call[_FIRST], self._call[_LAST] = first, last

    def prepare(
        self,
        matrices: Mapping[str, Matrix],
        patterns: Mapping[str, Tensor],
        packing: Packing,
        reset: Tensor | None,
        direction: tuple[bool, bool],
        entries: tuple[str, ...],
        take: Callable[[int], int],
        workers: int | None = None,
        clock: "array[int] | None" = None,
    ) -> Callable[[], object]:
        """Pack the matrices and point to everything; what is returned runs the kernel over all steps.

        Args:
            matrices: dense, by the names of the graph's products.
            patterns: where structured ones have weights.
            packing: the steps and their rows.
            reset: [N] uint8, or None.
            direction: whether the kernel is a backward one, and whether it is that of a layer's backward direction.
            entries: the states' names.
            take: gives the address of so many bytes.
            workers: threads; by default as many as torch uses.
            clock: first unit, end and period of each run of units that has a period of its own, of a cell with a clock.
        """
        fixed, kernel = self._fixed, self._kernel
        for name, width in fixed.scratch:
            self.place(name, take(self._batch * width * self._itemsize), width, Kind.BATCH)
        addresses, bytes_read = array("q"), 0
        for group in kernel.groups:
            chosen = [matrices[p] for p in group.products]
            form = (group.width, group.blocks, group.transposed)
            size = fixed.tools.group_size(chosen, *form)
            to = take(size)
            fixed.tools.pack_group(chosen, *form, to)
            addresses.append(to)
            bytes_read += size
        workers = workers or threads.count()
        for name, width in fixed.once:
            stride = -(-width * self._itemsize // 64) * 64 // self._itemsize  # so that threads share no cache line
            self.place(name, take(workers * stride * self._itemsize), stride, Kind.TOTALS)
        split_rows = SPLIT_ROWS * workers if bytes_read >= SPLIT_BYTES else 0
        entering, finals = fixed.entries(entries)
        ranges, kept = fixed.ranges(patterns)
        lanes = fixed.tools.lanes
        sums = take(kernel.sums * workers * packing.batch * lanes * self._itemsize) if kernel.sums else 0
        call = array(
            "q",
            (
                *(packing.steps, packing.batch, workers, direction[0], split_rows, 0, packing.steps, direction[1]),
                *(*packing.places, 0 if reset is None else reset.data_ptr()),
                *(self._table.buffer_info()[0], addresses.buffer_info()[0], ranges.buffer_info()[0], sums),
                *(len(entering) // 3, entering.buffer_info()[0], len(finals) // 3, finals.buffer_info()[0]),
                self._draws.buffer_info()[0],
                *(len(clock) // 3 if clock else 0, clock.buffer_info()[0] if clock else 0),
                *(threads.pool() or (0, 0, 0)),
                0,  # the meeting
            ),
        )
        self._held += (addresses, kept, packing, reset, clock)
        self._call = call
        return functools.partial(fixed.run, call.buffer_info()[0])


CHUNK_BYTES = 8 << 20  # of the products with the input that wait for the loop: they stay in the cache
CHUNK_ROWS = 384  # at the least, so that the products stay large


def chunks(packing: Packing, row_bytes: int, kernel: Kernel) -> list[tuple[slice, slice]]:
    """Stretches of time, as steps and as entries of the packed sequence, whose rows take about CHUNK_BYTES.

    They take a quarter of it where the kernel has no products, so that little else than memory holds it up: its rows
    then stay in the threads' own caches.
    """
    total = packing.total
    size = CHUNK_BYTES if kernel.groups else CHUNK_BYTES // 4
    wanted = max(size // max(row_bytes, 1), CHUNK_ROWS)
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
