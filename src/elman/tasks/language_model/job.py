"""The language model's data and losses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.data.lanes import Lanes, ScoringLanes
from elman.data.tokenizers import Tokenizer, Tokens
from elman.errors import UsageError, UserError
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.generate import generate
from elman.tasks.language_model.model import LanguageModel
from elman.tasks.sampling import Sampler
from elman.train.job import Stretch
from elman.train.metrics import Metrics, language_metrics
from elman.train.penalties import activation_penalties
from elman.train.world import World

SCORING_LANES = 64
SCORED_AT_ONCE = 1 << 24  # logits: 64 MB
SAMPLE_TOKENS = 160


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        tokens: int32 [N].
        characters: of all tokens but the first, which is never predicted.
    """

    tokens: Tokens
    characters: int

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> EncodedText:
        tokens = tokenizer.encode(text)
        return cls(tokens, len(text) - len(tokenizer.decode(tokens[:1])))


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss, in nats, of each target: logits ``[T, B, V]``, targets ``[T, B]`` to ``[T, B]``."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@torch.no_grad()
def score(model: LanguageModel, text: EncodedText, window: int, lanes: int = SCORING_LANES) -> Metrics:
    """Loss, perplexity and bits per character of a text; each token but the first is scored once.

    Lanes are warmed up on two windows or more. Raises ValueError for fewer than two tokens.
    """
    model.eval()
    device = model.embedding.weight.device
    at_once = max(1, SCORED_AT_ONCE // (lanes * model.embedding.num_embeddings))
    total, count, state = 0.0, 0, None
    for inputs, targets, scored in ScoringLanes(text.tokens, lanes, min(window, at_once), burn_in=max(2 * window, 128)):
        logits, state = model(inputs.to(device), state)
        losses = loss_of(logits, targets.to(device))[scored.to(device)]
        total += losses.sum(dtype=torch.float64).item()
        count += len(losses)
    return {**language_metrics(total / count, count, text.characters), "tokens": count, "characters": text.characters}


class LanguageModelJob:
    """Lanes of text with the state carried from window to window; see `elman.train.job.Job`.

    Raises:
        UsageError: --document-end is no token.
        UserError: a part is too short for one window.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        train: EncodedText,
        validation: EncodedText,
        config: LanguageModelConfig,
        world: World,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.train = train
        self.validation = validation
        self.world = world
        self.window = config.window
        self.seed = config.seed
        self.ar, self.tar = config.ar, config.tar
        self.device = model.embedding.weight.device
        try:
            self.lanes = Lanes(train.tokens, config.batch_size, config.window)
        except ValueError as error:
            source = config.data or "the standard library"
            raise UserError(
                f"the training text of {source} is too short: {error}; lower --batch-size or --window"
            ) from None
        if len(validation.tokens) < 2:
            raise UserError(f"the validation text has {len(validation.tokens)} tokens; it needs two")
        self.document_end = _token(tokenizer, config.document_end) if config.document_end is not None else None
        digest = hashlib.sha256()
        for tokens in (train.tokens, validation.tokens):
            digest.update(tokens.tobytes() + b"|")
        self.fingerprint = digest.hexdigest()

    def lengths(self, epoch: int) -> Sequence[int]:
        return [self.lanes.length]

    def begin(self) -> Any:
        return None  # the cell's own initial state

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        inputs, targets = self._window(stretch.start, stretch.stop)
        outputs, state = self.model.read(inputs, carry, self.reset(stretch))
        dropped = self.model.dropout(outputs)
        loss = loss_of(self.model.logits(dropped), targets).mean()
        return loss + activation_penalties(outputs, dropped, self.ar, self.tar), targets.numel(), state

    def read(self, stretch: Stretch, carry: Any) -> Any:
        inputs, _ = self._window(stretch.start, stretch.stop)
        return self.model.read(inputs, carry, self.reset(stretch))[1]

    def reset(self, stretch: Stretch) -> Tensor | None:
        """Which steps ``[T, B]`` come after the end of a document; None where documents do not matter."""
        if self.document_end is None:
            return None
        before, _ = self._window(max(stretch.start - 1, 0), stretch.stop - 1)
        ends = before == self.document_end
        if stretch.start == 0:  # nothing comes before the first step
            ends = torch.cat([torch.zeros_like(ends[:1]) if len(ends) else ends, ends])
        return ends

    def _window(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[T, B]`` of this process's lanes."""
        inputs, targets = (self.world.share(tokens).to(self.device) for tokens in self.lanes.window(start, stop))
        return inputs, targets

    def keepsakes(self) -> dict[str, str]:
        return {"tokenizer": self.tokenizer.to_json()}

    def training_metrics(self, loss: float) -> Metrics:
        return language_metrics(loss, len(self.train.tokens) - 1, self.train.characters)

    def evaluate(self) -> Metrics:
        return score(self.model, self.validation, self.window)

    def cost(self, metrics: Metrics) -> float:
        return metrics["loss"]

    def describe(self, metrics: Metrics) -> str:
        return describe(metrics)

    def sample(self) -> str:
        self.model.eval()
        sampler = Sampler(temperature=0.8, banned=self.tokenizer.unknown)
        generator = torch.Generator().manual_seed(self.seed)
        return "".join(generate(self.model, self.tokenizer, "", SAMPLE_TOKENS, sampler, generator))


def _token(tokenizer: Tokenizer, text: str) -> int:
    number: int | None = tokenizer.backend.token_to_id(text)
    if number is None:
        raise UsageError(f"--document-end {text!r} is no token of the vocabulary")
    return number


def describe(metrics: Metrics) -> str:
    """The metrics in words."""
    return (
        f"loss {metrics['loss']:.4f} nats per token, perplexity {metrics['perplexity']:.2f}, "
        f"{metrics['bits_per_character']:.4f} bits per character"
    )
