"""The options that every task's training shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elman import cells
from elman.errors import UsageError
from elman.train.options import Options, option


@dataclass(frozen=True)
class TrainConfig(Options):
    """Shared options of ``elman train``. A task's own options extend them, and may change the defaults."""

    run: str | None = option(
        None, "the run folder; by default runs/TASK-TIME", group="run", saved=False, resumable=True
    )
    resume: bool = option(
        False, "continue the run in --run from its last checkpoint", group="run", saved=False, resumable=True
    )
    seed: int = option(0, "seed of weights, dropout and order", group="run", low=0, high=2**63 - 1)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one", group="run", resumable=True)

    devices: int = option(1, "processes on this machine, each with a device of its own, or cores", group="run", low=1)
    nodes: int = option(1, "machines; the same command runs on each, see docs/training.md", group="run", low=1)

    shard: bool = option(
        False,
        "divide token vectors and full softmax among the processes, with their gradients and optimiser; "
        "docs/training.md",
        group="run",
        resumable=True,
    )

    cell: str = option("lstm", "the recurrent cell, as `elman cells` lists them, or MODULE:CLASS", group="model")
    hidden_size: int = option(512, "units of a layer", group="model", low=1)
    num_layers: int = option(1, "layers", group="model", low=1)
    bidirectional: bool = option(False, "also read each sequence backwards", group="model")
    dropout: float = option(0.0, "share of values dropped between layers", group="model", low=0, below=1)

    epochs: int | None = option(None, "passes over the training data", group="limits", low=1, resumable=True)
    max_steps: int | None = option(None, "optimiser steps", group="limits", low=1, resumable=True)
    max_minutes: float | None = option(
        None, "minutes of training and its evaluations", group="limits", above=0, resumable=True
    )
    patience: int | None = option(
        None, "stop after this many evaluations without a better one", group="limits", low=1, resumable=True
    )

    truncation: Literal["none", "fixed", "variable", "randomized"] = option(
        "none", "how backpropagation through time is cut; docs/truncation.md", group="truncation"
    )
    window: int = option(64, "steps between updates; their mean where they vary", group="truncation", low=1)
    backward: int | None = option(
        None, "steps a gradient flows back, of fixed; by default the window", group="truncation", low=1
    )
    cut_every: int | None = option(
        None,
        "steps between places where randomized may cut; by default an eighth of the window",
        group="truncation",
        low=1,
    )
    burn_in: int = option(0, "steps read again before each window to warm the state", group="truncation", low=0)
    state: Literal["kept", "fresh"] = option(
        "kept", "what a window begins with: the state before it, or the initial one", group="truncation"
    )

    batch_size: int = option(32, "sequences side by side", group="optimisation", low=1)
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", "the optimiser", group="optimisation")
    learning_rate: float = option(0.003, "its peak", group="optimisation", above=0)
    schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine", "how the learning rate falls over the run", group="optimisation"
    )
    warmup: float = option(
        0.02, "share of the run in which the learning rate rises", group="optimisation", low=0, below=1
    )
    momentum: float = option(0.0, "of sgd", group="optimisation", low=0, below=1)
    weight_decay: float = option(0.0, "weight decay", group="optimisation", low=0)
    clip: float = option(1.0, "largest norm of the gradient; 0 leaves it alone", group="optimisation", low=0)
    accumulate: int = option(1, "windows or batches whose gradients make one step", group="optimisation", low=1)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "of the products in training; weights and states stay fp32", group="optimisation"
    )
    average: Literal["none", "ema", "swa", "asgd"] = option(
        "none", "mean of the weights that is scored and kept; docs/training.md", group="averaging"
    )
    average_decay: float = option(0.999, "of ema, per step", group="averaging", above=0, below=1)
    average_start: float = option(0.75, "share of the run before swa begins", group="averaging", low=0, below=1)
    average_patience: int = option(5, "evaluations without a better one before asgd begins", group="averaging", low=1)

    diverged: float = option(
        4.0,
        "stop when the mean loss is this many times that of the first steps; 0: never",
        group="faults",
        low=0,
        resumable=True,
    )
    roll_back: int = option(
        0,
        "times to go back to the last checkpoint, with half the learning rate, when the loss is NaN or diverges",
        group="faults",
        low=0,
        resumable=True,
    )
    keep: int = option(2, "checkpoints kept, beside that of the best model", group="faults", low=1, resumable=True)

    evaluate_every: int | None = option(
        None,
        "steps between evaluations; by default ten a run, fewer where they would take a twentieth of --max-minutes",
        group="reports",
        low=1,
        resumable=True,
    )
    checkpoint_every: int | None = option(
        None, "steps between checkpoints; there is one at each evaluation too", group="reports", low=1, resumable=True
    )
    log_every: int = option(50, "steps between training lines in metrics.jsonl", group="reports", low=1)

    default_epochs = 10  # of a run without a limit; no option, but a task may change it

    @property
    def links(self) -> int:
        """Steps between two places where ``randomized`` may cut."""
        return self.cut_every or max(self.window // 8, 1)

    def check(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise UsageError(f"--momentum is for --optimizer sgd, got {self.optimizer}")
        if self.shard and self.precision == "fp16":
            raise UsageError("--shard goes with --precision fp32 and bf16, not fp16: its processes would scale apart")
        if self.resume and self.run is None:
            raise UsageError("--resume needs --run DIR, the run to continue")
        if self.backward is not None and self.truncation != "fixed":
            raise UsageError(f"--backward is for --truncation fixed, got {self.truncation}")
        if self.backward is not None and self.backward < self.window:
            raise UsageError(f"--backward must be at least --window {self.window}, got {self.backward}")
        if self.cut_every is not None and self.truncation != "randomized":
            raise UsageError(f"--cut-every is for --truncation randomized, got {self.truncation}")
        if self.truncation == "randomized" and self.links > self.window // 2:
            raise UsageError(f"--cut-every must be at most half of --window {self.window}, got {self.links}")
        if self.burn_in and self.truncation == "none":
            raise UsageError("--burn-in is for truncated sequences; add --truncation fixed, variable or randomized")
        if self.bidirectional and self.truncation != "none":
            raise UsageError("--bidirectional reads whole sequences; it needs --truncation none")
        try:
            cells.get(self.cell)
        except ValueError as error:
            raise UsageError(str(error)) from None
