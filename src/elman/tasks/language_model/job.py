"""The language model's data and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elman.data.lanes import Batches, Lanes, RandomWindows, ScoringLanes
from elman.data.store import EncodedText, StoredTokens
from elman.data.tokenizers import Tokenizer
from elman.errors import UsageError, UserError
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.adapt import Cache, CachedLosses, Dynamic, DynamicModel
from elman.tasks.language_model.generate import generate
from elman.tasks.language_model.model import LanguageModel
from elman.tasks.sampling import Sampler
from elman.train.job import Stretch
from elman.train.metrics import Metrics, language_metrics
from elman.train.penalties import activation_penalties
from elman.train.trees import map_tensors
from elman.train.world import World

SCORING_LANES = 64
SCORED_AT_ONCE = 1 << 24  # recurrent outputs: 64 MB
SAMPLE_TOKENS = 160


@torch.no_grad()
def score(
    model: LanguageModel,
    text: EncodedText,
    window: int,
    lanes: int = SCORING_LANES,
    cache: Cache | None = None,
    dynamic: Dynamic | None = None,
) -> Metrics:
    """Loss, perplexity and bits per character of a text; each token but the first is scored once.

    Lanes are warmed up on two windows or more. A cache begins empty in each lane. Dynamic evaluation learns from each
    window behind it, and the model is what it was in the end. Raises ValueError for fewer than two tokens.
    """
    model.eval()
    device = model.embedding.weight.device
    at_once = max(1, SCORED_AT_ONCE // (lanes * model.recurrent.output_size))
    remembered = CachedLosses(cache) if cache is not None else None
    learner = DynamicModel(model, dynamic) if dynamic is not None else None
    total, count, state = 0.0, 0, None
    try:
        for window_of in ScoringLanes(text.tokens, lanes, min(window, at_once), burn_in=max(2 * window, 128)):
            inputs, targets, scored = (tensor.to(device) for tensor in window_of)
            with torch.set_grad_enabled(learner is not None):
                output, state = model.read(inputs, map_tensors(Tensor.detach, state))
            losses = model.losses(output, targets)
            if remembered is not None:
                losses = remembered(output.detach(), targets, losses)
            total += losses[scored].sum(dtype=torch.float64).item()
            count += int(scored.sum())
            if learner is not None:
                with torch.enable_grad():
                    learner.learn(output, targets)
    finally:
        if learner is not None:
            learner.restore()
    return {**language_metrics(total / count, count, text.characters), "tokens": count, "characters": text.characters}


class LanguageModelJob:
    """Windows of text: of lanes, with the state carried along, or random ones; see `elman.train.job.Job`.

    Raises:
        UsageError: --document-end is no token, or there is one document where the state shall be reset between them.
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
        self.batches: Batches
        try:
            if config.minibatches == "random":
                self.batches = RandomWindows(train.tokens, config.batch_size, config.window, config.seed)
            else:
                self.batches = Lanes(train.tokens, config.batch_size, config.window)
        except ValueError as error:
            source = config.data or "the standard library"
            raise UserError(
                f"the training text of {source} is too short: {error}; lower --batch-size or --window"
            ) from None
        if len(validation.tokens) < 2:
            raise UserError(f"the validation text has {len(validation.tokens)} tokens; it needs two")
        self.document_end = _token(tokenizer, config.document_end) if config.document_end is not None else None
        self.stored_documents = config.state == "documents" and self.document_end is None
        if self.stored_documents and not (isinstance(train.tokens, StoredTokens) and train.tokens.documents() > 1):
            raise UsageError(
                "--state documents: the training text is one document; --document-end TOKEN names what ends one inside"
            )
        self.fingerprint = f"{train.digest} {validation.digest}"

    def lengths(self, epoch: int) -> Sequence[int]:
        return self.batches.lengths

    def begin(self) -> Any:
        return None  # the cell's own initial state

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        inputs, targets, reset = self.steps(stretch)
        tied = self.model.tied_weight()
        outputs, state = self.model.read(inputs, carry, reset)
        dropped = self.model.dropout(outputs)
        loss = self.model.loss(dropped, targets, tied)
        return loss + activation_penalties(outputs, dropped, self.ar, self.tar), targets.numel(), state

    def read(self, stretch: Stretch, carry: Any) -> Any:
        inputs, _, reset = self.steps(stretch)
        return self.model.read(inputs, carry, reset)[1]

    def steps(self, stretch: Stretch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs and targets of this process's rows, and which steps come after the end of a document: ``[T, B]`` each.

        None stands for the last where documents do not matter. Nothing comes before the first step of a sequence.
        """
        begins = self.world.share(self.batches.begins(stretch.epoch, stretch.index), dim=0)
        if self.stored_documents:
            inputs, targets = self.batches.read(begins, stretch.start, stretch.stop)
            reset = self.batches.document_begins(begins, stretch.start, stretch.stop)
            return inputs.to(self.device), targets.to(self.device), reset.to(self.device)
        before = int(self.document_end is not None and stretch.start > 0)
        inputs, targets = self.batches.read(begins, stretch.start - before, stretch.stop)
        inputs, targets = inputs.to(self.device), targets[before:].to(self.device)
        if self.document_end is None:
            return inputs, targets, None
        reset = inputs[:-1] == self.document_end
        if not before:
            reset = torch.cat([inputs.new_zeros(1, inputs.shape[1], dtype=torch.bool), reset])
        return inputs[before:], targets, reset

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
