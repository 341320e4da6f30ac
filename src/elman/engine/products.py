"""The large matrix products before and after the recurrence, on Elman's own kernel.

On the processors that were measured (see docs/benchmarks.md) torch's products reach 40-80 % of the multiply-add peak at
these shapes, and it is they, not the loop, that a fast recurrence waits for.
"""

import ctypes
import functools
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory, threads

REALS = {torch.float32: "float", torch.float64: "double"}


@functools.lru_cache(maxsize=8)
def _library(real: str, isa: str) -> Any:
    library = build.load('#include "products.h"\n', real)
    library.elman_multiply.argtypes = [ctypes.c_void_p]
    library.elman_pack.argtypes = [ctypes.c_void_p]
    library.elman_pack_b.argtypes = [ctypes.c_void_p]
    library.elman_packed_size.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.elman_packed_size.restype = ctypes.c_int64
    library.elman_workspace.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.elman_workspace.restype = ctypes.c_int64
    library.elman_sample.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.elman_sample.restype = ctypes.c_uint64
    library.lanes = library.elman_lanes()
    library.workspace = functools.lru_cache(maxsize=1024)(library.elman_workspace)
    return library


def lanes(dtype: torch.dtype) -> int:
    """Numbers in a vector of the instruction set that kernels are compiled for."""
    return int(_library(REALS[dtype], build.instruction_set()).lanes)


def sample(tensors: Sequence[Tensor], numbers: int) -> int:
    """A number that changes, almost surely, when one of so many numbers spread over each tensor does.

    Args:
        tensors: contiguous, all float32 or all float64.
        numbers: of each tensor that are looked at.
    """
    described = array("q", [n for v in tensors for n in (v.data_ptr(), v.numel())])
    library = _library(REALS[tensors[0].dtype], build.instruction_set())
    return int(library.elman_sample(described.buffer_info()[0], len(tensors), numbers))


def pack(matrices: list[Tensor], width: int, unit_blocks: int, transposed: bool) -> Tensor:
    """Matrices of one group of a kernel's products, in the order in which the kernel reads them.

    Args:
        matrices: [width, depth] each, or where transposed [rows, width] each, the depth being all rows together.
        width: units of the result.
        unit_blocks: vectors of units that the kernel computes together.
        transposed: see `matrices`.

    Returns:
        A flat tensor: [block, depth, unit block of it, matrix, lane], zero past the last unit.
    """
    first = matrices[0]
    matrices = [m if m.stride(1) == 1 else m.contiguous() for m in matrices]
    library = _library(REALS[first.dtype], build.instruction_set())
    depth = sum(m.shape[0] for m in matrices) if transposed else first.shape[1]
    unit = unit_blocks * library.lanes
    padded = -(-width // unit) * unit
    count = len(matrices)
    result = memory.empty(padded * depth * (1 if transposed else count), dtype=first.dtype)
    described = array("q", (*(m.data_ptr() for m in matrices), *(m.stride(0) for m in matrices)))
    described.extend(m.shape[0] for m in matrices)
    start = described.buffer_info()[0]
    job = array(
        "q",
        (
            *(count, unit_blocks, width, depth, transposed, _workers(result.numel())),
            *(start, start + 8 * count, start + 16 * count, result.data_ptr(), *(threads.pool() or (0, 0, 0))),
        ),
    )
    library.elman_pack(job.buffer_info()[0])
    return result


class Packed:
    """The right-hand side of many products, packed once.

    Args:
        b: [K, N], any strides.
    """

    def __init__(self, b: Tensor) -> None:
        self.shape = b.shape
        library = _library(REALS[b.dtype], build.instruction_set())
        depth, columns = b.shape
        self.data = memory.empty(library.elman_packed_size(depth, columns), dtype=b.dtype)
        product = _product((0, columns, depth, _workers(b.numel())), (0, 0, 0), b, (0, 0), packed=self.data.data_ptr())
        library.elman_pack_b(product.buffer_info()[0])


def _product(
    sizes: tuple[int, int, int, int],
    a: tuple[int, int, int],
    b: "Tensor | Packed",
    c: tuple[int, int],
    bias: int = 0,
    add: bool = False,
    packed: int = 0,
    sums: int = 0,
    workspace: int = 0,
) -> "array[int]":
    """`struct Product` of products.h: `a` and `c` are an address and strides."""
    right = (0, 0, 0) if isinstance(b, Packed) else (b.data_ptr(), *b.stride())
    return array("q", (*sizes, *a, *right, *c, bias, add, packed, sums, workspace, *(threads.pool() or (0, 0, 0)), 0))


def _workers(operations: int) -> int:
    return threads.count() if operations > 1 << 15 else 1


def multiply(
    a: Tensor,
    b: Tensor | Packed,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    add: bool = False,
    sums: Tensor | None = None,
) -> Tensor:
    """a b + bias, outside of autograd.

    Args:
        a: [M, K], any strides. b: [K, N], any strides, or packed. bias: [N], contiguous, or None.
        out: [M, N] with contiguous rows, to write to; default: a new tensor.
        add: whether to add to what `out` and `sums` hold, without a bias.
        sums: [M], to write the sums of a's rows to.

    Returns:
        [M, N], float32 or float64 as the operands are.

    Raises:
        BuildError: the kernel cannot be compiled.
    """
    rows, depth = a.shape
    columns = b.shape[1]
    library = _library(REALS[a.dtype], build.instruction_set())
    result = memory.empty(rows, columns, dtype=a.dtype) if out is None else out
    workers = _workers(rows * depth * columns)
    packed = isinstance(b, Packed)
    workspace = memory.empty(library.workspace(0 if packed else columns, workers), dtype=a.dtype)
    product = _product(
        (rows, columns, depth, workers),
        (a.data_ptr(), *a.stride()),
        b,
        (result.data_ptr(), result.stride(0)),
        0 if bias is None else bias.data_ptr(),
        add,
        b.data.data_ptr() if isinstance(b, Packed) else 0,
        0 if sums is None else sums.data_ptr(),
        workspace.data_ptr(),
    )
    library.elman_multiply(product.buffer_info()[0])
    return result
