"""The network: embed → dropout → recurrent → dropout → head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.data.tokenizers import Tokenizer
from elman.errors import UsageError
from elman.nn.divided import DividedEmbedding
from elman.nn.recurrent import Recurrent
from elman.nn.softmax import AdaptiveSoftmax, FullSoftmax
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

    Raises:
        ValueError: a size does not fit the cell, or ``tied`` does not fit the sizes.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: str,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        tied: bool = False,
        softmax: str = "full",
    ) -> None:
        super().__init__()
        self.embedding: nn.Embedding | DividedEmbedding = nn.Embedding(vocabulary, embedding_size)
        between = dropout if num_layers > 1 else 0.0
        self.recurrent = Recurrent(cell, embedding_size, hidden_size, num_layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        kinds: dict[str, Callable[[int, int], Any]] = {"full": FullSoftmax, "adaptive": AdaptiveSoftmax}
        self.head = kinds[softmax](self.recurrent.output_size, vocabulary)
        if tied:
            if self.recurrent.output_size != embedding_size:
                raise ValueError(
                    f"tied needs token vectors as wide as the output: "
                    f"{self.recurrent.output_size}, got {embedding_size}"
                )
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
        output, state = self.recurrent(self.dropout(self.embed(tokens)), state, reset=reset)
        return output, state

    def embed(self, tokens: Tensor) -> Tensor:
        """Token numbers ``[...]`` to vectors ``[..., E]``."""
        # the head's gradient of a tied matrix is dense, and the few rows of this one are added to it
        sparse = self.tied and self.embedding.weight.is_leaf
        if isinstance(self.embedding, DividedEmbedding):
            vectors: Tensor = self.embedding(tokens, sparse)
            return vectors
        return F.embedding(tokens, self.embedding.weight, sparse=sparse)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats of outputs ``[T, B, H]``, after their dropout, and targets ``[T, B]``."""
        loss: Tensor = self.head.loss(output.flatten(0, 1), targets.flatten(), self._tied_weight())
        return loss

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """The loss of each target, ``[T, B]``; without gradients."""
        losses: Tensor = self.head.losses(output.flatten(0, 1), targets.flatten(), self._tied_weight())
        return losses.view_as(targets)

    def logits(self, output: Tensor) -> Tensor:
        """Recurrent outputs ``[..., H]`` to logits ``[..., V]``."""
        logits: Tensor = self.head.logits(output, self._tied_weight())
        return logits

    def _tied_weight(self) -> Tensor | None:
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
        size = min(config.hidden_size, CHARACTER_EMBEDDING) if short else config.hidden_size
    try:
        model = LanguageModel(
            tokenizer.size,
            config.cell,
            size,
            config.hidden_size,
            config.num_layers,
            config.dropout,
            config.tied,
            config.softmax,
        )
    except ValueError as error:
        raise UsageError(f"--cell {config.cell}: {error}") from None
    check_engine(model.recurrent)
    return model
