"""Memory for runs, kept from one run to the next.

The system hands out fresh memory page by page, and clears each: on the processors that were measured (docs/engine.md)
that costs more than a fast recurrence does. Blocks are therefore mapped in huge pages where the system has them, and
go back to a pool, not to the system, when the last tensor on them is gone. The pool is compiled (`memory.cpp`), for
making a tensor by torch's own functions takes Python as long as a small product.
"""

import ctypes
import functools
import math
import mmap
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from elman.compiler import build

SCRATCH_KEPT = 1 << 26  # bytes of scratch that a thread keeps

_LINE = 64
_HUGE = 1 << 21
_DIMENSIONS = 4
Margins = tuple[int, int]
_CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.uint8: (1, 8)}  # DLPack's type codes, and bits


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """As `torch.empty`, on the CPU."""
    return _one(shape, dtype).make()[0]


def empty_like(tensor: Tensor, *shape: int) -> Tensor:
    """As `tensor.new_empty(shape)`: from the pool where that is on the CPU."""
    return empty(*shape, dtype=tensor.dtype) if tensor.device.type == "cpu" else tensor.new_empty(shape)


class Tensors:
    """Tensors to be made together, perhaps again and again.

    Args:
        shapes: of each; below zero a size is that of `rows_and`.
        dtype: of all.
        margins: how many numbers more there are in front of each and behind it, in memory that lives as long.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype, margins: Sequence[Margins] = ()) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._margins = margins or [(0, 0)] * len(shapes)
        fits = all(len(shape) <= _DIMENSIONS and all(shape) for shape in shapes)
        maker = _maker() if fits and dtype in _CODES else None
        self._wanted = array("q")
        for shape, margin in zip(shapes, self._margins, strict=True) if maker else ():
            self._wanted.extend((len(shape), *shape, *(0,) * (_DIMENSIONS - len(shape)), *margin))
        words = (len(shapes), self._wanted.buffer_info()[0], *_CODES.get(dtype, (0, 0)), id(from_dlpack))
        self._words = array("q", words)
        self._make = maker(self._words.buffer_info()[0]) if maker else self._by_torch

    def make(self, rows: int = 1) -> list[Tensor]:
        """They, uninitialised.

        Args:
            rows: at least 1; for sizes of `rows_and`.
        """
        tensors = self._make(rows)
        if not tensors and self._shapes:
            numbers = [math.prod(shape) for shape in self._with(rows)] + [sum(margin) for margin in self._margins]
            raise MemoryError(f"no memory for {sum(numbers) * self._dtype.itemsize} bytes")
        if _poisoned():
            for tensor in tensors:
                tensor.fill_(float("nan") if self._dtype.is_floating_point else 255)  # as torch.empty does then
        return tensors

    def _with(self, rows: int) -> list[list[int]]:
        return [[rows - 1 - n if n < 0 else n for n in shape] for shape in self._shapes]

    def _by_torch(self, rows: int) -> list[Tensor]:
        tensors = []
        for shape, (front, behind) in zip(self._with(rows), self._margins, strict=True):
            numbers = math.prod(shape)
            block = torch.empty(front + numbers + behind, dtype=self._dtype, device="cpu")
            tensors.append(block[front : front + numbers].view(*shape))
        return tensors


def rows_and(more: int) -> int:
    """Stands for a size that is only known when tensors are made: their rows, and so many more."""
    return -1 - more


@functools.lru_cache(maxsize=512)
def _one(shape: tuple[int, ...], dtype: torch.dtype) -> Tensors:
    return Tensors([shape], dtype)


@functools.cache
def _maker() -> Callable[[int], Callable[[int], list[Tensor]]] | None:
    """What makes builtin functions that make tensors, see memory.cpp; None where nothing can be compiled."""
    try:
        library = build.load(Path(__file__).with_name("memory.cpp").read_text(), "float")
    except build.BuildError:
        return None  # the layers say so
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("elman_tensors", library))


def _poisoned() -> bool:
    """Whether torch fills what `torch.empty` gives, so that reading it shows."""
    fill: bool = torch.are_deterministic_algorithms_enabled() and getattr(
        torch.utils.deterministic, "fill_uninitialized_memory", True
    )
    return fill


def _mapping(size: int) -> mmap.mmap:
    """Memory of this process alone: a forked one would write to shared memory too, which moreover has no huge pages
    where the system's `shmem_enabled` does not say so."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _mapped(size: int) -> Tensor:
    """So many bytes from the system, in huge pages as far as such fit; they begin at multiples of their size."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or size < _HUGE:
        return torch.frombuffer(_mapping(size), dtype=torch.uint8)
    mapping = _mapping(size + _HUGE)
    block = torch.frombuffer(mapping, dtype=torch.uint8)
    first = -block.data_ptr() % _HUGE
    mapping.madvise(mmap.MADV_HUGEPAGE, first, size // _HUGE * _HUGE)
    return block[first : first + size]


class Scratch(threading.local):
    """One thread's memory for what a run needs no longer than it runs; the next run uses it again."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._next = self._end = self._wanted = self._most = 0
        self._room = 0  # bytes of the block from its first whole line on
        self._more: list[Tensor] = []

    def begin(self) -> None:
        """Start a run: what the last one took is free."""
        self._more.clear()
        wanted = max(self._wanted, self._most)
        if wanted > self._block.numel() and wanted <= SCRATCH_KEPT:
            self._block = torch.empty(0, dtype=torch.uint8, device="cpu")  # gone before the next one is there
            # not from the pool: there the smaller ones that it had before would stay, and nobody wants their sizes
            self._block = _mapped(wanted + _LINE)
        self._next = -(-self._block.data_ptr() // _LINE) * _LINE
        self._end = self._block.data_ptr() + self._block.numel()
        self._room = max(0, self._end - self._next)
        self._wanted = self._most = 0

    def all_of(self, size: int) -> int:
        """:meth:`begin`, and :meth:`take` so many bytes."""
        if size > self._room or _poisoned():
            self._most = max(self._most, size)  # or a small run between large ones would have it stay small
            self.begin()
            return self.take(size)
        self._more.clear()
        self._wanted, self._most = size, 0
        self._next = self._end  # what else a run may want comes from elsewhere
        return self._end - self._room

    @contextmanager
    def within(self) -> Iterator[None]:
        """A part of a run: what it takes is free behind it."""
        before, wanted, count = self._next, self._wanted, len(self._more)
        try:
            yield
        finally:
            self._most = max(self._most, self._wanted)
            self._next, self._wanted = before, wanted
            del self._more[count:]

    def tensor(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As :meth:`take`; good until it is free again."""
        size = math.prod(shape) * dtype.itemsize
        address = self.take(size)
        held = [block for block in (self._block, *self._more) if 0 <= address - block.data_ptr() < block.numel()]
        start = address - held[0].data_ptr()
        return held[0][start : start + size].view(dtype).view(shape)

    def take(self, size: int) -> int:
        """The address of so many bytes, at the start of a cache line."""
        size = -(-size // _LINE) * _LINE
        self._wanted += size
        found = self._next
        if found + size > self._end:
            self._more.append(empty(size + _LINE, dtype=torch.uint8))
            found = -(-self._more[-1].data_ptr() // _LINE) * _LINE
        else:
            self._next += size
        if _poisoned():
            ctypes.memset(found, 255, size)  # NaN
        return found


scratch = Scratch()
