"""Between the caller's tensors and packed ones: layouts, lengths, states, and the checks of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elman.cells.layout import Layout
from elman.engine.packing import Packing
from elman.nn.wiring import merged


class Frame:
    """The form in which the caller gave a batch, and gets back everything of the same batch.

    Args:
        input: [T, B, I], [B, T, I] where `batch_first`, [T, I] unbatched, or a PackedSequence.
        input_size: I.
        lengths: [B] valid steps of each row, or None.
        batch_first: whether batched tensors are [B, T, *].
        chain: in how many packed rows to set sequences one behind the other; 0: each has its own.

    Raises:
        ValueError: a shape or a length does not fit.
    """

    def __init__(
        self,
        input: Tensor | PackedSequence,
        input_size: int,
        lengths: Tensor | Sequence[int] | None,
        batch_first: bool,
        chain: int = 0,
    ) -> None:
        self._sequence: PackedSequence | None = None
        self._swap = False
        self._unbatched = False
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths must be None with a PackedSequence, which has its own")
            self._sequence = input
            self.packing = packing_of(input)
            self.steps = self.packing.steps
            self.input = _last(input.data, "input.data", input_size, 2)
            return
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(input).__name__}")
        if input.dim() not in (2, 3):
            form = "[B, T, I]" if batch_first else "[T, B, I]"
            raise ValueError(f"input must be {form}, or [T, I] unbatched, got {tuple(input.shape)}")
        self._unbatched = input.dim() == 2
        self._swap = batch_first and not self._unbatched
        padded = self._time_major(_last(input, "input", input_size, input.dim()))
        self.steps, batch = padded.shape[:2]
        if self.steps == 0:
            raise ValueError(f"input must have at least one time step, got {tuple(input.shape)}")
        if lengths is None:
            self.packing = Packing.dense(self.steps, batch, input.device)
        else:
            numbers = checked_lengths(lengths, batch, self.steps)
            packed = Packing.chained(numbers, chain, input.device) if chain else None
            self.packing = packed or Packing.from_lengths(numbers, input.device)
        self.input = self.packing.pack(padded)

    def _time_major(self, tensor: Tensor) -> Tensor:
        if self._unbatched:
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1) if self._swap else tensor

    def _sizes(self) -> tuple[int, ...]:
        """The sizes of the caller's dimensions of time and batch."""
        if self._unbatched:
            return (self.steps,)
        return (self.packing.count, self.steps) if self._swap else (self.steps, self.packing.count)

    def reset(self, reset: Tensor | None) -> Tensor | None:
        """The caller's `reset`, [T, B] bool in the layout of the input, as [N]."""
        if reset is None:
            return None
        expected = self._sizes()
        if not isinstance(reset, Tensor):
            raise TypeError(f"reset must be a bool tensor of shape {expected}, got {type(reset).__name__}")
        self._check_device("reset", reset)
        if tuple(reset.shape) != expected or reset.dtype != torch.bool:
            raise ValueError(f"reset must be bool of shape {expected}, got {reset.dtype} of {tuple(reset.shape)}")
        return self.packing.pack(self._time_major(reset))

    def extras(self, layout: Layout, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The caller's extra inputs, [T, B] or [T, B, width] in the layout of the input, as [N, width]."""
        if not layout.extras and given is None:
            return {}
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise TypeError(f"extras must be a mapping from names to tensors, got {_describe(given)}")
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"extra input {name!r} must be a Tensor, got {type(value).__name__}")
        known = {e.name for e in layout.extras}
        for name in given:
            if name not in known:
                raise ValueError(f"unknown extra input {name!r}; the cell has: {', '.join(sorted(known)) or 'none'}")
        packed = {}
        for extra in layout.extras:
            if extra.name in given:
                value = given[extra.name]
                self._check_device(f"extra input {extra.name!r}", value)
                expected = (*self._sizes(), extra.width)
                if extra.width == 1 and tuple(value.shape) == expected[:-1]:
                    value = value.unsqueeze(-1)
                if tuple(value.shape) != expected:
                    raise ValueError(f"extra input {extra.name!r} must be {expected}, got {tuple(value.shape)}")
                packed[extra.name] = self.packing.pack(self._time_major(value)).to(self.input.dtype)
            elif extra.default is not None:
                packed[extra.name] = self.input.new_full((self.input.shape[0], extra.width), extra.default)
            else:
                raise ValueError(f"the cell needs the extra input {extra.name!r}: pass extras={{{extra.name!r}: ...}}")
        return packed

    def leave(self, *parts: Tensor) -> Tensor | PackedSequence:
        """[N, width], one or several side by side, in the form of the caller's input, zero past each row's length."""
        sequence = self._sequence
        if sequence is not None or self.packing.fills(self.steps):
            parts = (merged(parts, "concatenate"),)
        if sequence is not None:
            return PackedSequence(parts[0], sequence.batch_sizes, sequence.sorted_indices, sequence.unsorted_indices)
        padded = self.packing.unpack(parts[0], self.steps, *parts[1:])
        if self._unbatched:
            return padded.squeeze(1)
        return padded.transpose(0, 1) if self._swap else padded

    def state(self, state: Any, layout: Layout, rows: int) -> tuple[Tensor, ...]:
        """The caller's state as one [rows, B, width] tensor for each entry, in packed order."""
        names = [entry.name for entry, _ in layout.states]
        values = (state,) if len(names) == 1 else state
        if isinstance(values, Tensor) or not isinstance(values, Sequence) or len(values) != len(names):
            raise ValueError(f"state must be {_form(names)}, got {_describe(state)}")
        packed = []
        for value, (entry, width) in zip(values, layout.states, strict=True):
            expected = (rows, width) if self._unbatched else (rows, self.packing.batch, width)
            if not isinstance(value, Tensor) or tuple(value.shape) != expected:
                raise ValueError(f"state entry {entry.name!r} must be {expected}, got {_describe(value)}")
            self._check_device(f"state entry {entry.name!r}", value)
            wanted = torch.int64 if entry.dtype == "int64" else self.input.dtype
            mixed = torch.is_autocast_enabled(value.device.type) and value.is_floating_point()
            if value.dtype != wanted and not mixed:
                raise ValueError(f"state entry {entry.name!r} must be {wanted}, got {value.dtype}")
            value = value.unsqueeze(1) if self._unbatched else value
            packed.append(self.packing.to_packed_order(value, 1))
        return tuple(packed)

    def _check_device(self, what: str, value: Tensor) -> None:
        if value.device != self.input.device:
            raise ValueError(f"{what} is on {value.device}, the input on {self.input.device}")

    def leave_state(self, value: Tensor) -> Tensor:
        """One state entry, [rows, B, width] in packed order, in the form of the caller's batch."""
        return value.squeeze(1) if self._unbatched else self.packing.to_caller_order(value, 1)


