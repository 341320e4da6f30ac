"""Where jobs go: calls of compiled functions with the words of an argument, which run at once or are written down."""

import ctypes
import functools
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from elman.engine import memory, threads
from elman.engine.capacity import Ragged
from elman.engine.packing import Packing

REALS = {torch.float32: "float", torch.float64: "double"}

Words: TypeAlias = "array[int]"  # of 64 bits each
Function = int  # the address of a compiled function that takes one address

_LINE = 64


class Sink(Protocol):
    """Where jobs go: they run at once, or are written down."""

    def take(self, size: int) -> int:
        """The address of so many bytes of scratch memory, at the start of a cache line."""

    def within(self) -> Any:
        """A context; scratch memory that is taken in it is free behind it."""

    def constant(self, tensor: Tensor) -> int:
        """The address of a tensor that will not change."""

    def sizes(self, packing: Packing | Ragged) -> tuple[int, int]:
        """The addresses of a packing's `sizes` and `offsets`."""

    def team(self, operations: int = -1) -> threads.Team:
        """The threads for so many operations, below zero very many, and the functions of their pool."""

    def array(self, words: Words, addresses: Sequence[int] = ()) -> int:
        """The address of words, some of which are addresses."""

    def call(self, kind: str, function: Function, words: Words, addresses: Sequence[int]) -> None:
        """A job: a function and the words of its argument, some of which are addresses."""


class AtOnce:
    """Jobs that run as they come, on memory as it is.

    Args:
        own_memory: bytes of scratch memory, more if it has to be, that last as long as this does; 0 for the thread's
            scratch, which lasts until the thread's next run.
    """

    def __init__(self, own_memory: int = 0) -> None:
        self.held: list[Any] = []
        self._own_memory = own_memory
        self._next = self._end = 0

    def take(self, size: int) -> int:
        """See `Sink`."""
        if not self._own_memory:
            return memory.scratch.take(size)
        found = -(-self._next // _LINE) * _LINE
        if found + size > self._end:
            block = memory.empty(max(size, self._own_memory) + _LINE, dtype=torch.uint8)
            self.held.append(block)
            found = -(-block.data_ptr() // _LINE) * _LINE
            self._end = block.data_ptr() + block.numel()
        self._next = found + size
        return found

    def within(self) -> Any:
        """See `Sink`."""
        return memory.scratch.within()

    def constant(self, tensor: Tensor) -> int:
        """See `Sink`."""
        self.held.append(tensor)
        return tensor.data_ptr()

    def sizes(self, packing: Packing | Ragged) -> tuple[int, int]:
        """See `Sink`."""
        assert isinstance(packing, Packing)
        self.held.append(packing)
        return packing.places

    def team(self, operations: int = -1) -> threads.Team:
        """See `Sink`."""
        return threads.team(operations)

    def array(self, words: Words, addresses: Sequence[int] = ()) -> int:
        """See `Sink`."""
        self.held.append(words)
        return words.buffer_info()[0]

    def call(self, kind: str, function: Function, words: Words, addresses: Sequence[int]) -> None:
        """See `Sink`."""
        callable_at(function)(words.buffer_info()[0])


def address_of(function: Any) -> Function:
    """The address of a compiled function."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.lru_cache(maxsize=4096)
def callable_at(function: Function) -> Callable[[int], object]:
    """A compiled function by its address."""
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(function)
