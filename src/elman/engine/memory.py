"""Memory for runs, kept from one run to the next.

The system hands out fresh memory page by page, and clears each: on the processors that were measured (docs/engine.md)
that costs more than a fast recurrence does. Blocks are therefore mapped in huge pages where the system has them, and
go back to a pool, not to the system, when the last tensor on them is gone. The pool is compiled (`memory.cpp`), for
making a tensor by torch's own functions takes Python as long as a small product.
"""

import ctypes
import functools
import math
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.utils.deterministic
from torch import Tensor

from elman.compiler import build
from elman.engine.tensors import CODES, DIMENSIONS, maker, torch_words

SCRATCH_KEPT = 1 << 26  # bytes of scratch that a thread keeps

_LINE = 64
Margins = tuple[int, int]


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
        pooled: whether large ones go back to the pool, and not to the system.

    Attributes:
        make: gives them as a list, uninitialised; for sizes of `rows_and` it takes how many rows there are, at least 1.
            A MemoryError says how much is not there.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        margins: Sequence[Margins] = (),
        pooled: bool = True,
    ) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._margins = margins or [(0, 0)] * len(shapes)
        fits = all(len(shape) <= DIMENSIONS and all(shape) for shape in shapes)
        make = _maker() if fits and dtype in CODES else None
        self._wanted = array("q")
        for shape, margin in zip(shapes, self._margins, strict=True) if make else ():
            self._wanted.extend((len(shape), *shape, *(0,) * (DIMENSIONS - len(shape)), *margin))
        words = (len(shapes), self._wanted.buffer_info()[0], *CODES.get(dtype, (0, 0)), pooled)
        held = array("q", (*words, torch_words().buffer_info()[0], id(filled), id(_fill)))
        self.make: Callable[..., list[Tensor]] = self._by_torch
        if make is not None:
            self.make = make(held.buffer_info()[0], (held, self._wanted))

    def _with(self, rows: int) -> list[list[int]]:
        return [[rows - 1 - n if n < 0 else n for n in shape] for shape in self._shapes]

    def _by_torch(self, rows: int = 1) -> list[Tensor]:
        tensors = []
        for shape, (front, behind) in zip(self._with(rows), self._margins, strict=True):
            numbers = math.prod(shape)
            block = torch.empty(front + numbers + behind, dtype=self._dtype, device="cpu")
            tensors.append(block[front : front + numbers].view(*shape))
        return tensors  # which `torch.empty` has filled where they are to be


def rows_and(more: int) -> int:
    """Stands for a size that is only known when tensors are made: their rows, and so many more."""
    return -1 - more


@functools.lru_cache(maxsize=512)
def _one(shape: tuple[int, ...], dtype: torch.dtype) -> Tensors:
    return Tensors([shape], dtype)


@functools.cache
def _maker() -> Callable[[int, object], Callable[..., list[Tensor]]] | None:
    """What makes builtin functions that make tensors, see memory.cpp; None where nothing can be compiled."""
    library = _library()
    return None if library is None else maker(library, "elman_tensors")


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = build.load(Path(__file__).with_name("memory.cpp").read_text(), "float")
    except build.BuildError:
        return None  # the layers say so
    return library


@functools.cache
def _offering() -> Callable[[int, int], object] | None:
    """What tells compiled runs where the calling thread's scratch memory is, and how much they may have at once."""
    library = _library()
    prototype = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)  # for it asks Python which thread that is
    return None if library is None else prototype(("elman_scratch_is", library))


def scratch_function() -> int:
    """The address of what gives compiled code the calling thread's scratch memory, or null; 0 where there is none."""
    library = _library()
    return 0 if library is None else ctypes.cast(library.elman_scratch, ctypes.c_void_p).value or 0


# Whether torch fills what `torch.empty` gives, so that reading it shows, unless a second option says that it does not.
filled: Callable[[], bool] = getattr(
    torch._C, "_get_deterministic_algorithms", torch.are_deterministic_algorithms_enabled
)


def _fill(tensors: Sequence[Tensor]) -> None:
    """As torch.empty does then."""
    if _poisoned():
        for tensor in tensors:
            tensor.fill_(float("nan") if tensor.dtype.is_floating_point else 255)


def _poisoned() -> bool:
    return filled() and getattr(torch.utils.deterministic, "fill_uninitialized_memory", True)


class Scratch(threading.local):
    """One thread's memory for what a run needs no longer than it runs; the next run uses it again.

    Args:
        shared: whether compiled runs may take all of it, as :meth:`all_of` gives it, by themselves.
    """

    def __init__(self, shared: bool = False) -> None:
        self._shared = shared
        self._block = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._next = self._end = self._wanted = self._most = 0
        self._room = 0  # bytes of the block from its first whole line on
        self._more: list[Tensor] = []

    def begin(self) -> None:
        """Start a run: what the last one took is free."""
        self._more.clear()
        wanted = max(self._wanted, self._most)
        if wanted > self._block.numel() and wanted <= SCRATCH_KEPT:
            self._offer(0)
            self._block = torch.empty(0, dtype=torch.uint8, device="cpu")  # gone before the next one is there
            # not from the pool: there the smaller ones that it had before would stay, and nobody wants their sizes
            (self._block,) = Tensors([(wanted + _LINE,)], torch.uint8, pooled=False).make()
        self._next = -(-self._block.data_ptr() // _LINE) * _LINE
        self._end = self._block.data_ptr() + self._block.numel()
        self._room = max(0, self._end - self._next)
        self._wanted = self._most = 0
        self._offer(self._room)

    def all_of(self, size: int) -> int:
        """:meth:`begin`, and :meth:`take` so many bytes."""
        if size > self._room or _poisoned():
            self._most = max(self._most, size)  # or a small run between large ones would have it stay small
            self.begin()
            return self.take(size)
        self._more.clear()
        self._wanted, self._most = size, 0
        self._next = self._end  # what else a run may want comes from elsewhere
        self._offer(self._room)
        return self._end - self._room

    def _offer(self, room: int) -> None:
        """Let compiled runs have so much without asking."""
        offer = _offering() if self._shared else None
        if offer is not None:
            offer(self._end - room, room)

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
            self._offer(0)  # the next run shall ask, and so let these go
            found = -(-self._more[-1].data_ptr() // _LINE) * _LINE
        else:
            self._next += size
        if _poisoned():
            ctypes.memset(found, 255, size)  # NaN
        return found


scratch = Scratch(shared=True)
