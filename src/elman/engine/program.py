"""A run of kernels and products as data: made once for a form of call, run again and again with other tensors.

What a layer does for a call, which kernel with which buffers, which products at which strides, depends on shapes and
not on the tensors. Finding it out takes Python longer than a small layer takes to run. So it is written down: the words
of each job in order, in which an address is the number of a region of memory and an offset there. A run fills in where
the regions are and calls all jobs from compiled code: `runs.py`.
"""

import ctypes
import functools
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory, threads
from elman.engine.capacity import STEPS, TOTAL, Ragged
from elman.engine.packing import Packing
from elman.engine.rows import ROWS_ADDRESSES, rows_words
from elman.engine.runs import APART, Runs
from elman.engine.sinks import REALS, Function, Words, address_of
from elman.engine.tensors import maker

_LINE = 64
_ALIKE = 1 << 11  # as in memory.cpp
_OFFSET_BITS = 44  # see program.cpp
_ZERO_OFFSET = 1 << 43
_SCRATCH, _WORDS, _FIRST = 1, 2, 3  # regions; an address of 0 is none


class Source(IntEnum):
    """Where `Program.ends` finds it: in a state's sequence with the initial state first; in a carry, [2, B, width], by
    the parity of the row's length; in a state's sequence where time runs backwards. As in program.cpp."""

    SEQUENCE = 0
    CARRIED = 1
    STANDING = 2


