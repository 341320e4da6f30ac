"""A compiled kernel and its memory: buffers by name, matrices packed as the kernel reads them."""

import functools
from array import array
from collections.abc import Mapping
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.compiler import build
from elman.compiler.emit import Group, Kernel
from elman.engine.capacity import Ragged
from elman.engine.packing import Packing
from elman.engine.products import Matrix, Segments, tools
from elman.engine.sharing import loop_threads, sharing
from elman.engine.sinks import REALS, Function, Sink, address_of


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


PIECE = 256 << 10  # bytes of a block's matrices that several tiles of rows take at once; see parts.h


class _Fixed:
    """What all runs of a kernel share: its library, and a table of buffers in which none has memory yet."""

    def __init__(self, kernel: Kernel, dtype: torch.dtype, isa: str) -> None:
        self.library = build.load(kernel.source, REALS[dtype])
        self.run = address_of(self.library.elman_run)
        self.tools = tools(dtype)
        self.numbers = {name: i for i, name in enumerate(kernel.buffers)}
        self.scratch = [(n, w) for n, w in kernel.buffers.items() if n.startswith("scratch.")]
        self.once = [(n, w) for n, w in kernel.buffers.items() if n.startswith("once.")]
        self.reciprocals = {
            n: torch.full((1,), 1.0 / int(n.partition(".")[2]), dtype=dtype, device="cpu")
            for n in kernel.buffers
            if n.startswith("reciprocal.")
        }
        self.table = array("q", [n for w in kernel.buffers.values() or (0,) for n in (0, 0, Kind.ABSENT, w)])
        self._kernel = kernel
        self._indices: dict[tuple[str, ...], tuple[array[int], array[int]]] = {}

    def entries(self, names: tuple[str, ...]) -> tuple["array[int]", "array[int]"]:
        """The buffers through which the states of these names enter a step, and those of their gradients."""
        if names not in self._indices:
            n = self.numbers
            entering = [n[f"{k}.{e}"] for e in names if f"state.{e}" in n for k in ("previous", "state", "default")]
            finals = [n[f"{k}.{e}"] for e in names if f"carry.{e}" in n for k in ("carry", "final", "fresh")]
            self._indices[names] = (array("q", entering), array("q", finals))
        return self._indices[names]


@functools.lru_cache(maxsize=4096)
def _fixed(kernel: Kernel, dtype: torch.dtype, isa: str) -> _Fixed:
    return _Fixed(kernel, dtype, isa)


# Where among the words of a `Call` (see buffers.h) its steps, its buffers, its turn and all its addresses stand.
_FIRST, _LAST, _BUFFERS, TURN = 5, 6, 11, 27
_CALL = (8, 9, 10, 11, 12, 13, 14, 16, 18, 19, 21, 29)


