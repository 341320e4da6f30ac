"""The large matrix products before and after the recurrence, on Elman's own kernel.

On the processors that were measured (see docs/benchmarks.md) torch's products reach 40-80 % of the multiply-add peak at
these shapes, and it is they, not the loop, that a fast recurrence waits for.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory, threads

REALS = {torch.float32: "float", torch.float64: "double"}


class _Product(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("a", ctypes.c_void_p),
        ("a_row", ctypes.c_int64),
        ("a_depth", ctypes.c_int64),
        ("b", ctypes.c_void_p),
        ("b_depth", ctypes.c_int64),
        ("b_column", ctypes.c_int64),
        ("c", ctypes.c_void_p),
        ("c_row", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("add", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("team_size", ctypes.c_void_p),
    )


@functools.lru_cache(maxsize=8)
def _library(real: str, isa: str) -> Any:
    library = build.load('#include "products.h"\n', real)
    library.elman_multiply.argtypes = [ctypes.c_void_p]
    library.elman_pack.argtypes = [ctypes.c_void_p]
    library.elman_pack_b.argtypes = [ctypes.c_void_p]
    library.elman_packed_size.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.elman_packed_size.restype = ctypes.c_int64
    library.elman_workspace.argtypes = [ctypes.c_int64]
    library.elman_workspace.restype = ctypes.c_int64
    return library


class _Packing(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("count", "unit_blocks", "width", "depth", "transposed", "threads")),
        *((n, ctypes.c_void_p) for n in ("matrices", "strides", "rows", "to")),
        *((n, ctypes.c_void_p) for n in ("parallel", "thread_number", "team_size")),
    )


def lanes(dtype: torch.dtype) -> int:
    """Numbers in a vector of the instruction set that kernels are compiled for."""
    return int(_library(REALS[dtype], build.instruction_set()).elman_lanes())


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
    unit = unit_blocks * library.elman_lanes()
    padded = -(-width // unit) * unit
    result = memory.empty(padded * depth * (1 if transposed else len(matrices)), dtype=first.dtype)
    count = len(matrices)
    addresses = (ctypes.c_void_p * count)(*(m.data_ptr() for m in matrices))
    strides = (ctypes.c_int64 * count)(*(m.stride(0) for m in matrices))
    rows = (ctypes.c_int64 * count)(*(m.shape[0] for m in matrices))
    workers = threads.count() if result.numel() > 1 << 15 else 1
    job = _Packing(
        *(count, unit_blocks, width, depth, transposed, workers),
        *(ctypes.addressof(v) for v in (addresses, strides, rows)),
        result.data_ptr(),
        *(threads.pool() or (None, None, None)),
    )
    library.elman_pack(ctypes.addressof(job))
    return result


class Packed:
    """The right-hand side of many products, packed once.

    Args:
        b: [K, N], any strides.
    """

    def __init__(self, b: Tensor) -> None:
        self.shape = b.shape
        library = _library(REALS[b.dtype], build.instruction_set())
        self.data = memory.empty(library.elman_packed_size(b.shape[0], b.shape[1]), dtype=b.dtype)
        product = _Product(0, b.shape[1], b.shape[0], _workers(b.numel()))
        product.b, product.b_depth, product.b_column = b.data_ptr(), b.stride(0), b.stride(1)
        product.packed = self.data.data_ptr()
        product.parallel, product.thread_number, product.team_size = threads.pool() or (None, None, None)
        library.elman_pack_b(ctypes.addressof(product))


def _workers(operations: int) -> int:
    return threads.count() if operations > 1 << 15 else 1


def multiply(
    a: Tensor, b: Tensor | Packed, bias: Tensor | None = None, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """a b + bias, outside of autograd.

    Args:
        a: [M, K], any strides. b: [K, N], any strides, or packed. bias: [N], contiguous, or None.
        out: [M, N] with contiguous rows, to write to; default: a new tensor.
        add: whether to add to what `out` holds, without a bias.

    Returns:
        [M, N], float32 or float64 as the operands are.

    Raises:
        BuildError: the kernel cannot be compiled.
    """
    rows, depth = a.shape
    columns = b.shape[1]
    if bias is None and out is None and isinstance(b, Tensor) and columns < 32 and rows > columns:
        return multiply(b.T, a.T).T.contiguous()  # a panel of C is 64 columns wide
    library = _library(REALS[a.dtype], build.instruction_set())
    result = memory.empty(rows, columns, dtype=a.dtype) if out is None else out
    workers = _workers(rows * depth * columns)
    size = workers * library.elman_workspace(0 if isinstance(b, Packed) else columns)
    workspace = memory.empty(size, dtype=a.dtype)
    right = (None, 0, 0) if isinstance(b, Packed) else (b.data_ptr(), b.stride(0), b.stride(1))
    product = _Product(
        *(rows, columns, depth, workers),
        *(a.data_ptr(), a.stride(0), a.stride(1)),
        *right,
        *(result.data_ptr(), result.stride(0)),
        None if bias is None else bias.data_ptr(),
        add,
        b.data.data_ptr() if isinstance(b, Packed) else None,
        workspace.data_ptr(),
        *(threads.pool() or (None, None, None)),
    )
    library.elman_multiply(ctypes.addressof(product))
    return result