class Program:
    """Jobs that are written down.

    Args:
        dtype: of all numbers.
        packing: of the batches; where it is ragged, its `total` and `steps` may stand as words, and as the rows of
            results (also with something added) and of scratch memory.
        workers: threads.
        abreast: whether it runs at once with others, each with so many threads; see `elman.engine.runs.run_all`.
    """

    def __init__(
        self, dtype: torch.dtype, packing: Packing | Ragged, workers: int | None = None, abreast: bool = False
    ) -> None:
        self._packing = packing
        self.library = library(dtype)
        self.abreast = abreast
        self._workers = threads.count() if workers is None else workers
        self._pool = self.library.crew if abreast else threads.team()[1:]
        self._words = array("q")
        self._addresses = array("q")
        self._counts = array("q")
        self._behind: list[tuple[int, int, int]] = []  # region, the one that it is in, and bytes for each of its rows
        self._jobs = array("q")
        self.kinds: list[str] = []
        self._regions = array("q", [0] * _FIRST)
        self._places: dict[str, int] = {}
        self._given: list[tuple[str, int]] = []  # name and region
        self._results: list[tuple[str, int, int]] = []  # name, region, and bytes in front of the tensor
        self._shapes: list[tuple[int, ...]] = []  # of the results
        self._margins: list[memory.Margins] = []  # of the results
        self._held: dict[int, tuple[Tensor, int]] = {}  # constants and their addresses
        self._next = self._most = 0
        self._dtype = dtype
        self.itemsize = dtype.itemsize

    # ---- what jobs refer to

    def given(self, name: str) -> int:
        """The address of a tensor that each run is given, or makes, by this name."""
        if name not in self._places:
            self._places[name] = self._at(self._region())
            self._given.append((name, len(self._regions) - 1))
        return self._places[name]

    def result(self, name: str, *shape: int, margins: memory.Margins = (0, 0)) -> int:
        """The address of a tensor that each run makes, uninitialised, and gives back by this name.

        Args:
            margins: how many numbers more there are in front of it, where the address then is, and behind it.
        """
        self._places[name] = self._at(self._region())
        self._results.append((name, len(self._regions) - 1, margins[0] * self.itemsize))
        self._shapes.append(shape)
        self._margins.append(margins)
        return self._places[name]

    def _region(self, start: int = 0) -> int:
        self._regions.append(start)
        return len(self._regions) - 1

    def constant(self, tensor: Tensor) -> int:
        """See `Sink`."""
        if id(tensor) not in self._held:
            self._held[id(tensor)] = (tensor, self._at(self._region(tensor.data_ptr())))
        return self._held[id(tensor)][1]

    def take(self, size: int) -> int:
        """See `Sink`."""
        assert size >= 0
        found = self._next
        self._next += -(-size // _LINE) * _LINE
        if size % _ALIKE == 0:  # else blocks of such sizes would all fall on the same sets of the cache
            self._next += APART
        self._most = max(self._most, self._next)
        return self._at(_SCRATCH) + found

    def numbers(self, rows: int, width: int) -> int:
        """The address of scratch memory for so many numbers."""
        return self.take(self.at_most(rows) * width * self.itemsize)

    def at_most(self, rows: int) -> int:
        """What a number of rows is at most, if it may be `TOTAL`."""
        return self._packing.capacity if rows == TOTAL else rows

    def behind(self, address: int, width: int) -> int:
        """The address of what follows N rows of so many numbers at the start of a tensor that is given or made."""
        if self._packing.total != TOTAL:
            return address + self._packing.total * width * self.itemsize
        region = self._region()
        self._behind.append((region, address >> _OFFSET_BITS, width * self.itemsize))
        return self._at(region) + (address & (2 * _ZERO_OFFSET - 1)) - _ZERO_OFFSET

    def sizes(self, packing: Packing | Ragged) -> tuple[int, int]:
        """See `Sink`."""
        if isinstance(packing, Packing):
            return self.constant(packing.sizes), self.constant(packing.offsets)
        return self.given("sizes"), self.given("offsets")

    def team(self, operations: int = -1) -> threads.Team:
        """See `Sink`."""
        return (self._workers if threads.worth(operations) else 1, *self._pool)

    @contextmanager
    def within(self) -> Iterator[None]:
        """See `Sink`."""
        before = self._next
        yield
        self._next = before

    @staticmethod
    def _at(region: int) -> int:
        return (region << _OFFSET_BITS) + _ZERO_OFFSET

    # ---- jobs

    def array(self, words: Words, addresses: Sequence[int] = ()) -> int:
        """See `Sink`."""
        start = len(self._words)
        self._words.extend(words)
        self._counts.extend([start + i for i, word in enumerate(words) if word in (TOTAL, STEPS)])
        self._words.extend([0] * (-len(words) % 8))
        self._addresses.extend([start + place for place in addresses])
        return self._at(_WORDS) + 8 * start

    def call(self, kind: str, function: Function, words: Words, addresses: Sequence[int]) -> None:
        """See `Sink`."""
        self._jobs.extend((function, len(self._words)))
        self.kinds.append(kind)
        self.array(words, addresses)

    def copy(self, to: int, source: int, count: int) -> None:
        """Copy so many numbers."""
        self.call("copy", self.library.copy, array("q", (to, source, count * self.itemsize)), (0, 1))

    def fill(self, to: int, count: int, value: float = 0.0) -> None:
        """Write so many equal numbers."""
        assert count >= 0
        (bits,) = struct.unpack("q", struct.pack("d", value))
        self.call("fill", self.library.fill, array("q", (to, count, bits)), (0,))

    def before(
        self, steps: slice, count: int, reverse: bool, width: int, sequence: int, reset: int, otherwise: int
    ) -> int:
        """The address of the states before some steps, [rows, width].

        Args:
            count: rows at these steps.
            sequence: of the state, with its initial state.
            reset: [N] uint8, or 0. otherwise: the state there, [width].
        """
        to = self.numbers(count, width)
        team, sizes = self.team(count * width), self._steps()
        words = (*team, *sizes, steps.start, steps.stop, reverse, width, sequence, reset, otherwise, to)
        self.call("copy", self.library.before, array("q", words), (6, 7, 12, 13, 14, 15))
        return to

    def ends(self, how: "Source", width: int, source: int, to: int, ordered: bool = False) -> None:
        """Write of each row what belongs to its last step, [B, width]; where `ordered` in the caller's order."""
        words = (*self._steps(), how, width, source, to, *self._sequences(), ordered)
        self.call("copy", self.library.ends, array("q", words), (2, 3, 6, 7, 9))

    def rows(self, width: int, padded: int, apart: int, stride: int, packed: int, unpack: bool) -> None:
        """Copy rows between [T', B, *] in the caller's order and [N, width], as `Packing.move` does.

        Args:
            padded: the address of the columns there. apart, stride: numbers from step to step and row to row there.
        """
        size = self.itemsize
        shared = (*self.team(self.at_most(self._packing.total) * width), *self._steps())
        there = (padded, 0, apart * size, stride * size)
        words = rows_words(shared, width * size, there, self._sequences(), packed, unpack)
        self.call("copy", self.library.move, words, ROWS_ADDRESSES)

    def _sequences(self) -> tuple[int, int]:
        """How many, and where they are; see `Packing.sequences`."""
        return self._packing.count, 0 if self._packing.is_dense else self.given("sequences")

    def _steps(self) -> tuple[int, int, int, int]:
        """The words of a `Packing` in program.cpp."""
        return self._packing.steps, self._packing.batch, *self.sizes(self._packing)

    # ---- running

    def results(self) -> list[tuple[str, tuple[int, ...], memory.Margins]]:
        """What each run makes: names, shapes and margins; see :meth:`result`."""
        return list(zip(self.names, self._shapes, self._margins, strict=True))

    def make(self, packing: Packing) -> dict[str, Tensor]:
        """The results of a run, by name, before it has written them."""
        return dict(zip(self.names, self._tensors.make(packing.total), strict=True))

    @functools.cached_property
    def names(self) -> list[str]:
        """Of the results of each run."""
        return [name for name, _, _ in self._results]

    @functools.cached_property
    def _tensors(self) -> memory.Tensors:
        shapes = [(memory.rows_and(n - TOTAL) if n < 0 else n, *rest) for n, *rest in self._shapes]
        return memory.Tensors(shapes, self._dtype, self._margins)

    @property
    def scratch(self) -> int:
        """Bytes that a run needs no longer than it runs."""
        return self._most + 8 * len(self._words)

    @functools.cached_property
    def given_names(self) -> list[str]:
        """Of what each run is given."""
        return [name for name, _ in self._given]

    def places(self, start: int = 0) -> dict[str, int]:
        """Where in a list of tensors, from a place on, those by each name are: given ones, then made ones."""
        return {name: k for k, name in enumerate((*self.given_names, *self.names), start)}

    @functools.cached_property
    def alone(self) -> Runs:
        """Runs of it by itself, of what it is given and then makes."""
        return Runs([self], [self.places()])

    def written(self, places: Mapping[str, int], apart: int) -> tuple[Words, Words, Any]:
        """The words of a `Written` in program.cpp, the times that a run writes, and what holds what words point to.

        Nothing can be added to the program afterwards.

        Args:
            places: where among the tensors of a run those by each name are.
            apart: bytes of scratch memory between this one's and the next one's.
        """
        found = [(region, places[name], 0) for name, region in self._given]
        found += [(region, places[name], front) for name, region, front in self._results]
        tables = [array("q", (word for row in rows for word in row)) for rows in (found, self._behind)]
        times = array("q", bytes(8 * len(self.kinds)))
        head = (v.buffer_info() for v in (self._words, self._addresses, self._counts))
        jobs = (self._jobs.buffer_info()[0], len(self.kinds))
        words = array("q", (*(n for place in head for n in place), *jobs, 0, 0, 0, 0, 0))
        for table, row in ((self._regions, 1), *zip(tables, (3, 3), strict=True)):
            words.extend((len(table) // row, table.buffer_info()[0]))
        whole = -(-self.scratch // _LINE) * _LINE + apart
        words.extend((self._most, whole, times.buffer_info()[0]))
        # Not the program itself, which holds its own runs.
        held = (self._words, self._addresses, self._counts, self._jobs, self._regions, self._held, tables)
        return words, times, held


class _Library:
    def __init__(self, dtype: torch.dtype) -> None:
        source = Path(__file__).with_name("program.cpp").read_text()
        library = build.load(source, REALS[dtype])
        self.runs = maker(library, "elman_runs")
        self.rows = library.elman_rows
        self.rows.argtypes = [ctypes.c_void_p]
        self.crew: tuple[int, int, int] = tuple((ctypes.c_int64 * 3).in_dll(library, "elman_crew"))
        self.copy, self.fill = address_of(library.elman_copy), address_of(library.elman_fill)
        self.before, self.ends = address_of(library.elman_before), address_of(library.elman_ends)
        self.move = address_of(library.elman_rows)


def library(dtype: torch.dtype) -> _Library:
    """The compiled functions of this module.

    Raises:
        BuildError: they cannot be compiled.
    """
    return _library(dtype, build.instruction_set())


@functools.lru_cache(maxsize=8)
def _library(dtype: torch.dtype, isa: str) -> _Library:
    return _Library(dtype)
