"""Copies of rows between a padded batch and its packed rows, in compiled code."""

import math
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import threads

if TYPE_CHECKING:
    from elman.engine.packing import Packing


def copied(packing: "Packing", padded: Tensor, packed: Tensor, unpack: bool, more: Tensor | None = None) -> bool:
    """Copy rows as `Packing.move` does, in compiled code; whether there is such."""
    job = _rows_function(torch.float32 if more is None else more.dtype) if padded.is_cpu else None
    if job is None:
        return False
    words = copying(packing, padded, packed, unpack, more)
    job(words.buffer_info()[0])
    return True


def copying(
    packing: "Packing", padded: Tensor, packed: Tensor, unpack: bool, more: Tensor | None = None
) -> "array[int]":
    """The words with which compiled code does so; see `rows_words`."""
    size = padded.dtype.itemsize
    return rows_words(
        (*threads.team(packed.numel()), packing.steps, packing.batch, *packing.places),
        math.prod(packed.shape[1:]) * size,
        (padded.data_ptr(), padded.shape[0], padded.stride(0) * size, padded.stride(1) * size),
        (packing.sequences.shape[0], packing.sequences.data_ptr()),
        packed.data_ptr(),
        unpack,
        0 if more is None else more.data_ptr(),
    )


def rows_words(
    shared: Sequence[int],
    row: int,
    padded: tuple[int, int, int, int],
    sequences: tuple[int, int],
    packed: int,
    unpack: bool,
    more: int = 0,
) -> "array[int]":
    """The words of `Rows` in program.cpp; those of `ROWS_ADDRESSES` are addresses.

    Args:
        shared: the words of the threads and the packing.
        row: bytes. padded: address, T or 0 for the steps of the longest, bytes from step to step and from row to row.
        sequences: how many, and the address of `Packing.sequences`, or 0 where all have all steps.
        packed, more: addresses. unpack: whether rows go from there to the padded ones.
    """
    at, steps, apart, stride = padded
    return array("q", (*shared, row, steps, *sequences, at, apart, stride, packed, unpack, more))


ROWS_ADDRESSES = (6, 7, 11, 12, 15, 17)


@lru_cache(maxsize=4)
def _rows_function(dtype: torch.dtype) -> Any:
    """The compiled function that moves rows, and adds those of a dtype; None where nothing can be compiled."""
    from elman.engine.program import library

    try:
        return library(dtype).rows
    except build.BuildError:
        return None  # the layers say so
