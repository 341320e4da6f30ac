"""The large matrix products before and after the recurrence, on Elman's own kernel.

On the processors that were measured (see docs/benchmarks.md) torch's products reach 40-80 % of the multiply-add peak at
these shapes, and it is they, not the loop, that a fast recurrence waits for.
"""

import ctypes
import functools
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine.sinks import REALS, Sink, address_of

Matrix = tuple[int, int, int, int]  # address, rows, columns, and elements from row to row
Segments = Sequence[Sequence[Matrix]]

_SOURCE = "".join(f'#include "{name}.h"\n' for name in ("products", "matrices", "tile_products"))

# Where addresses stand in the arguments of the functions; see the headers.
_PRODUCT = (4, 7, 10, 12, 15, 16, 17, 18, 19)
_PACKING = (8, 9, 10, 11)
_TRANSPOSITION = (3, 5)

_TERMS = 3  # see terms.h
TERM_BYTES = 2 * _TERMS  # of a number


class Tools:
    """The compiled products of one dtype and instruction set; what they do goes to a `Sink`."""

    def __init__(self, dtype: torch.dtype) -> None:
        library = build.load(_SOURCE, REALS[dtype])
        for name, sizes in (("elman_packed_size", 2), ("elman_workspace", 3)):
            getattr(library, name).argtypes = [ctypes.c_int64] * sizes
            getattr(library, name).restype = ctypes.c_int64
        self.itemsize = dtype.itemsize
        library.elman_tiles.restype = ctypes.c_void_p
        self.lanes: int = library.elman_lanes()
        self.tiles: int = library.elman_tiles()
        self.by_terms = bool(library.elman_tiles_matrices())  # whether there are products by matrix tiles
        self._multiply = address_of(library.elman_multiply)
        self._pack = address_of(library.elman_pack)
        self._pack_right = address_of(library.elman_pack_b)
        self._transpose = address_of(library.elman_transpose)
        self._workspace = functools.lru_cache(maxsize=1024)(library.elman_workspace)
        self._packed_size = functools.lru_cache(maxsize=1024)(library.elman_packed_size)

    def operand_size(self, segments: Segments, transposed: bool) -> int:
        """Bytes of the terms of one row that the matrices of a group are multiplied by."""
        extents = [segment[0][1 if transposed else 2] for segment in segments]
        halves = sum(-(-n // self.lanes) for n in extents)
        return -(-halves // 2) * _TERMS * 64

    def group_size(
        self, segments: Segments, width: int, unit_blocks: int, transposed: bool, terms: bool = False
    ) -> int:
        """Bytes that `pack_group` writes."""
        unit = unit_blocks * self.lanes
        if terms:
            return -(-width // unit) * unit * len(segments[0]) * self.operand_size(segments, transposed)
        return -(-width // unit) * unit * _depth(segments, transposed) * len(segments[0]) * self.itemsize

    def pack_group(
        self, sink: Sink, segments: Segments, width: int, unit_blocks: int, transposed: bool, terms: bool
    ) -> int:
        """Write the matrices of one group of a kernel's products in the order in which the kernel reads them.

        That is [block, depth, unit block of it, matrix, lane], zero past the last unit, or as `terms.h` says.

        Args:
            segments: for each segment of the operand, the matrices [width, columns] that it is multiplied by; where
                transposed one matrix [rows, width] for each.
            width: units of the result.
            unit_blocks: vectors of units that the kernel computes together.
            transposed: see `segments`.
            terms: whether as matrix tiles read them.

        Returns:
            the address, in scratch memory.
        """
        to = sink.take(self.group_size(segments, width, unit_blocks, transposed, terms))
        matrices = [m for segment in segments for m in segment]
        count, depth = len(segments[0]), _depth(segments, transposed)
        columns = (
            sink.array(array("q", [m[0] for m in matrices]), range(len(matrices))),
            sink.array(array("q", [m[3] for m in matrices])),
            sink.array(array("q", [m[1 if transposed else 2] for m in matrices])),
        )
        workers, *pool = sink.team(count * width * depth)
        sizes = (count, len(segments), unit_blocks, width, depth, transposed, terms, workers)
        sink.call("pack", self._pack, array("q", (*sizes, *columns, to, *pool)), _PACKING)
        return to

    def packed_right(self, sink: Sink, b: Matrix, transposed: bool) -> int:
        """The address, in scratch memory, of the right-hand side of many products, packed once.

        Args:
            b: [K, N], or where transposed [N, K].
            transposed: see `b`.
        """
        address, rows, columns, stride = b
        depth, width = (columns, rows) if transposed else (rows, columns)
        strides = (1, stride) if transposed else (stride, 1)
        to = sink.take(self._packed_size(depth, width) * self.itemsize)
        workers, *pool = sink.team(rows * columns)
        words = (0, width, depth, workers, 0, 0, 0, address, *strides, *(0, 0, 0, 0, 0, to, 0, 0, 0, 0), *pool, 0)
        sink.call("pack", self._pack_right, array("q", words), _PRODUCT)
        return to

    def multiply(
        self,
        sink: Sink,
        sizes: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        c: tuple[int, int],
        bias: int = 0,
        add: bool = False,
        packed: int = 0,
        sums: int = 0,
        column_sums: int = 0,
        add_sums: bool = False,
        chosen: int = 0,
    ) -> None:
        """C = A B + bias.

        Args:
            sizes: M, N, K.
            a: [M, K]: address, and elements from row to row and from column to column. b: [K, N], likewise.
            c: [M, N]: address, and elements from row to row, which are contiguous.
            bias: address of [N], or 0.
            add: whether to add to what C holds, without a bias.
            packed: what `packed_right` gave, in place of b, or 0.
            sums: address of [M], to write the sums of A's rows to, or 0.
            column_sums: address of [N], to write the sums of B's columns to, or 0.
            add_sums: whether to add to what is there.
            chosen: address of [K], the columns of A and rows of B to take, or 0 for the first K.
        """
        rows, columns, depth = sizes
        workers, *pool = sink.team(rows * columns * depth)
        options = (bias, add, add_sums, packed, sums, column_sums, chosen)
        with sink.within():
            workspace = sink.take(self._workspace(rows, 0 if packed else columns, workers) * self.itemsize)
            words = (rows, columns, depth, workers, *a, *b, *c, *options, workspace, *pool, 0)
            sink.call("multiply", self._multiply, array("q", words), _PRODUCT)

    def transpose(self, sink: Sink, source: Matrix, to: int, stride: int) -> None:
        """Write a matrix [M, N] transposed, with so many elements from row to row."""
        address, rows, columns, step = source
        workers, *pool = sink.team(rows * columns)
        words = (rows, columns, workers, address, step, to, stride, *pool)
        sink.call("transpose", self._transpose, array("q", words), _TRANSPOSITION)


def _depth(segments: Segments, transposed: bool) -> int:
    return sum(segment[0][1 if transposed else 2] for segment in segments)


def tools(dtype: torch.dtype) -> Tools:
    """The compiled products.

    Raises:
        BuildError: they cannot be compiled.
    """
    return _tools(dtype, build.instruction_set())


@functools.lru_cache(maxsize=8)
def _tools(dtype: torch.dtype, isa: str) -> Tools:
    return Tools(dtype)


def matrix(tensor: Tensor) -> Matrix:
    """A matrix whose rows are contiguous, as `Tools` takes it."""
    return tensor.data_ptr(), tensor.shape[0], tensor.shape[1], tensor.stride(0)
