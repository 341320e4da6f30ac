"""The network: embed → dropout → recurrent → dropout → head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.data.tokenizers import Tokenizer
from elman.errors import UsageError
from elman.nn.divided import DividedEmbedding
from elman.nn.dropout import LockedDropout, word_mask
from elman.nn.recurrent import Recurrent
from elman.nn.softmax import AdaptiveSoftmax, FullSoftmax, MixtureOfSoftmaxes
from elman.nn.tied import gradient_last
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.models import check_engine

CHARACTER_EMBEDDING = 128


class LanguageModel(nn.Module):
    """Predicts the next token.

    Args:
        vocabulary: V, the number of tokens.
        cell: a registered name.
        embedding_size: E, width of the token vectors; with ``tied`` the width of the recurrent output.
        hidden_size, num_layers: of the recurrent layers.
        dropout: on the token vectors, between layers, and before the head.
        tied: the head uses the token vectors.
        softmax: ``full`` or ``adaptive``.
        mixtures: full softmaxes whose mixture predicts; see `elman.nn.softmax.MixtureOfSoftmaxes`.
        locked_dropout: in place of ``dropout``, with one mask for all steps: of the token vectors, and of each layer's
            output.
        embedding_dropout: share of the vocabulary that is dropped from the input.
        weight_dropout, mogrify, mogrify_rank: of the recurrent layers; see `elman.Recurrent`.

    Raises:
        ValueError: a size does not fit the cell, or ``tied`` does not fit the sizes.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: str,
        embedding_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        dropout: float = 0.0,
        tied: bool = False,
        softmax: str = "full",
        *,
        mixtures: int = 1,
        locked_dropout: Sequence[float] | None = None,
        embedding_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        mogrify: int = 0,
        mogrify_rank: int = 0,
    ) -> None:
        super().__init__()
        self.embedding: nn.Embedding | DividedEmbedding = nn.Embedding(vocabulary, embedding_size)
        self.embedding_dropout = embedding_dropout
        layers = len(hidden_size) if isinstance(hidden_size, Sequence) else num_layers
        self.recurrent = Recurrent(
            cell,
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout if layers > 1 else 0.0,
            # that of the last output is the head's: penalties look at the output without it
            locked_dropout=(*locked_dropout[:-1], 0.0) if locked_dropout else 0.0,
            weight_dropout=weight_dropout,
            mogrify=mogrify,
            mogrify_rank=mogrify_rank,
        )
        self.input_dropout = nn.Dropout(dropout)
        self.dropout = LockedDropout(locked_dropout[-1]) if locked_dropout else nn.Dropout(dropout)
        width = self.recurrent.output_size
        self.head: Any
        if mixtures > 1:
            self.head = MixtureOfSoftmaxes(width, vocabulary, mixtures, embedding_size)
        else:
            self.head = {"full": FullSoftmax, "adaptive": AdaptiveSoftmax}[softmax](width, vocabulary)
        if tied:
            if mixtures == 1 and width != embedding_size:
                raise ValueError(f"tied needs token vectors as wide as the output: {width}, got {embedding_size}")
            # the smaller start is the head's: unit vectors would make the first logits huge
            nn.init.uniform_(self.embedding.weight, -(embedding_size**-0.5), embedding_size**-0.5)
            del self.head.weight
        self.tied = tied

    def forward(self, tokens: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        """Tokens int64 ``[T, B]`` to logits ``[T, B, V]`` and the state to carry on; ``reset`` is that of Recurrent."""
        output, state = self.read(tokens, state, reset)
        return self.logits(self.dropout(output)), state

    def read(self, tokens: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        """Tokens int64 ``[T, B]`` to recurrent outputs ``[T, B, H]`` and the state to carry on."""
        output, state = self.recurrent(self.input_dropout(self.embed(tokens)), state, reset=reset)
        return output, state

    def embed(self, tokens: Tensor) -> Tensor:
        """Token numbers ``[...]`` to vectors ``[..., E]``."""
        # the head's gradient of a tied matrix is dense, and the few rows of this one are added to it
        sparse = self.tied and self.embedding.weight.is_leaf
        vectors: Tensor
        if isinstance(self.embedding, DividedEmbedding):
            vectors, words = self.embedding(tokens, sparse), self.embedding.rows.whole
        else:
            vectors, words = F.embedding(tokens, self.embedding.weight, sparse=sparse), self.embedding.num_embeddings
        if not (self.training and self.embedding_dropout):
            return vectors
        return vectors * F.embedding(tokens, word_mask(self.embedding.weight, self.embedding_dropout, words))

    def loss(self, output: Tensor, targets: Tensor, tied: Tensor | None = None) -> Tensor:
        """The mean loss in nats of outputs ``[T, B, H]``, after their dropout, and targets ``[T, B]``.

        ``tied`` is what :meth:`tied_weight` gave before the tokens were read; without it the gradients take up more
        memory.
        """
        weight = self._own_tied() if tied is None else tied
        loss: Tensor = self.head.loss(output.flatten(0, 1), targets.flatten(), weight)
        return loss

    def tied_weight(self) -> Tensor | None:
        """The matrix that the head shares, for the loss of what is read after this call; None if it shares none."""
        return gradient_last(self.embedding.weight) if self.tied else None

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """The loss of each target, ``[T, B]``; without gradients."""
        losses: Tensor = self.head.losses(output.flatten(0, 1), targets.flatten(), self._own_tied())
        return losses.view_as(targets)

    def logits(self, output: Tensor) -> Tensor:
        """Recurrent outputs ``[..., H]`` to logits ``[..., V]``."""
        logits: Tensor = self.head.logits(output, self._own_tied())
        return logits

    def _own_tied(self) -> Tensor | None:
        return self.embedding.weight if self.tied else None

    def stream(self) -> Callable[[int], Tensor]:
        """A function from one token to the logits ``[V]`` of the next; it carries the state. No gradients."""
        step = self.recurrent.stepper(1)

        @torch.no_grad()
        def next_logits(token: int) -> Tensor:
            vector = self.embed(torch.tensor([token], device=self.embedding.weight.device))
            return self.logits(step(vector))[0]

        return next_logits


def build_model(config: LanguageModelConfig, tokenizer: Tokenizer) -> LanguageModel:
    """The model that a configuration describes. Raises UsageError where a size or the engine does not fit."""
    size = config.embedding_size
    if size is None:
        short = tokenizer.kind == "char" and not config.tied
        size = min(config.sizes[-1], CHARACTER_EMBEDDING) if short else config.sizes[-1]
    places = config.locked_dropout
    if places is not None and len(places) == 1:
        places *= len(config.sizes) + 1
    try:
        model = LanguageModel(
            tokenizer.size,
            config.cell,
            size,
            config.hidden_sizes or config.hidden_size,
            len(config.sizes),
            config.dropout,
            config.tied,
            config.softmax,
            mixtures=config.mixtures,
            locked_dropout=places,
            embedding_dropout=config.embedding_dropout,
            weight_dropout=config.weight_dropout,
            mogrify=config.mogrify,
            mogrify_rank=config.mogrify_rank,
        )
    except ValueError as error:
        raise UsageError(f"--cell {config.cell}: {error}") from None
    check_engine(model.recurrent)
    return model