class Table:
    """The buffers and matrices of one run of a kernel.

    Args:
        sink: where its jobs go, and whose addresses it is given.
        workers: threads that there are.
    """

    def __init__(self, kernel: Kernel, dtype: torch.dtype, batch: int, sink: Sink, workers: int) -> None:
        self._kernel = kernel
        self._fixed = _fixed(kernel, dtype, build.instruction_set())
        self._sink = sink
        self._workers = workers
        self._call = array("q")
        self._itemsize = dtype.itemsize
        self._numbers = self._fixed.numbers
        self._table = self._fixed.table[:]  # for each buffer: address, stride, kind, width
        self._batch = batch
        self._draws = array("q", (0, 0, 0) * len(kernel.draws))
        for name, number in self._fixed.reciprocals.items():
            self.place(name, sink.constant(number), 0, Kind.UNITS)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def place(self, name: str, address: int, stride: int, kind: int) -> None:
        """Give a buffer its memory: where it is, and the elements from row to row.

        A buffer that the kernel does not name is passed over.
        """
        number = self._numbers.get(name)
        if number is not None:
            at, table = 4 * number, self._table
            table[at] = address
            table[at + 1] = stride
            table[at + 2] = kind

    def draws(self, name: str) -> bool:
        """Whether the kernel makes a random choice of this name."""
        return name in self._kernel.draws

    def draw(self, name: str, rows: int, threshold: int) -> None:
        """Say how a random choice is made at each step; see `draws.h`."""
        at = 3 * self._kernel.draws.index(name)
        self._draws[at : at + 3] = array("q", (rows, True, threshold))

    def prepare(
        self,
        matrices: Mapping[str, Matrix],
        patterns: Mapping[str, Tensor],
        packing: Packing | Ragged,
        reset: int,
        direction: tuple[bool, bool],
        entries: tuple[str, ...],
        clock: "array[int] | None" = None,
    ) -> None:
        """Pack the matrices and point to everything else.

        Args:
            matrices: dense, by the names of the graph's products; those of input gates, `x.<gate>`, unless their
                products have been done before.
            patterns: where structured ones have weights.
            packing: the steps and their rows.
            reset: address of [N] uint8, or 0.
            direction: whether the kernel is a backward one, and whether it is that of a layer's backward direction.
            entries: the states' names.
            clock: first unit, end and period of each run of units that has a period of its own, of a cell with a clock.
        """
        fixed, kernel, sink = self._fixed, self._kernel, self._sink
        for name, width in fixed.scratch:
            self.place(name, sink.take(self._batch * width * self._itemsize), width, Kind.BATCH)
        tools, groups = fixed.tools, [self._segments(group, matrices) for group in kernel.groups]
        forms = [(group.width, group.blocks, group.transposed) for group in kernel.groups]
        sizes = [tools.group_size(s, *form) if s else 0 for s, form in zip(groups, forms, strict=True)]
        bytes_read, exchanged = sum(sizes), sum(map(_exchanged, kernel.groups, groups))
        numbers, rows = bytes_read // self._itemsize, packing.batch
        shared, by_tiles = sharing(bytes_read, numbers, exchanged, rows, self._workers, tools.by_terms)
        addresses, ranges, operands = array("q"), array("q"), array("q")
        for group, segments, form in zip(kernel.groups, groups, forms, strict=True):
            if segments is None:
                for words in (addresses, ranges, operands):
                    words.append(0)
                continue
            used = _ranges(group, patterns, tools.lanes)
            addresses.append(tools.pack_group(sink, segments, *form, by_tiles))
            ranges.append(0 if used is None else sink.constant(used))
            # Each thread has all rows, and fills up its groups of them: see term_groups.h.
            padded = (rows + rows // 8 + 32) * self._workers
            operands.append(sink.take(padded * tools.operand_size(segments, group.transposed)) if by_tiles else 0)
        workers = loop_threads(bytes_read, packing.batch, shared, self._workers)
        for name, width in fixed.once:
            stride = -(-width * self._itemsize // 64) * 64 // self._itemsize  # so that threads share no cache line
            self.place(name, sink.take(workers * stride * self._itemsize), stride, Kind.TOTALS)
        entering, finals = fixed.entries(entries)
        lanes = tools.lanes
        sums = sink.take(kernel.sums * workers * packing.batch * lanes * self._itemsize) if kernel.sums else 0
        each = range(len(groups))
        self._call = array(
            "q",
            (
                *(packing.steps, packing.batch, workers, direction[0], shared, 0, packing.steps, direction[1]),
                *(*sink.sizes(packing), reset),
                *(0, sink.array(addresses, each), sink.array(ranges, each), sums),
                *(len(entering) // 3, sink.array(entering), len(finals) // 3, sink.array(finals)),
                sink.array(self._draws, range(0, len(self._draws), 3)),
                *(len(clock) // 3 if clock else 0, sink.array(clock) if clock else 0),
                tools.tiles,
                *sink.team()[1:],
                *(0, 0, PIECE),  # the meeting, the turn, and what tiles take at once
                sink.array(operands, each) if any(operands) else 0,
            ),
        )

    @staticmethod
    def _segments(group: Group, matrices: Mapping[str, Matrix]) -> Segments | None:
        """A group's matrices, as `Tools.pack_group` takes them; None where its products have been done before."""
        if group.inputs and group.products[0] not in matrices:
            return None
        chosen = [matrices[p] for p in group.products]
        segments = [[m] for m in chosen] if group.transposed else [chosen]
        if group.added and group.added[0] in matrices:
            segments.append([matrices[x] for x in group.added])
        return segments

    def job(self, steps: slice, turn: int = 0) -> tuple[Function, "array[int]", tuple[int, ...]]:
        """What runs the prepared kernel over some steps, with the buffers as they are placed now.

        Args:
            steps: those to run.
            turn: 1 for blocks of units to begin with the last, as after an odd number of steps.
        """
        call = self._call[:]
        call[_FIRST], call[_LAST], call[TURN] = steps.start, steps.stop, turn
        call[_BUFFERS] = self._sink.array(self._table[:], range(0, len(self._table), 4))
        return self._fixed.run, call, _CALL

    def alone(self, turn: int = 0) -> tuple[Function, "array[int]", "array[int]"]:
        """What runs the prepared kernel over one step, its argument, and the words of its buffers, which the caller
        keeps and may change: see `address`. `turn` is that of `job`."""
        function, call, _ = self.job(slice(0, 1), turn)
        buffers = self._table[:]
        buffers.append(0)  # see `address`
        call[_BUFFERS] = buffers.buffer_info()[0]
        return function, call, buffers

    def address(self, name: str) -> int:
        """Where among the words of the buffers one's address is; where there is no such buffer, one that is unread."""
        return 4 * self._numbers[name] if name in self._numbers else len(self._table)

    def run(self, steps: slice) -> None:
        """Run it; see `job`."""
        self._sink.call("kernel", *self.job(steps))


CHUNK_BYTES = 8 << 20  # of the products with the input that wait for the loop: they stay in the cache
CHUNK_ROWS = 384  # at the least, so that the products stay large


def at_once(capacity: int, row_bytes: int, kernel: Kernel) -> bool:
    """Whether so many rows are a single stretch."""
    return capacity <= _wanted(row_bytes, kernel) * 3 // 2


def _wanted(row_bytes: int, kernel: Kernel) -> int:
    size = CHUNK_BYTES if kernel.groups else CHUNK_BYTES // 4
    return max(size // max(row_bytes, 1), CHUNK_ROWS)


def chunks(packing: Packing | Ragged, row_bytes: int, kernel: Kernel) -> list[tuple[slice, slice]]:
    """Stretches of time, as steps and as entries of the packed sequence, whose rows take about CHUNK_BYTES.

    They take a quarter of it where the kernel has no products, so that little else than memory holds it up: its rows
    then stay in the threads' own caches.
    """
    if isinstance(packing, Ragged) or at_once(packing.total, row_bytes, kernel):
        return [(slice(0, packing.steps), slice(0, packing.total))]
    wanted = _wanted(row_bytes, kernel)
    found, first, start, end = [], 0, 0, 0
    for step, size in enumerate(packing.batch_sizes):
        end += size
        if end - start >= wanted or step == packing.steps - 1:
            found.append((slice(first, step + 1), slice(start, end)))
            first, start = step + 1, end
    return found


def _exchanged(group: Group, segments: Segments | None) -> int:
    """Numbers of a row that a group multiplies by and that a step computes."""
    if group.inputs or segments is None:
        return 0
    return sum(segment[0][1] for segment in segments) if group.transposed else segments[0][0][2]


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
    positions = torch.arange(used.shape[1], device="cpu")
    begin = torch.where(used, positions, used.shape[1]).min(1).values
    end = torch.where(used, positions + 1, 0).max(1).values
    return torch.stack([begin, end], 1).contiguous()
