"""Random choices that can be had again anywhere: by seed, purpose, layer, direction, the caller's row, step and unit.

The generator is Threefry-2x32 (see `draws.h`), a function of a key and a counter. A seed and what the choices are for
give a key, that and a row's number give the row's key, and the counter is (step, unit). So no mask is ever stored for a
backward pass, and neither chunks of time, nor the order of rows, nor the engine show in it. Here the same arithmetic is
written in torch's 64-bit integers, for devices and machines without compiled kernels.
"""

import functools
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory, threads
from elman.engine.packing import Packing
from elman.engine.program import REALS, Sink, address_of

_WORD = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_ROUNDS = 13


@dataclass(frozen=True)
class Noise:
    """Where a call's random masks are drawn from.

    Two calls draw the same masks for the same seed, row and step; so a second chunk of a sequence, from step 64 on,
    takes `Noise(seed, step=64)`, and a batch's third row alone `Noise(seed, row=2)`.

    Args:
        seed: 64 bits.
        step: number of the call's first time step.
        row: number of the call's first row, from which the others count on, or a number for each row.
    """

    seed: int
    step: int = 0
    row: int | Sequence[int] = 0

    def after(self, steps: int) -> "Noise":
        """For the chunk that follows so many steps later."""
        return Noise(self.seed, self.step + steps, self.row)


SILENT = Noise(0)  # itself, not its equals: no masks at all, as in evaluation


def fresh() -> Noise:
    """A seed from torch's global generator, so that `torch.manual_seed` and checkpoints of it decide."""
    return Noise(int(torch.empty((), dtype=torch.int64).random_()))


def threshold(probability: float) -> int:
    """The words below it are as many as the probability asks for."""
    return min(round(probability * (1 << 32)), _WORD)


def rows(noise: Noise, purpose: str, place: int, packing: Packing) -> Tensor:
    """The table of a packed batch: [B, 3] int64, each packed row's key and the number of its first step.

    Args:
        noise: see there.
        purpose: what the choices are for; options that differ draw apart.
        place: of the layer and direction.
        packing: whose rows they are.
    """
    batch = packing.batch
    given = noise.row
    listed = range(given, given + batch) if isinstance(given, int) else torch.as_tensor(given, dtype=torch.int64)
    if isinstance(listed, Tensor) and listed.shape != (batch,):
        raise ValueError(f"noise.row must be a number, or one for each of {batch} rows, got {len(listed)}")
    numbers = listed if packing.order is None else torch.as_tensor(listed)[packing.order.cpu()]
    return keys(noise.seed, purpose, place, numbers, noise.step).to(packing.device)


def keys(seed: int, purpose: str, place: int, numbers: Tensor | range, start: int) -> Tensor:
    """[count, 3] int64: the two words of each row's key, and the start; numbers are int64 on the CPU, or a range."""
    stream = zlib.crc32(purpose.encode())
    library = _library(torch.float32)
    if library is not None:
        table = torch.empty(len(numbers), 3, dtype=torch.int64)
        first, listed = (numbers.start, 0) if isinstance(numbers, range) else (0, numbers.data_ptr())
        job = array("q", (_signed(seed), stream, place, len(numbers), start, first, listed, table.data_ptr()))
        library.elman_keys(job.buffer_info()[0])
        return table
    if isinstance(numbers, range):
        numbers = torch.arange(numbers.start, numbers.stop)
    halves = torch.tensor([seed & _WORD, seed >> 32 & _WORD])
    key = threefry(halves[0], halves[1], torch.tensor(stream), torch.tensor(place))
    words = threefry(*key, numbers & _WORD, numbers >> 32 & _WORD)
    return torch.stack([*words, torch.full_like(numbers, start)], 1)


