"""Memory for runs, kept from one run to the next.

The system hands out fresh memory page by page, and clears each: on the processors that were measured (docs/engine.md)
that costs more than a fast recurrence does. Blocks are therefore mapped in huge pages where the system has them, and
go back to a pool, not to the system, when the last tensor on them is gone.
"""

import ctypes
import itertools
import math
import mmap
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

SMALLEST = 1 << 17  # bytes from which a block comes from the pool
KEPT = 1 << 28  # bytes of free blocks that are kept

SCRATCH_KEPT = 1 << 26  # bytes of scratch that a thread keeps

_LINE = 64
_PAGE = 4096
_HUGE_FROM = 1 << 21
_lock = threading.Lock()
_free: list[tuple[int, mmap.mmap]] = []  # size and mapping, the oldest first
_returned: deque[tuple[int, mmap.mmap]] = deque()  # not yet among the free ones: a finaliser may not wait for the lock
_numbers = itertools.count()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """As `torch.empty`, on the CPU."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype)
    tensor = _from_pool(size, count, dtype).view(shape)
    if _poisoned():
        tensor.fill_(float("nan") if dtype.is_floating_point else 255)  # as torch.empty does then
    return tensor


def empty_like(tensor: Tensor, *shape: int) -> Tensor:
    """As `tensor.new_empty(shape)`: from the pool where that is on the CPU."""
    return empty(*shape, dtype=tensor.dtype) if tensor.device.type == "cpu" else tensor.new_empty(shape)


def _poisoned() -> bool:
    """Whether torch fills what `torch.empty` gives, so that reading it shows."""
    fill: bool = torch.are_deterministic_algorithms_enabled() and getattr(
        torch.utils.deterministic, "fill_uninitialized_memory", True
    )
    return fill


def _from_pool(size: int, count: int, dtype: torch.dtype) -> Tensor:
    whole = _size_class(size + _PAGE)
    mapping = _take(whole)
    # Blocks start at different places of a page: equal ones would fall on the same sets of the cache.
    offset = next(_numbers) * 832 % _PAGE
    block = _type(whole - _PAGE).from_buffer(mapping, offset)
    block.mapping, block.size = mapping, whole
    return torch.frombuffer(block, dtype=dtype, count=count)


def _size_class(size: int) -> int:
    """The size to map, so that blocks of about this size can serve in turn: at most an eighth more."""
    unit = max(_PAGE, 1 << (size.bit_length() - 4))
    return -(-size // unit) * unit


def _take(size: int) -> mmap.mmap:
    with _lock:
        while _returned:
            _free.append(_returned.popleft())
        for place in range(len(_free) - 1, -1, -1):  # the last used one is the likeliest to be in the cache
            if _free[place][0] == size:
                return _free.pop(place)[1]
        kept = sum(s for s, _ in _free)
        while kept > KEPT:
            kept -= _free.pop(0)[0]
    return _mapped(size)


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    # Private: shared memory has no huge pages where the system's `shmem_enabled` does not say so.
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _HUGE_FROM:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


class _Block(ctypes.Array[Any]):
    """A block in use; when the last tensor on it is gone, its mapping goes back to the pool."""

    _type_ = ctypes.c_uint8
    _length_ = 0
    mapping: Any = None
    size: int = 0

    def __del__(self) -> None:
        if self.mapping is not None:
            _returned.append((self.size, self.mapping))


_types: dict[int, Any] = {}


def _type(size: int) -> Any:
    if size not in _types:
        _types[size] = type("Block", (_Block,), {"_length_": size})
    return _types[size]


class Scratch(threading.local):
    """One thread's memory for what a run needs no longer than it runs; the next run uses it again."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._next = self._end = self._wanted = self._most = 0
        self._more: list[Tensor] = []

    def begin(self) -> None:
        """Start a run: what the last one took is free."""
        self._more.clear()
        wanted = max(self._wanted, self._most)
        if wanted > self._block.numel() and wanted <= SCRATCH_KEPT:
            self._block = torch.empty(0, dtype=torch.uint8)  # gone before the next one is there
            # not from the pool: there the smaller ones that it had before would stay, and nobody wants their sizes
            self._block = torch.frombuffer(_mapped(wanted + _LINE), dtype=torch.uint8)
        self._next = -(-self._block.data_ptr() // _LINE) * _LINE
        self._end = self._block.data_ptr() + self._block.numel()
        self._wanted = self._most = 0

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