def _last(tensor: Tensor, name: str, size: int, dims: int) -> Tensor:
    if tensor.dim() != dims or tensor.shape[-1] != size:
        raise ValueError(f"{name} must have input_size = {size} as its last dimension, got {tuple(tensor.shape)}")
    return tensor


def packing_of(sequence: PackedSequence) -> Packing:
    """How a PackedSequence is packed.

    Raises:
        ValueError: it has not as many rows of data as its sizes of steps say.
    """
    packing = Packing.from_packed_sequence(sequence)
    if len(sequence.data) != packing.total:
        raise ValueError(f"input.data must have the {packing.total} rows of batch_sizes, got {len(sequence.data)}")
    return packing


def checked_lengths(lengths: Tensor | Sequence[int], batch: int, steps: int) -> list[int]:
    """The lengths of a batch of [T, B, *] as numbers.

    Raises:
        ValueError: they are not B integers from 1 to T.
    """
    try:
        values = torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"lengths must be integers, [B] = ({batch},), got {lengths!r:.80}") from error
    if batch == 0:
        raise ValueError("lengths needs at least one row")
    if values.shape != (batch,):
        raise ValueError(f"lengths must be [B] = ({batch},), got {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {values.dtype}")
    numbers: list[int] = values.tolist()
    if min(numbers) < 1 or max(numbers) > steps:
        row, length = next((row, n) for row, n in enumerate(numbers) if not 1 <= n <= steps)
        raise ValueError(f"lengths must be from 1 to T = {steps}, got {length} for row {row}")
    return numbers


def _form(names: list[str]) -> str:
    return "a tensor" if len(names) == 1 else f"a tuple ({', '.join(names)}) of tensors"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return type(value).__name__
