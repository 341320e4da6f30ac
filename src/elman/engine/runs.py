"""Runs of programs: what their tensors are, in which order or at once, and how long their jobs take."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from elman.engine import memory, threads
from elman.engine.packing import Packing
from elman.engine.sinks import Words
from elman.engine.tensors import torch_words

if TYPE_CHECKING:
    from elman.engine.program import Program

spent: dict[str, int] | None = None  # nanoseconds by kind of job, added up while this is a dictionary

APART = 13 * 64  # bytes, as in memory.cpp: blocks that are read in step shall not fall on the same sets of the cache


class Runs:
    """Runs of programs: of those that are to run abreast at once, else one after the other.

    Args:
        programs: of one dtype and number of threads.
        places: of each, where in the list of a run's tensors those are that it knows by name.

    Attributes:
        run: called with a batch's rows over all steps, its steps, and the list of all tensors, what is given and what
            is made; contiguous but where a program knows of strides.
        abreast: how many programs run at once, or 0.
    """

    def __init__(self, programs: Sequence[Program], places: Sequence[Mapping[str, int]]) -> None:
        apart = APART if len(programs) > 1 else 0
        written = [program.written(own, apart) for program, own in zip(programs, places, strict=True)]
        all_words = array("q", (word for words, _, _ in written for word in words))
        times = [(program.kinds, times) for program, (_, times, _) in zip(programs, written, strict=True)]
        self.abreast = len(programs) if programs[0].abreast else 0
        team = threads.team() if self.abreast else (0, 0, 0, 0)
        objects = (memory.scratch.all_of, memory.filled, globals(), "spent", None, functools.partial(_add_up, times))
        addresses = (all_words.buffer_info()[0], torch_words().buffer_info()[0], memory.scratch_function())
        words = array("q", (*team, len(programs), *addresses, *map(id, objects)))
        held = (words, all_words, written, objects)
        self.run: Callable[[int, int, list[Tensor]], object] = programs[0].library.runs(words.buffer_info()[0], held)


def _add_up(times: Sequence[tuple[Sequence[str], Words]]) -> None:
    """Add up what each job of a run has taken, by its kind."""
    assert spent is not None
    for kinds, taken in times:
        for kind, time in zip(kinds, taken, strict=True):
            spent[kind] = spent.get(kind, 0) + time


def run_all(
    packing: Packing, *runs: tuple[Program, Mapping[str, Tensor], Mapping[str, Tensor]], rows: Words | None = None
) -> None:
    """Run all jobs of programs; of those that are to run abreast at once, else one program after the other.

    Args:
        packing: of the batch.
        runs: of each program what is given, by name, contiguous but where it knows of strides, and what :meth:`make`
            gave.
        rows: the words of `rows_words`, for rows that are moved when all else is done.
    """
    tensors = [[*(given[n] for n in one.given_names), *(made[n] for n in one.names)] for one, given, made in runs]
    if len(runs) > 1 and runs[0][0].abreast:
        together = _together(threads.count(), *(program for program, _, _ in runs))
        together.run(packing.total, packing.steps, [v for one in tensors for v in one])
    else:
        for (program, _, _), own in zip(runs, tensors, strict=True):
            program.alone.run(packing.total, packing.steps, own)
    if rows is not None:
        runs[0][0].library.rows(rows.buffer_info()[0])


@functools.lru_cache(maxsize=64)
def _together(workers: int, *programs: Program) -> Runs:
    """Runs of programs, of what the first is given and makes, then the second's, and so on."""
    places, start = [], 0
    for program in programs:
        places.append(program.places(start))
        start += len(places[-1])
    return Runs(programs, places)
