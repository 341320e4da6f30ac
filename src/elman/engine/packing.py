"""Packed sequences: rows sorted by length and stored step by step, so that no padding is ever computed.

A packed tensor is [N, *]: N = sum of the lengths, step 0 of all rows, then step 1 of those that reach it, and so on.
A packed row is one of the caller's, or several of them, one behind the other.
"""

import heapq
import itertools
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elman.engine import memory
from elman.engine.capacity import Ragged
from elman.engine.rows import copied, copying

T = TypeVar("T")


def _lasting(function: Callable[["Packing"], T]) -> Callable[["Packing"], T]:
    """Makes tensors that training may use too, also where `torch.inference_mode` is the first to ask for them."""

    @wraps(function)
    def made(packing: "Packing") -> T:
        if not torch.is_inference_mode_enabled():
            return function(packing)
        with torch.inference_mode(False):
            return function(packing)

    return made


@dataclass(frozen=True, eq=False)
class Packing:
    """How a batch is packed; equal only to itself, so that engines may keep what they derive from it.

    Attributes:
        batch_sizes: rows that are active at each step, non-increasing; its length is T', the longest length.
        order: [B] int64, the caller's row that each packed row is, or None where the caller's order is kept.
        device: where index tensors live.
        kept: whether batches of the same lengths have this same packing.
        chains: the numbers of `sequences`, where packed rows have several of the caller's; then `order` is None.
    """

    batch_sizes: tuple[int, ...]
    order: Tensor | None
    device: torch.device
    kept: bool = False
    chains: "array[int] | None" = None

    @staticmethod
    @lru_cache(maxsize=64)
    def dense(steps: int, batch: int, device: torch.device) -> "Packing":
        """All rows have all steps."""
        return Packing((batch,) * steps, None, device, kept=True)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> "Packing":
        """Rows of any lengths ≥ 1 in any order; equal lengths keep the caller's order."""
        if min(lengths) == max(lengths):
            return cls.dense(lengths[0], len(lengths), device)
        rows = list(range(len(lengths)))
        order = sorted(rows, key=lengths.__getitem__, reverse=True)
        return cls(_active(lengths), None if order == rows else _integers(order).to(device), device)

    @classmethod
    def chained(cls, lengths: Sequence[int], rows: int, device: torch.device) -> "Packing":
        """Sequences one behind the other in so many packed rows of about equal length; each has to start afresh."""
        loads = [(0, row) for row in range(rows)]
        places = [(0, 0)] * len(lengths)
        for caller in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            load, row = loads[0]
            places[caller] = (row, load)
            heapq.heapreplace(loads, (load + lengths[caller], row))
        longest = sorted(loads, reverse=True)
        packed = {row: place for place, (_, row) in enumerate(longest)}
        chains = array("q")
        for (row, start), length in zip(places, lengths, strict=True):
            chains.extend((packed[row], start, length))
        return cls(_active([load for load, _ in longest]), None, device, chains=chains)

    @classmethod
    def from_packed_sequence(cls, sequence: PackedSequence) -> "Packing":
        """torch's own packing; its data may be used as it is."""
        return cls(tuple(sequence.batch_sizes.tolist()), sequence.sorted_indices, sequence.data.device)

    @property
    def batch(self) -> int:
        """The number of packed rows: B, but for chains."""
        return self.batch_sizes[0]

    @property
    def count(self) -> int:
        """B, the number of the caller's rows."""
        return self.batch if self.chains is None else len(self.chains) // 3

    @property
    def steps(self) -> int:
        """T', the number of steps of the longest row."""
        return len(self.batch_sizes)

    @cached_property
    def total(self) -> int:
        """N, the number of entries: the sum of the lengths."""
        return sum(self.batch_sizes)

    @property
    def is_dense(self) -> bool:
        """Whether all rows have the same length, one of the caller's each."""
        return self.batch_sizes[-1] == self.batch_sizes[0] and self.chains is None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The entry at which each step starts."""
        return (0, *itertools.accumulate(self.batch_sizes[:-1]))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Length of each packed row, descending."""
        lengths: list[int] = []
        for step in range(self.steps, 0, -1):
            lengths += [step] * (self.batch_sizes[step - 1] - len(lengths))
        return tuple(lengths)

    @cached_property
    @_lasting
    def sizes(self) -> Tensor:
        """`batch_sizes` as [T'] int64 on the CPU."""
        return _integers(self.batch_sizes)

    @cached_property
    @_lasting
    def offsets(self) -> Tensor:
        """`starts` as [T'] int64 on the CPU."""
        return _integers(self.starts)

    @property
    def capacity(self) -> int:
        """N; see `Ragged`."""
        return self.total

    @cached_property
    def ragged(self) -> "Ragged":
        """What stands for this and other packings of about as many entries."""
        unit = max(64, 1 << self.total.bit_length() >> 4)
        return Ragged.at(self.batch, -(-self.total // unit) * unit, self.count)

    @cached_property
    def places(self) -> tuple[int, int]:
        """Addresses of `sizes` and `offsets`."""
        return self.sizes.data_ptr(), self.offsets.data_ptr()

    @cached_property
    @_lasting
    def entries(self) -> tuple[Tensor, Tensor]:
        """Step and packed row of each of the N entries, [N] each."""
        step = torch.repeat_interleave(torch.arange(self.steps, device="cpu"), self.sizes)
        row = torch.arange(len(step), device="cpu") - self.offsets[step]
        return step, row

    def _at(self, step: Tensor, row: Tensor) -> Tensor:
        return (self.offsets[step] + row).to(self.device)

    @cached_property
    @_lasting
    def reversal(self) -> Tensor:
        """[N]: the entries with each row reversed by its own length; it is its own inverse."""
        step, row = self.entries
        return self._at(torch.tensor(self.lengths, device="cpu")[row] - 1 - step, row)

    @cached_property
    @_lasting
    def successors(self) -> tuple[Tensor, Tensor]:
        """Entries that have a next step, and those next steps: [M] each, M = N - B."""
        step, row = self.entries
        has_next = step + 1 < torch.tensor(self.lengths, device="cpu")[row]
        return has_next.nonzero()[:, 0].to(self.device), self._at(step[has_next] + 1, row[has_next])

    @cached_property
    @_lasting
    def previous_steps(self) -> Tensor:
        """[N]: where each entry's previous step stands in a sequence that starts with B initial rows."""
        step, row = self.entries
        before = self._at((step - 1).clamp(min=0), row) + self.batch
        return torch.where(step.to(self.device) == 0, row.to(self.device), before)

    @cached_property
    @_lasting
    def next_steps(self) -> Tensor:
        """[N]: where each entry's next step stands in a sequence that ends with B initial rows."""
        step, row = self.entries
        has_next = step + 1 < torch.tensor(self.lengths, device="cpu")[row]
        after = self._at((step + 1).clamp(max=self.steps - 1), row)
        return torch.where(has_next.to(self.device), after, self.total + row.to(self.device))

    @cached_property
    @_lasting
    def _padded_places(self) -> Tensor:
        """[N]: where each entry stands in the caller's [T, B, *] with its first two dimensions flattened."""
        step, row = self.entries
        if self.chains is not None:
            places = torch.empty(self.total, dtype=torch.int64, device="cpu")
            for caller, (packed, start, length) in enumerate(self.sequences.tolist()):
                steps = torch.arange(length, device="cpu")
                places[self.offsets[start + steps] + packed] = steps * self.count + caller
            return places.to(self.device)
        row = row.to(self.device)
        return step.to(self.device) * self.batch + (row if self.order is None else self.order[row])

    @property
    def longest(self) -> int:
        """The steps of the longest sequence."""
        return self.steps if self.chains is None else max(self.chains[2::3])

    @cached_property
    @_lasting
    def cuts(self) -> tuple[Tensor, Tensor]:
        """[N] uint8 each: where within a packed row another sequence starts, and where time runs backwards."""
        found, starts = (bytearray(self.total), bytearray(self.total)), self.starts
        chains = self.chains or ()
        for row, start in zip(chains[::3], chains[1::3], strict=True):
            if start:
                found[0][starts[start] + row] = 1
                found[1][starts[start - 1] + row] = 1
        forward, backward = (torch.frombuffer(one, dtype=torch.uint8).to(self.device) for one in found)
        return forward, backward

    def ends(self, sequence: Tensor, reverse: bool) -> Tensor:
        """[B, *] in the caller's order of [N, *]: each sequence's last step, or where time runs backwards its first."""
        return sequence.index_select(0, self.entries_at_ends(reverse))

    def entries_at_ends(self, reverse: bool) -> Tensor:
        """[B]: see `ends`."""
        row, start, length = self.sequences.unbind(1)
        return (self.offsets[start if reverse else start + length - 1] + row).to(self.device)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, *] in the caller's order to [N, *]; steps past a row's length are dropped."""
        if self.order is None and self.is_dense:
            # A slice of everything would not be nothing: its gradient is a copy.
            flat = padded.flatten(0, 1)
            return flat if flat.shape[0] == self.total else flat[: self.total]
        (found,) = _Pack.apply(padded, self, ())  # type: ignore[no-untyped-call]
        packed: Tensor = found
        return packed

    def fills(self, steps: int) -> bool:
        """Whether [N, *] has the caller's rows, in order, at so many steps each."""
        return self.order is None and self.is_dense and steps == self.steps

    def unpack(self, packed: Tensor, steps: int, *beside: Tensor) -> Tensor:
        """[N, *] to [steps, B, *] in the caller's order, zero past each row's length.

        Args:
            packed: [N, *].
            steps: at least the longest row's.
            beside: more of [N, width], which come to stand on the right of `packed`, then also [N, width].
        """
        if self.fills(steps):
            packed = torch.cat((packed, *beside), -1) if beside else packed
            return packed.reshape(steps, self.batch, *packed.shape[1:])
        padded: Tensor = _Unpack.apply(self, steps, packed, *beside)  # type: ignore[no-untyped-call]
        return padded

    def to_packed_order(self, rows: Tensor, dim: int) -> Tensor:
        """Rows in the caller's order to rows in packed order, along `dim`."""
        return rows if self.order is None else rows.index_select(dim, self.order)

    def to_caller_order(self, rows: Tensor, dim: int) -> Tensor:
        """Rows in packed order to rows in the caller's order, along `dim`."""
        return rows if self.inverse is None else rows.index_select(dim, self.inverse)

    @cached_property
    @_lasting
    def inverse(self) -> Tensor | None:
        """[B] int64, the packed row that each of the caller's is, or None where the caller's order is kept."""
        if self.order is None:
            return None
        if self.order.device.type != "cpu":
            return self.order.argsort()
        found = [0] * self.batch
        for place, row in enumerate(self.order.tolist()):
            found[row] = place
        return _integers(found)

    @cached_property
    @_lasting
    def sequences(self) -> Tensor:
        """[B, 3] int64 on the CPU, in the caller's order: the packed row of each, its first step there, its length."""
        if self.chains is not None:
            return torch.frombuffer(self.chains, dtype=torch.int64).view(-1, 3)
        lengths = self.lengths
        order = range(self.batch) if self.order is None else self.order.tolist()
        found = [0] * (3 * self.batch)
        for row, (caller, length) in enumerate(zip(order, lengths, strict=True)):
            found[3 * caller], found[3 * caller + 2] = row, length
        return _integers(found).view(-1, 3)

    def move(self, padded: Tensor, packed: Tensor, more: Tensor | None = None, *, unpack: bool) -> None:
        """Copy the rows of [T, B, *] to those of [N, *], or back with zeros past each row's length.

        Args:
            padded: each row contiguous, the rows of all steps at equal distances. packed: contiguous.
            more: as `packed`, to add to it on the way back.
        """
        if copied(self, padded, packed, unpack, more):
            return
        if unpack:
            packed = packed if more is None else packed + more
            padded.zero_().flatten(0, 1).index_copy_(0, self._padded_places, packed)
        else:
            torch.index_select(padded.flatten(0, 1), 0, self._padded_places, out=packed)

    def unpacking(self, padded: Tensor, packed: Tensor, more: Tensor | None = None) -> "array[int]":
        """The words with which compiled code moves rows back, on the CPU; see `move` and `rows_words`."""
        return copying(self, padded, packed, True, more)


class _Pack(torch.autograd.Function):
    """See `Packing.pack`; the columns as one tensor, or as several of these widths. In memory from the pool."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.packing, ctx.steps = packing, padded.shape[0]
        if padded.dim() > 2 and not padded[:1, :1].is_contiguous():
            padded = padded.contiguous()
        parts = padded.split(widths, -1) if widths else (padded,)
        found = tuple(memory.empty_like(part, packing.total, *part.shape[2:]) for part in parts)
        for part, packed in zip(parts, found, strict=True):
            packing.move(part, packed, unpack=False)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Unpack.apply(ctx.packing, ctx.steps, *gradients), None, None  # type: ignore[no-untyped-call]


class _Unpack(torch.autograd.Function):
    """See `Packing.unpack`; in memory from the pool."""

    @staticmethod
    def forward(ctx: Any, packing: Packing, steps: int, *packed: Tensor) -> Tensor:
        ctx.packing = packing
        ctx.widths = tuple(part.shape[-1] for part in packed) if len(packed) > 1 else ()
        rest = (*packed[0].shape[1:-1], sum(ctx.widths)) if ctx.widths else packed[0].shape[1:]
        padded = memory.empty_like(packed[0], steps, packing.count, *rest)
        parts = padded.split(ctx.widths, -1) if ctx.widths else (padded,)
        for part, whole in zip(packed, parts, strict=True):
            packing.move(whole, part.contiguous(), unpack=True)
        return padded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *_Pack.apply(gradients[0], ctx.packing, ctx.widths)  # type: ignore[no-untyped-call]


def _active(lengths: Sequence[int]) -> tuple[int, ...]:
    """Rows that are active at each step."""
    changes = [0] * max(lengths)  # in the number of rows, from step to step
    changes[0] = len(lengths)
    for length in lengths:
        if length < len(changes):
            changes[length] -= 1
    return tuple(itertools.accumulate(changes))


def _integers(values: Sequence[int]) -> Tensor:
    """[n] int64, n ≥ 1; `torch.tensor` looks at each value first, which takes several times as long."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)
