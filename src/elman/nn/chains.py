"""Whether short sequences are set one behind the other in the same packed row, and in how many rows."""

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import cpu, dispatch, threads
from elman.engine.form import abreast_bytes, gates_width
from elman.engine.products import tools
from elman.engine.sharing import TILE
from elman.engine.sinks import REALS

if TYPE_CHECKING:
    from elman.nn.recurrent import Recurrent
    from elman.nn.stack import Stack

_WORTH = 0.9  # of the tiles that each row by itself would take, at most: a tenth less repays finding places
FEWEST = 30_000  # numbers of the matrices of a layer whose steps take long enough to repay it; measured, docs/engine.md


def rows_of_chains(module: "Recurrent", input: Any, lengths: Any) -> int:
    """In how many packed rows a batch without a state is best chained; 0: each sequence has its own.

    By matrix tiles a step of few rows takes as long as one of sixteen. Where the two directions run at once, each on
    one thread, rows are therefore filled up to sixteen.
    """
    if not module.bidirectional or not isinstance(input, Tensor) or input.dim() != 3 or not input.is_cpu:
        return 0
    if input.shape[0 if module.batch_first else 1] <= TILE or (module.training and module._random):
        return 0
    if threads.count() != 2 or torch.is_autocast_enabled("cpu") or dispatch.wanted() not in ("auto", cpu.name):
        return 0
    if not _fit(module._stack, input.dtype) or not _by_tiles(input.dtype):
        return 0
    return rows_for(_numbers(lengths))


@functools.lru_cache(maxsize=1024)
def _fit(stack: "Stack", dtype: torch.dtype) -> bool:
    """Whether layers only read the outputs of the one below, and their matrices are neither too large nor too small."""
    if stack.options.learn_state or not stack.wiring.trivial:
        return False
    most = 0
    for cell, parts in stack.layers:
        whole = all(entry.dtype == "float" for entry, _ in parts.states)
        numbers = sum(m.output * m.input for m in parts.products.values())
        if cell.below or parts.extras or not whole or numbers * dtype.itemsize > abreast_bytes(TILE):
            return False
        most = max(most, numbers + gates_width(parts) * parts.input_size)
    return most >= FEWEST


def _by_tiles(dtype: torch.dtype) -> bool:
    try:
        return dtype in REALS and cpu.build_problem(dtype) is None and tools(dtype).by_terms
    except build.BuildError:
        return False


def _numbers(lengths: Any) -> list[int]:
    """The lengths, or nothing where they are not positive integers; `checked_lengths` will say so."""
    values = lengths.tolist() if isinstance(lengths, Tensor) and lengths.dim() == 1 else lengths
    fine = isinstance(values, list) and values and all(type(n) is int for n in values) and min(values) > 0
    return values if fine else []


def rows_for(lengths: Sequence[int]) -> int:
    """See `rows_of_chains`: whole tiles, as many as the longest sequence leaves filled, if that takes fewer of them."""
    if not lengths or min(lengths) == max(lengths):
        return 0
    longest, total = max(lengths), sum(lengths)
    rows = total // (TILE * longest) * TILE or TILE
    if rows >= len(lengths):
        return 0
    ordered = sorted(lengths, reverse=True)
    apart = sum(itertools.islice(ordered, 0, None, TILE))  # each sixteen rows take a tile as long as the longest does
    return rows if -(-total // rows) * (rows // TILE) <= _WORTH * apart else 0