def mask(
    table: Tensor,
    moving: bool,
    probability: float,
    packing: Packing,
    width: int,
    values: tuple[float, float],
    dtype: torch.dtype,
    times: Tensor | None = None,
) -> Tensor:
    """[N, width] of a packed batch: `values[0]` where a unit is chosen, else `values[1]`.

    Args:
        table: of `rows`.
        moving: whether each step chooses afresh; else all choose alike.
        probability: of being chosen.
        packing: of the entries.
        width: units.
        values, dtype: of the result, which is where the table is.
        times: [N, width] or [T, B, width], to multiply the mask by; not differentiated.
    """
    real = dtype if dtype in REALS else torch.float32
    library = _library(real) if table.device.type == "cpu" else None
    if library is None:
        found = torch.where(_chosen(table, moving, probability, packing, width), *values).to(dtype)
        return found if times is None else found.view(times.shape) * times
    made = memory.empty(*((packing.total, width) if times is None else times.shape), dtype=real)
    factor = None if times is None else times.to(real).contiguous()
    once = 0
    if not moving and packing.steps > 1:
        memory.scratch.begin()
        once = memory.scratch.take(packing.batch * width * real.itemsize)
    given = array("f" if real == torch.float32 else "d", values)
    job = array(
        "q",
        (
            *(table.data_ptr(), moving, threshold(probability)),
            *(packing.steps, width, threads.count() if made.numel() > 1 << 14 else 1, *packing.places),
            *(given.buffer_info()[0], 0 if factor is None else factor.data_ptr(), made.data_ptr()),
            *(once, *(threads.pool() or (0, 0, 0))),
        ),
    )
    library.elman_mask(job.buffer_info()[0])
    return made.to(dtype)


def choose(sink: Sink, rows: int, threshold: int, batch: int, width: int, to: int, dtype: torch.dtype) -> None:
    """Write 1 where a unit is chosen at all steps, else 0.

    Args:
        sink: whose addresses are given.
        rows: of the table that the function `rows` gives, [batch, 3].
        threshold: see there. to: [batch, width] of the dtype.
    """
    once = Packing.dense(1, batch, torch.device("cpu"))
    values = sink.constant(torch.tensor([1.0, 0.0], dtype=dtype))
    words = (rows, False, threshold, 1, width, threads.for_work(batch * width * 64), *sink.sizes(once))
    job = array("q", (*words, values, 0, to, 0, *(threads.pool() or (0, 0, 0))))
    sink.call("mask", address_of(_library(dtype).elman_mask), job, (0, 6, 7, 8, 10))


def masked(x: Tensor, table: Tensor, moving: bool, chance: float, packing: Packing) -> Tensor:
    """[N, width] or [T, B, width] with chosen units dropped, the others scaled by 1 / (1 - chance); keeps no mask."""
    found: Tensor = _Masked.apply(x, table, moving, chance, packing)  # type: ignore[no-untyped-call]
    return found


class _Masked(torch.autograd.Function):
    """A product with a mask, which backward draws again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, moving: bool, chance: float, packing: Packing) -> Tensor:
        ctx.drawn = (table, moving, chance, packing)
        return mask(table, moving, chance, packing, x.shape[-1], (0.0, 1 / (1 - chance)), x.dtype, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (masked(gradients[0], *ctx.drawn), None, None, None, None)


def _chosen(table: Tensor, moving: bool, probability: float, packing: Packing, width: int) -> Tensor:
    """Where units are chosen, [N, width] bool, in torch's own arithmetic."""
    step, row = (v.to(table.device) for v in packing.entries)
    key0, key1, start = table.index_select(0, row).unsqueeze(-1).unbind(1)
    time = (start + step[:, None]) & _WORD if moving else torch.zeros_like(start)
    units = torch.arange(width, device=table.device)[None]
    word, _ = threefry(key0, key1, time, units)
    return word < threshold(probability)


def threefry(key0: Tensor, key1: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The counter (a, b) encrypted with a key; all are words in int64, and broadcast."""
    key = (key0, key1, key0 ^ key1 ^ 0x1BD11BDA)
    a, b = (a + key[0]) & _WORD, (b + key[1]) & _WORD
    for done in range(1, _ROUNDS + 1):
        by = _ROTATIONS[(done - 1) % 8]
        a = (a + b) & _WORD
        b = ((b << by | b >> (32 - by)) & _WORD) ^ a
        if done % 4 == 0:
            a = (a + key[done // 4 % 3]) & _WORD
            b = (b + key[(done // 4 + 1) % 3] + done // 4) & _WORD
    return a, b


def _signed(word: int) -> int:
    """64 bits as a signed number."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


@functools.cache
def _library(real: torch.dtype) -> Any:
    """The compiled functions, or None where there is no compiler."""
    import ctypes

    try:
        library = build.load('#include "masks.h"\n', REALS[real])
    except build.BuildError:
        return None
    for name in ("elman_keys", "elman_mask"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library
