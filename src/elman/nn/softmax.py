"""The last layer of a model that chooses among many tokens: full and adaptive softmax, mixture of softmaxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.nn.cross_entropy import linear_cross_entropy, linear_losses


class Softmax(Protocol):
    """A distribution over V tokens, given outputs [N, H] of a recurrent layer."""

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean of -log p(target) in nats; ``weight`` [V, H] stands in for a layer's own where it is tied."""

    def losses(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """-log p(target) of each row, [N]; without gradients."""

    def logits(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """log p, up to a constant, of every token: [..., H] to [..., V]."""


class FullSoftmax(nn.Linear):
    """A weight for every token. The loss never holds more than a chunk of the logits."""

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(hidden, self.weight if weight is None else weight, self.bias, targets)

    def losses(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        return linear_losses(hidden, self.weight if weight is None else weight, self.bias, targets)

    def logits(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.linear(hidden, self.weight if weight is None else weight, self.bias)


class AdaptiveSoftmax(nn.AdaptiveLogSoftmaxWithLoss):
    """Rare tokens in clusters of lower rank, computed only where they occur (Grave et al. 2017, arXiv 1609.04309).

    The tokens must be numbered by falling frequency. The first sixteenth of them is in the head, those up to a quarter
    in a cluster of H/4 dimensions, the rest in one of H/16. Parameters and probabilities are those of
    `torch.nn.AdaptiveLogSoftmaxWithLoss`; the losses are those of `elman.nn.cross_entropy`.

    Raises:
        ValueError: the vocabulary or H is too small to have clusters.
    """

    def __init__(self, hidden_size: int, vocabulary: int) -> None:
        if vocabulary < 64 or hidden_size < 16:
            raise ValueError(
                f"an adaptive softmax needs 64 tokens and 16 units or more, got {vocabulary} and {hidden_size}"
            )
        super().__init__(hidden_size, vocabulary, [vocabulary // 16, vocabulary // 4], div_value=4.0, head_bias=True)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        in_head = targets
        total = self.head.weight.new_zeros(())
        for cluster, (project, head) in enumerate(self._tails()):
            rows, found = self._of_cluster(cluster, targets)
            in_head = in_head.where(~found, self.shortlist_size + cluster)
            if len(rows):
                own = targets[rows] - self.cutoffs[cluster]
                share = len(rows) / len(targets)
                total = total + share * linear_cross_entropy(project(hidden[rows]), head.weight, None, own)
        return total + linear_cross_entropy(hidden, self.head.weight, self.head.bias, in_head)

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        in_head = targets
        total = self.head.weight.new_zeros(len(targets))
        for cluster, (project, head) in enumerate(self._tails()):
            rows, found = self._of_cluster(cluster, targets)
            in_head = in_head.where(~found, self.shortlist_size + cluster)
            if len(rows):
                own = targets[rows] - self.cutoffs[cluster]
                total[rows] = linear_losses(project(hidden[rows]), head.weight, None, own)
        return total + linear_losses(hidden, self.head.weight, self.head.bias, in_head)

    def logits(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        flat: Tensor = self.log_prob(hidden.reshape(-1, hidden.shape[-1]))
        return flat.view(*hidden.shape[:-1], -1)

    def _tails(self) -> Iterator[tuple[nn.Linear, nn.Linear]]:
        """Of each cluster the projection to its dimensions, and its weights."""
        for tail in self.tail:
            project, head = tail.children()
            assert isinstance(project, nn.Linear)
            assert isinstance(head, nn.Linear)
            yield project, head

    def _of_cluster(self, cluster: int, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose target is in a cluster, as numbers and as a mask."""
        found = (targets >= self.cutoffs[cluster]) & (targets < self.cutoffs[cluster + 1])
        return found.nonzero()[:, 0], found


class MixtureOfSoftmaxes(nn.Module):
    """A token's probability as a mixture of K softmaxes over the same weights, each of a vector of its own.

    p(v) = Σ_k π_k softmax_v(W tanh(L_k h + a_k) + b),    π = softmax(P h)

    A single softmax's log-probabilities have the rank of h; a mixture's do not. Yang, Dai, Salakhutdinov & Cohen,
    "Breaking the softmax bottleneck: a high-rank RNN language model", ICLR 2018. It costs K times the logits; the loss
    holds no more of them at once than that of one softmax.

    Args:
        hidden_size: H.
        vocabulary: V.
        mixtures: K.
        width: E, of the K vectors; by default H.

    Parameters: weight (W) [V, E], bias (b) [V], latent.weight [K·E, H], latent.bias [K·E], shares.weight (P) [K, H].
    """

    def __init__(self, hidden_size: int, vocabulary: int, mixtures: int, width: int | None = None) -> None:
        super().__init__()
        width = width or hidden_size
        self.mixtures = mixtures
        self.latent = nn.Linear(hidden_size, mixtures * width)
        self.shares = nn.Linear(hidden_size, mixtures, bias=False)
        self.weight = nn.Parameter(torch.empty(vocabulary, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        vectors, log_shares = self._parts(hidden)
        return linear_cross_entropy(vectors, self.weight if weight is None else weight, self.bias, targets, log_shares)

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        vectors, log_shares = self._parts(hidden)
        return linear_losses(vectors, self.weight if weight is None else weight, self.bias, targets, log_shares)

    def logits(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        vectors, log_shares = self._parts(hidden.reshape(-1, hidden.shape[-1]))
        each = F.linear(vectors, self.weight if weight is None else weight, self.bias).log_softmax(-1)
        together: Tensor = (each.unflatten(0, (-1, self.mixtures)) + log_shares[..., None]).logsumexp(1)
        return together.view(*hidden.shape[:-1], -1)

    def _parts(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of outputs [N, H] the vectors [N·K, E] and the logarithms of their shares [N, K]."""
        vectors = self.latent(hidden).tanh().unflatten(1, (self.mixtures, -1)).flatten(0, 1)
        return vectors, self.shares(hidden).log_softmax(-1)
