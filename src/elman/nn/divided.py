"""Token vectors and softmaxes whose rows are divided among the processes that train together.

Each process has the rows of some tokens, and serves them to all: the vectors and outputs of everybody's tokens travel,
the matrices never do, and neither a matrix nor its gradient nor the optimiser's state is whole anywhere. These are the
vocabulary-parallel layers of Shoeybi et al. ("Megatron-LM", 2019, arXiv 1909.08053), but each process brings tokens of
its own.

Gradients: those of divided rows are of the mean over all processes; those of what goes in are of the process's own
mean, like all that data-parallel training averages afterwards. So all processes must have equally many tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.nn.cross_entropy import Part, linear_cross_entropy, linear_losses
from elman.nn.softmax import FullSoftmax, MixtureOfSoftmaxes


class Processes(Protocol):
    """What the layers need of the processes; all of them call each method, in the same order."""

    rank: int
    size: int

    def gathered(self, tensor: Tensor) -> Tensor:
        """All processes' tensors of one shape, stacked: ``[P, ...]``."""

    def summed_share(self, tensor: Tensor) -> Tensor:
        """Of ``[P, ...]`` the sum over all processes of this one's entry, ``[...]``."""


@dataclass(frozen=True)
class Rows:
    """The rows ``start`` to ``stop`` of ``whole``, which one process has."""

    start: int
    stop: int
    whole: int

    @classmethod
    def of(cls, whole: int, rank: int, size: int) -> Rows:
        """The share of process ``rank`` of ``size``; shares differ by one row at most."""
        least, more = divmod(whole, size)
        start = rank * least + min(rank, more)
        return cls(start, start + least + (rank < more), whole)


class Divided(nn.Module):
    """A layer of which this process has some rows: all its parameters are ``[rows, ...]``."""

    rows: Rows

    def __init__(self, whole: int, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self.rows = Rows.of(whole, processes.rank, processes.size)

    def _own(self, whole: Tensor) -> nn.Parameter:
        return nn.Parameter(whole.detach()[self.rows.start : self.rows.stop].clone())


class DividedEmbedding(Divided):
    """An embedding's rows: ``weight`` is ``[rows, E]``."""

    def __init__(self, whole: nn.Embedding, processes: Processes) -> None:
        super().__init__(whole.num_embeddings, processes)
        self.weight = self._own(whole.weight)

    def forward(self, tokens: Tensor, sparse: bool = False) -> Tensor:
        """Token numbers ``[...]`` to vectors ``[..., E]``; ``sparse`` makes a sparse gradient."""
        vectors: Tensor = _LookUp.apply(self.weight, tokens, self.rows.start, sparse, self.processes)  # type: ignore[no-untyped-call]
        return vectors


class DividedSoftmax(Divided):
    """A full softmax's rows: ``weight`` is ``[rows, H]``, or another module's where it is tied; ``bias`` ``[rows]``."""

    def __init__(self, whole: FullSoftmax, processes: Processes) -> None:
        super().__init__(whole.out_features, processes)
        if hasattr(whole, "weight"):
            self.weight = self._own(whole.weight)
        self.bias = self._own(whole.bias)
        self.part = Part(self.rows.start, Rows.of(whole.out_features, 0, processes.size).stop, processes.gathered)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean of -log p(target) of all processes' tokens, given this one's ``[N, H]`` and ``[N]``."""
        everyones: Tensor = _Everyones.apply(hidden, self.processes)  # type: ignore[no-untyped-call]
        weight = self.weight if weight is None else weight
        return linear_cross_entropy(everyones, weight, self.bias, self._gathered(targets), part=self.part)

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """-log p(target) of each of this process's tokens, ``[N]``."""
        weight = self.weight if weight is None else weight
        losses = linear_losses(self._gathered(hidden), weight, self.bias, self._gathered(targets), part=self.part)
        return losses.view(self.processes.size, -1)[self.processes.rank]

    @torch.no_grad()
    def logits(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """Log p, up to a constant, of every token: ``[..., H]`` to ``[..., V]``; without gradients."""
        own = F.linear(self.processes.gathered(hidden), self.weight if weight is None else weight, self.bias)
        shares = [Rows.of(self.rows.whole, rank, self.processes.size) for rank in range(self.processes.size)]
        most = shares[0].stop
        padded = F.pad(own, (0, most - own.shape[-1]))
        of_mine = self.processes.gathered(padded)[:, self.processes.rank]  # [P, ..., most]
        return torch.cat([part[..., : rows.stop - rows.start] for part, rows in zip(of_mine, shares, strict=True)], -1)

    def _gathered(self, tensor: Tensor) -> Tensor:
        return self.processes.gathered(tensor).flatten(0, 1)


def divide(model: nn.Module, processes: Processes) -> None:
    """Replace each embedding and full softmax of a model by this process's rows of it. All processes' models are alike.

    Raises:
        ValueError: there is none, or one has fewer rows than there are processes, or is that of a mixture.
    """
    if any(isinstance(module, MixtureOfSoftmaxes) for module in model.modules()):
        raise ValueError("a mixture of softmaxes cannot be divided")
    kinds: dict[type[nn.Module], Any] = {nn.Embedding: DividedEmbedding, FullSoftmax: DividedSoftmax}
    found = [(name, module) for name, module in model.named_modules() if type(module) in kinds]
    if not found:
        raise ValueError("the model has no token vectors and no softmax that could be divided")
    for name, module in found:
        rows = module.num_embeddings if isinstance(module, nn.Embedding) else cast(FullSoftmax, module).out_features
        if rows < processes.size:
            raise ValueError(f"the {rows} rows of {name} cannot be divided among {processes.size} processes")
        model.set_submodule(name, kinds[type(module)](module, processes))


def divided_rows(model: nn.Module) -> dict[str, Rows]:
    """The rows that this process has of each divided parameter, by its name in the model; the others are whole."""
    return dict(_divided_parameters(model))


def _divided_parameters(model: nn.Module) -> Iterator[tuple[str, Rows]]:
    for prefix, module in model.named_modules():
        if isinstance(module, Divided):
            for name, _ in module.named_parameters(prefix, recurse=False):
                yield name, module.rows


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, first: int, sparse: bool, processes: Processes) -> Tensor:
        own = processes.gathered(tokens) - first  # [P, ...]
        here = (own >= 0) & (own < len(weight))
        ctx.save_for_backward(own, here)
        ctx.shape, ctx.sparse, ctx.processes = weight.shape, sparse, processes
        vectors = weight[own.clamp(0, len(weight) - 1)] * here[..., None]
        return processes.summed_share(vectors)

    @staticmethod
    def backward(ctx: Any, d_vectors: Tensor) -> tuple[Tensor | None, ...]:
        own, here = ctx.saved_tensors
        rows = own[here]  # [M], of all processes' tokens those whose rows are here
        gradients = ctx.processes.gathered(d_vectors)[here] / ctx.processes.size
        if ctx.sparse:
            d_weight = torch.sparse_coo_tensor(rows[None], gradients, ctx.shape, check_invariants=False)
        else:
            d_weight = gradients.new_zeros(ctx.shape).index_add_(0, rows, gradients)
        return d_weight, None, None, None, None


class _Everyones(torch.autograd.Function):
    """All processes' rows, ``[N, H]`` to ``[P · N, H]``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.gathered(rows).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor | None, ...]:
        # of a mean over all processes' tokens; what follows is of this one's own
        processes = ctx.processes
        return processes.summed_share(d_rows.unflatten(0, (processes.size, -1))) * processes.size, None
