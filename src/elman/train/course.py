"""The course of training through the data: update after update, with the state carried between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elman.train.job import Job, Stretch
from elman.train.trees import map_tensors
from elman.train.truncation import Truncation, Update


@dataclass
class Place:
    """How far training is: epoch, sequence in it, the first step not yet scored, and all steps done in this epoch."""

    epoch: int = 0
    index: int = 0
    start: int = 0
    done: int = 0


@dataclass(frozen=True)
class Part:
    """What one update's data gave.

    Attributes:
        objective: what to differentiate: the mean loss, weighted as the truncation asks.
        loss: the mean loss of the targets.
        tokens: the number of targets.
        rate: factor of the learning rate.
    """

    objective: Tensor
    loss: Tensor
    tokens: int
    rate: float


class Course:
    """Walks through a job's sequences as a truncation says. ``fresh`` begins each update with the initial state."""

    def __init__(self, job: Job, truncation: Truncation, fresh: bool = False) -> None:
        self.job = job
        self.truncation = truncation
        self.fresh = fresh
        self.place = Place()
        self.carry: Any = None
        self._epoch: tuple[int, Sequence[int], int] = -1, (), 0

    def epochs(self) -> float:
        """Epochs done, with the share of this one."""
        return self.place.epoch + self.place.done / self._lengths()[1]

    def _lengths(self) -> tuple[Sequence[int], int]:
        """Of this epoch's sequences, and their sum."""
        if self._epoch[0] != self.place.epoch:
            lengths = self.job.lengths(self.place.epoch)
            self._epoch = self.place.epoch, lengths, sum(lengths)
        return self._epoch[1:]

    def advance(self) -> Part:
        """Run the next update's data forward and go on behind it."""
        at, (lengths, _) = self.place, self._lengths()
        update = self.truncation.update(at.epoch, at.index, at.start, lengths[at.index])
        part, self.carry = run(self.job, update, at.epoch, at.index, None if self.fresh else self.carry)
        at.start, at.done = update.stop, at.done + update.stop - update.start
        if at.start == lengths[at.index]:
            at.index, at.start, self.carry = at.index + 1, 0, None
        if at.index == len(lengths):
            at.epoch, at.index, at.done = at.epoch + 1, 0, 0
        return part


def run(job: Job, update: Update, epoch: int, index: int, carry: Any = None) -> tuple[Part, Any]:
    """Run an update's pieces forward from the state ``carry``, by default the initial one.

    Returns what they gave, and the state that the next update begins with, without gradients.
    """
    if carry is None:
        carry = job.begin()
    kept = carry
    losses: list[Tensor] = []
    counts: list[int] = []
    for piece in update.pieces:
        if piece.start == update.next_begin:
            kept = carry
        stretch = Stretch(epoch, index, piece.start, piece.stop)
        carry = map_tensors(partial(link, factor=piece.link), carry)
        if piece.role == "scored":
            loss, count, carry = job.loss(stretch, carry)
            losses.append(loss)
            counts.append(count)
        else:
            with torch.set_grad_enabled(piece.role == "lead"):
                carry = job.read(stretch, carry)
    if update.next_begin == update.stop:
        kept = carry
    tokens = sum(counts)
    # one loss keeps the factor 1, by which gradients that are there already need no multiplication
    mean = torch.stack([loss * (count / tokens) for loss, count in zip(losses, counts, strict=True)]).sum()
    return Part(update.weight * mean, mean.detach(), tokens, update.rate), map_tensors(Tensor.detach, kept)


def link(tensor: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied on its way back; 0 cuts it."""
    if factor == 1 or not tensor.is_floating_point():
        return tensor
    return tensor.detach() if factor == 0 else _Scale.apply(tensor, factor)  # type: ignore[no-untyped-call]


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None
