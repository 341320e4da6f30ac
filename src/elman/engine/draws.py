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
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory, threads
from elman.engine.packing import Packing
from elman.engine.sinks import REALS, Sink, address_of

_WORD = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_ROUNDS = 13
_NO_KEYS = (0,) * 8  # words of a `Keys` of no rows (see masks.h)


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

    def __post_init__(self) -> None:
        for name in ("seed", "step"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"noise.{name} must be an integer, got {getattr(self, name)!r}")

    def after(self, steps: int) -> "Noise":
        """For the chunk that follows so many steps later."""
        return Noise(self.seed, self.step + steps, self.row)


class Keyed(NamedTuple):
    """What one mask of a call is drawn from; see `rows`."""

    noise: Noise
    purpose: str
    place: int

    def words(self, batch: int, table: int) -> tuple[int, ...]:
        """A `Keys` (see masks.h) of rows that count on from a number.

        Args:
            batch: rows. table: the address of what is made.
        """
        noise = self.noise
        stream = zlib.crc32(self.purpose.encode())
        return (_signed(noise.seed), stream, self.place, batch, noise.step, noise.row, 0, table)  # type: ignore[return-value]


SILENT = Noise(0)  # itself, not its equals: no masks at all, as in evaluation


def fresh() -> Noise:
    """A seed from torch's global generator, so that `torch.manual_seed` and checkpoints of it decide."""
    return Noise(int(torch.empty((), dtype=torch.int64, device="cpu").random_()))


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
    listed = range(given, given + batch) if isinstance(given, int) else _numbers(given, batch)
    numbers = listed if packing.order is None else torch.as_tensor(listed, device="cpu")[packing.order.cpu()]
    return keys(noise.seed, purpose, place, numbers, noise.step).to(packing.device)


def _numbers(given: Any, batch: int) -> Tensor:
    """The numbers of a call's rows, [B] int64."""
    try:
        numbers = torch.as_tensor(given, device="cpu")
        fine = numbers.shape == (batch,) and not numbers.is_floating_point()
    except (TypeError, ValueError, RuntimeError):
        fine = False
    if not fine:
        raise ValueError(f"noise.row must be an integer, or one for each of {batch} rows, got {given!r:.80}")
    return numbers.to(torch.int64)


def keys(seed: int, purpose: str, place: int, numbers: Tensor | range, start: int) -> Tensor:
    """[count, 3] int64: the two words of each row's key, and the start; numbers are int64 on the CPU, or a range."""
    stream = zlib.crc32(purpose.encode())
    library = _library(torch.float32)
    if library is not None:
        table = torch.empty(len(numbers), 3, dtype=torch.int64, device="cpu")
        first, listed = (numbers.start, 0) if isinstance(numbers, range) else (0, numbers.data_ptr())
        job = array("q", (_signed(seed), stream, place, len(numbers), start, first, listed, table.data_ptr()))
        library.elman_keys(job.buffer_info()[0])
        return table
    if isinstance(numbers, range):
        numbers = torch.arange(numbers.start, numbers.stop, device="cpu")
    key = threefry(*torch.tensor([seed & _WORD, seed >> 32 & _WORD, stream, place], device="cpu"))
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
) -> Tensor:
    """[N, width] of a packed batch: `values[0]` where a unit is chosen, else `values[1]`.

    Args:
        table: of `rows`.
        moving: whether each step chooses afresh; else all choose alike.
        probability: of being chosen.
        packing: of the entries.
        width: units.
        values, dtype: of the result, which is where the table is.
    """
    real = dtype if dtype in REALS else torch.float32
    if table.device.type != "cpu" or _library(real) is None:
        chosen, other = torch.tensor(values, dtype=real, device=table.device)  # numbers alone would be of 32 bits
        return torch.where(_chosen(table, moving, probability, packing, width), chosen, other).to(dtype)
    made = memory.empty(packing.total, width, dtype=real)
    _MaskJob.of(packing, width, moving, probability, values, real, threads.count()).run(table, None, made)
    return made.to(dtype)


