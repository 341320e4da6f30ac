"""How every task's training begins: processes, run folder, checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from elman.errors import UsageError, UserError
from elman.nn.divided import divide
from elman.train import world
from elman.train.config import TrainConfig
from elman.train.job import Job
from elman.train.position import Position
from elman.train.progress import Reporter
from elman.train.run import AnyConfig, RunFolder, open_run
from elman.train.trainer import Trainer
from elman.train.world import World

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass
class Session(Generic[AnyConfig]):
    """What a task needs to make its job.

    Attributes:
        config: all options, those of a resumed run included.
        task: its name.
        run: the run folder.
        resuming: whether training goes on from a checkpoint.
        tree: that checkpoint until the trainer has it, or None.
        reporter: what the user sees; silent in all processes but the first.
        world: the processes that train together.
    """

    config: AnyConfig
    task: str
    run: RunFolder
    resuming: bool
    tree: Any
    reporter: Reporter
    world: World

    def seed(self) -> None:
        """Seed what draws the model's first weights: alike in all processes."""
        torch.manual_seed(self.config.seed)

    def place(self, model: AnyModel) -> AnyModel:
        """The model on this process's device; divided among the processes if --shard asks for it.

        Raises:
            UsageError: it cannot be divided.
        """
        if self.config.shard:
            if self.world.size == 1:
                raise UsageError("--shard divides a model among several processes: add --devices N or --nodes N")
            try:
                divide(model, self.world)
            except ValueError as error:
                raise self.world.told(UsageError(f"--shard: {error}")) from None
        return model.to(self.world.device)

    def trainer(self, job: Job) -> Trainer:
        """The trainer, at the checkpoint if there is one; the run folder is ready after it."""
        torch.manual_seed(self.config.seed + self.world.rank)  # dropout differs from process to process
        trainer = Trainer(job, self.config, self.run, self.reporter, self.world)
        if self.tree is not None:
            trainer.restore(self.tree)
            self.tree = None  # as large as all that is trained
        self.world.first(lambda: self.run.begin(self.config, self.task, self.resuming))
        return trainer

    def going_on(self, at: Position) -> str:
        """The end of the first line: where a resumed run goes on."""
        return f"; going on after step {at.step}" if self.resuming else ""


@contextmanager
def session(kind: type[AnyConfig], given: Mapping[str, Any], task: str) -> Iterator[Session[AnyConfig]]:
    """Open a task's training with the ``given`` options.

    Raises:
        UserError: as :func:`elman.train.run.open_run`, or every checkpoint is damaged.
    """
    asked: TrainConfig = kind(**given)
    together = world.start(asked)
    if asked.precision == "fp16" and together.device.type == "cpu":
        raise UsageError("--precision fp16 is for CUDA devices; on the CPU there is bf16")
    with Reporter(sys.stderr if together.rank == 0 else open(os.devnull, "w")) as reporter:

        def prepare() -> tuple[AnyConfig, RunFolder, bool, Any]:
            config, run, resuming = open_run(kind, given, task, reporter.say)
            return config, run, resuming, run.checkpoints.load_latest(reporter.say) if resuming else None

        config, run, resuming, tree = together.first(prepare)
        try:
            yield Session(config, task, run, resuming, tree, reporter, together)
        except UserError as error:
            if together.rank and str(error):
                raise UserError(f"process {together.rank} of {together.size}: {error}", error.status) from None
            raise
