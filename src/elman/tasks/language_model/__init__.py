"""The language model: its options. The rest of the task needs torch and is imported when used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from elman.errors import UsageError
from elman.tasks.task import Task
from elman.train.config import TrainConfig
from elman.train.options import Options, option


@dataclass(frozen=True)
class LanguageModelConfig(TrainConfig):
    """Options of ``elman train lm``."""

    data: str | None = option(
        None,
        "text, JSON lines, CSV or Parquet, a file or a folder; by default the Python library's sources",
        group="data",
        path=True,
        resumable=True,  # moved files are fine: the trainer compares the text itself
    )
    pattern: str = option("*", "which files of a folder", group="data", resumable=True)
    validation: str | None = option(None, "a validation text of its own", group="data", path=True, resumable=True)
    test: str | None = option(None, "a test text", group="data", path=True, resumable=True)
    validation_share: float = option(0.1, "share of --data that validates", group="data", above=0, below=1)
    test_share: float = option(0.0, "share of --data that tests", group="data", low=0, below=1)
    data_format: Literal["text", "jsonl", "csv", "tsv", "parquet"] | None = option(
        None, "what the files hold; by default their names tell", group="data", resumable=True
    )
    field: str = option("text", "which column or key of a record is the text", group="data", resumable=True)
    cache: str | None = option(
        None,
        "where tokens are kept; by default the folder `tokens` beside the run",
        group="data",
        path=True,
        resumable=True,
    )
    processes: int | None = option(
        None, "that read and tokenise; by default one a core", group="data", low=1, saved=False, resumable=True
    )
    tokenizer: Literal["char", "word", "bpe"] = option("char", "what a token is", group="data")
    vocab_size: int | None = option(None, "most tokens of the vocabulary", group="data", low=2)
    min_frequency: int = option(1, "rarer tokens become <unk>", group="data", low=1)

    schedule: Literal["cosine", "linear", "constant"] = option(
        "linear", "how the learning rate falls over the run", group="optimisation"
    )
    truncation: Literal["none", "fixed", "variable", "randomized"] = option(
        "fixed", "how backpropagation through time is cut; docs/truncation.md", group="truncation"
    )
    state: Literal["kept", "fresh", "documents"] | None = option(  # type: ignore[assignment]
        None,
        "what a window begins with: the state before it, or the initial one; documents keeps it and begins anew "
        "at each document; by default kept, of random minibatches fresh",
        group="truncation",
    )
    document_end: str | None = option(
        None, "the token that ends a document; by default each file, or record of it, is one", group="truncation"
    )

    embedding_size: int | None = option(
        None,
        "width of the token vectors; by default the hidden size for words, at most 128 for characters",
        group="model",
        low=1,
    )
    tied: bool = option(False, "one matrix for the token vectors and the output", group="model")

    softmax: Literal["full", "adaptive"] = option(
        "full", "adaptive gives rare tokens fewer dimensions; for large vocabularies of words", group="model"
    )
    mixtures: int = option(1, "softmaxes whose mixture predicts a token", group="model", low=1)
    hidden_sizes: tuple[int, ...] | None = option(
        None, "units of each layer, in place of --hidden-size and --num-layers: 1150,1150,400", group="model", low=1
    )
    mogrify: int = option(
        0, "rounds in which input and output gate each other before each step: 5 in the paper", group="model", low=0
    )
    mogrify_rank: int = option(0, "rank of the matrices that do so; 0: full", group="model", low=0)
    locked_dropout: tuple[float, ...] | None = option(
        None,
        "in place of --dropout, with a mask for all steps of a window: one share, or those of the token vectors and of "
        "each layer's output",
        group="model",
        low=0,
        below=1,
    )
    embedding_dropout: float = option(
        0.0, "share of the vocabulary dropped from a window's input", group="model", low=0, below=1
    )
    weight_dropout: float = option(0.0, "share of recurrent weights dropped", group="model", low=0, below=1)

    ar: float = option(0.0, "activation regularisation of the last layer's outputs", group="optimisation", low=0)
    tar: float = option(0.0, "the same of their changes from step to step", group="optimisation", low=0)
    minibatches: Literal["sequential", "random"] = option(
        "sequential",
        "sequential: lanes of text, the state carried from window to window; random: windows from anywhere",
        group="optimisation",
    )
    batch_size: int = option(8, "lanes or windows of text side by side", group="optimisation", low=1)
    learning_rate: float = option(0.003, "its peak", group="optimisation", above=0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        return self.hidden_sizes or (self.hidden_size,) * self.num_layers

    def check(self) -> None:
        if self.bidirectional:
            raise UsageError("--bidirectional: a language model reads forwards only, it must not see what it predicts")
        super().check()
        if self.document_end is not None and self.state != "documents":
            raise UsageError(f"--document-end is for --state documents, got {self.state or 'kept'}")
        if self.minibatches == "random":
            self._check_random()
        if self.validation_share + self.test_share >= 1:
            raise UsageError("--validation-share and --test-share leave nothing to train on")
        if self.tied and self.softmax != "full":
            raise UsageError(f"--tied is for --softmax full: {self.softmax} has no matrix of the token vectors' form")
        if self.tied and self.mixtures == 1 and self.embedding_size not in (None, self.sizes[-1]):
            which = "the last of --hidden-sizes" if self.hidden_sizes else "--hidden-size"
            raise UsageError(f"--tied needs --embedding-size = {which} = {self.sizes[-1]}, got {self.embedding_size}")
        self._check_model()

    def _check_model(self) -> None:
        """Options of the network that do not go together."""
        if self.mixtures > 1 and self.softmax != "full":
            raise UsageError(f"--mixtures is for --softmax full, got {self.softmax}")
        if self.hidden_sizes and self.num_layers not in (1, len(self.hidden_sizes)):
            raise UsageError(f"--hidden-sizes has {len(self.hidden_sizes)} layers, --num-layers says {self.num_layers}")
        if self.mogrify_rank and not self.mogrify:
            raise UsageError("--mogrify-rank needs --mogrify, the number of rounds")
        places = len(self.sizes) + 1
        if self.locked_dropout and len(self.locked_dropout) not in (1, places):
            raise UsageError(
                f"--locked-dropout must be one share, or {places}: of the token vectors and each layer's output, "
                f"got {len(self.locked_dropout)}"
            )
        if self.locked_dropout and self.dropout:
            raise UsageError("--dropout and --locked-dropout exclude each other")

    def _check_random(self) -> None:
        """Random windows have nothing before them, and are read at once."""
        wrong = {
            f"--truncation {self.truncation}": self.truncation not in ("none", "fixed"),
            f"--backward {self.backward}": self.backward is not None,
            f"--burn-in {self.burn_in}": self.burn_in > 0,
            f"--state {self.state}": self.state not in (None, "fresh"),
        }
        if unfit := " and ".join(option for option, is_wrong in wrong.items() if is_wrong):
            raise UsageError(
                f"--minibatches random reads windows of --window steps, each whole and from a fresh state; "
                f"it cannot go with {unfit}"
            )


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of ``elman evaluate`` for a language model."""

    run: str = option(dataclasses.MISSING, "the run folder", positional=True)
    data: str | None = option(None, "a text to score as a whole; by default the run's test part, else validation")
    pattern: str = option("*", "which files of a folder")
    data_format: Literal["text", "jsonl", "csv", "tsv", "parquet"] | None = option(
        None, "what the files of --data hold; by default their names tell"
    )
    field: str = option("text", "which column or key of a record is the text")
    processes: int | None = option(None, "that read and tokenise; by default one a core", low=1)
    part: Literal["train", "validation", "test"] | None = option(None, "a part of the run's own data")
    format: Literal["text", "json"] = option("text", "how to print the metrics on standard output")
    batch_size: int | None = option(
        None, "lanes scored side by side; by default 64, or 1 with --cache-size or --dynamic-rate", low=1
    )
    cache_size: int = option(0, "tokens that a cache pointer remembers; 0 for none", group="adaptation", low=0)
    cache_theta: float = option(0.3, "how sharply the cache prefers similar states", group="adaptation", low=0)
    cache_share: float = option(0.1, "weight of the cache's prediction", group="adaptation", above=0, below=1)
    dynamic_rate: float = option(0.0, "learning rate of dynamic evaluation; 0 for none", group="adaptation", low=0)
    dynamic_decay: float = option(
        0.001, "share of the way back to the trained model, a step", group="adaptation", low=0, below=1
    )
    window: int | None = option(
        None, "steps read at a time, and learned from in dynamic evaluation; by default the run's", low=1
    )
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")

    def check(self) -> None:
        if self.data is not None and self.part is not None:
            raise UsageError("--part chooses from the run's own data; leave it out with --data")


@dataclass(frozen=True)
class GenerateOptions(Options):
    """Options of ``elman generate``."""

    run: str = option(dataclasses.MISSING, "the run folder", positional=True)
    prime: str = option("", "the text to continue")
    length: int = option(500, "tokens to make", low=0)
    greedy: bool = option(False, "always take the likeliest token")
    temperature: float = option(1.0, "below 1 is safer, above 1 wilder; 0 is greedy", low=0)
    top_k: int | None = option(None, "choose among the k likeliest tokens", low=1)
    top_p: float | None = option(None, "choose among the likeliest tokens that hold this probability", above=0, high=1)
    seed: int | None = option(None, "makes the sample repeatable", low=0, high=2**63 - 1)
    stop: str | None = option(None, "end where this text would appear")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")


TASK = Task(
    name="lm",
    aliases=("language-model",),
    summary="language model: predicts the next character, word or byte pair of a text",
    config=LanguageModelConfig,
    options={"evaluate": EvaluateOptions, "generate": GenerateOptions},
    module="elman.tasks.language_model.commands",
)