class _MaskJob:
    """The words of a `Mask` (see masks.h), but for what differs from run to run.

    Args:
        packing, width, moving, probability, values: see `mask`.
        real: of the numbers.
        workers: threads.
    """

    _ROWS, _X, _Y, _ONCE, _KEYS = 0, 9, 10, 11, 15

    def __init__(
        self,
        packing: Packing,
        width: int,
        moving: bool,
        probability: float,
        values: tuple[float, float],
        real: torch.dtype,
        workers: int,
    ) -> None:
        self._function = _library(real).elman_mask
        self._given = array("f" if real == torch.float32 else "d", values)
        self._packing = packing  # whose places are held
        self._batch = packing.batch
        once = not moving and packing.steps > 1
        self._table_bytes = -(-packing.batch * 24 // 64) * 64
        self._once_bytes = packing.batch * width * real.itemsize if once else 0
        workers = workers if packing.total * width > 1 << 14 else 1
        draw, sizes = (0, moving, threshold(probability)), (packing.steps, width, workers, *packing.places)
        pool = threads.pool() or (0, 0, 0)
        self._words = array("q", (*draw, *sizes, self._given.buffer_info()[0], 0, 0, 0, *pool, *_NO_KEYS))

    @staticmethod
    def of(packing: Packing, *form: Any) -> "_MaskJob":
        """The job of the class's arguments, kept where another call may have the same packing."""
        return _kept_job(packing, *form) if packing.kept else _MaskJob(packing, *form)

    def run(self, rows: Tensor | Keyed, x: Tensor | None, made: Tensor) -> None:
        """Write the mask, or its product with x.

        Args:
            rows: the table of the function `rows`, or what it is made from.
            x: [N, width] or another shape of as many numbers, contiguous. made: the same.
        """
        words = self._words[:]
        start = memory.scratch.all_of(self._table_bytes + self._once_bytes)
        if isinstance(rows, Tensor):
            words[self._ROWS] = rows.data_ptr()
        else:
            words[self._ROWS] = start
            for place, word in enumerate(rows.words(self._batch, start), self._KEYS):
                words[place] = word
        words[self._X] = 0 if x is None else x.data_ptr()
        words[self._Y] = made.data_ptr()
        words[self._ONCE] = start + self._table_bytes if self._once_bytes else 0
        self._function(words.buffer_info()[0])


@functools.lru_cache(maxsize=64)
def _kept_job(*form: Any) -> _MaskJob:
    return _MaskJob(*form)


def choose(sink: Sink, rows: int, threshold: int, batch: int, width: int, to: int, dtype: torch.dtype) -> None:
    """Write 1 where a unit is chosen at all steps, else 0.

    Args:
        sink: whose addresses are given.
        rows: of the table that the function `rows` gives, [batch, 3].
        threshold: see there. to: [batch, width] of the dtype.
    """
    once = Packing.dense(1, batch, torch.device("cpu"))
    values = sink.constant(torch.tensor([1.0, 0.0], dtype=dtype, device="cpu"))
    workers, *pool = sink.team(batch * width * 64)
    words = (rows, False, threshold, 1, width, workers, *sink.sizes(once))
    job = array("q", (*words, values, 0, to, 0, *pool, *_NO_KEYS))
    sink.call("mask", address_of(_library(dtype).elman_mask), job, (0, 6, 7, 8, 10))


def masked(x: Tensor, choice: Keyed, moving: bool, chance: float, packing: Packing) -> Tensor:
    """[N, width] or [T, B, width] with chosen units dropped, the others scaled by 1 / (1 - chance); keeps no mask."""
    found: Tensor = _Masked.apply(x, choice, moving, chance, packing)  # type: ignore[no-untyped-call]
    return found


def _product(x: Tensor, choice: Keyed, moving: bool, chance: float, packing: Packing) -> Tensor:
    """`masked`, without its derivative."""
    values, width = (0.0, 1 / (1 - chance)), x.shape[-1]
    if x.device.type != "cpu" or x.dtype not in REALS or _library(x.dtype) is None:
        wide = x.dtype if x.dtype in REALS else torch.float32
        found = mask(rows(*choice, packing), moving, chance, packing, width, values, wide)
        return (found.view(x.shape) * x).to(x.dtype)
    made = memory.empty(*x.shape, dtype=x.dtype)
    job = _MaskJob.of(packing, width, moving, chance, values, x.dtype, threads.count())
    counted = packing.order is None and isinstance(choice.noise.row, int)
    job.run(choice if counted else rows(*choice, packing), x.contiguous(), made)
    return made


class _Masked(torch.autograd.Function):
    """A product with a mask, which backward draws again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *drawn: Any) -> Tensor:
        ctx.drawn = drawn
        return _product(x, *drawn)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        again = masked if torch.is_grad_enabled() else _product
        return (again(gradients[0], *ctx.drawn), None, None, None, None)


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
