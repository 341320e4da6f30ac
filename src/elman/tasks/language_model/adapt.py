"""What a language model can still learn while it is evaluated: dynamic evaluation, and a continuous cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elman.tasks.language_model.model import LanguageModel


@dataclass(frozen=True)
class Cache:
    """A continuous cache pointer (Grave, Joulin & Usunier 2017, arXiv 1612.04426).

    Beside the model's p(y) stands that of the last ``size`` tokens: each votes for the token that followed it, by
    exp(θ h_t·h_i), with h the recurrent outputs. The mixture is (1 - λ) p_model + λ p_cache.

    Attributes:
        size: tokens that are remembered.
        theta: θ, how sharply the votes go to similar states.
        share: λ.
    """

    size: int
    theta: float
    share: float


class CachedLosses:
    """The losses of a text read in one or several lanes, each with a cache of its own."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._outputs: Tensor | None = None  # [M, B, H], the last M ≤ size outputs
        self._targets: Tensor | None = None  # [M, B], what followed them

    @torch.no_grad()
    def __call__(self, output: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """The losses of the mixture, given outputs ``[T, B, H]``, and targets and the model's losses ``[T, B]``.

        Step t sees the steps before it alone, of this window and those before.
        """
        steps, size = len(output), self.cache.size
        keys = output if self._outputs is None else torch.cat([self._outputs, output])
        values = targets if self._targets is None else torch.cat([self._targets, targets])
        past = len(keys) - steps
        scores = self.cache.theta * torch.einsum("tbh,mbh->btm", output, keys)  # [B, T, M]
        place = torch.arange(len(keys), device=output.device)
        now = past + torch.arange(steps, device=output.device)[:, None]
        seen = (place < now) & (place >= now - size)  # [T, M]
        scores = scores.masked_fill(~seen, -torch.inf)
        right = (values.t()[:, None] == targets.t()[..., None]) & seen  # [B, T, M]
        votes = torch.logsumexp(scores, 2)
        found = torch.logsumexp(scores.masked_fill(~right, -torch.inf), 2) - votes  # log p_cache, [B, T]
        # an empty cache has no opinion
        share = torch.full_like(votes, self.cache.share).masked_fill(votes.isneginf(), 0.0)
        found = found.masked_fill(votes.isneginf(), 0.0)
        mixed = torch.logaddexp(torch.log1p(-share) - losses.t(), share.log() + found)
        self._outputs, self._targets = keys[-size:], values[-size:]
        return -mixed.t()


@dataclass(frozen=True)
class Dynamic:
    """Dynamic evaluation (Krause et al. 2018, arXiv 1709.07432), by plain gradient steps with decay.

    Behind each window, once it is scored, the parameters go a step against its gradient and a little back to what they
    were: θ ← θ - η g + λ (θ₀ - θ).

    Attributes:
        learning_rate: η.
        decay: λ.
        clip: largest norm of the gradient.
    """

    learning_rate: float
    decay: float
    clip: float = 0.25


class DynamicModel:
    """A model that learns while it reads; :meth:`restore` makes it what it was."""

    def __init__(self, model: LanguageModel, dynamic: Dynamic) -> None:
        self.model = model
        self.dynamic = dynamic
        self._parameters = list(model.parameters())
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    def learn(self, output: Tensor, targets: Tensor) -> None:
        """A step on a window's recurrent outputs ``[T, B, H]``, with their graph, and targets ``[T, B]``."""
        loss = self.model.loss(output, targets)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        known = [gradient for gradient in gradients if gradient is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in known]))
        factor = self.dynamic.learning_rate * min(1.0, self.dynamic.clip / (norm.item() + 1e-12))
        with torch.no_grad():
            for parameter, gradient, before in zip(self._parameters, gradients, self._before, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=-factor)
                parameter.lerp_(before, self.dynamic.decay)

    def restore(self) -> None:
        """Undo what was learned."""
        with torch.no_grad():
            for parameter, before in zip(self._parameters, self._before, strict=True):
                parameter.copy_(before)
