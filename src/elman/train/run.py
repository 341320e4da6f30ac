"""The run folder: everything that a training run leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from elman.errors import UsageError, UserError
from elman.train import options
from elman.train.checkpoint import Checkpoints, partial_of, write_atomically
from elman.train.config import TrainConfig

AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)


class RunFolder:
    """Paths and files of one run.

    ``config.yaml``, ``tokenizer.json`` (where the task has one), ``model.safetensors`` (the best model),
    ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` (the last ones and the best).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.tokenizer = self.path / "tokenizer.json"
        self.model = self.path / "model.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    @classmethod
    def named(cls, path: str | None, task: str) -> RunFolder:
        """The folder at ``path``, or a new one under ``runs``."""
        name = path or f"runs/{task}-{time.strftime('%Y%m%d-%H%M%S')}"
        return cls(name)

    def load_config(self, kind: type[AnyConfig]) -> AnyConfig:
        """The configuration that the run was made with. Raises UserError where it is damaged."""
        task = options.saved_task(self.path)
        try:
            return kind(**options.read_yaml(self.config, kind, {"task": task}))  # type: ignore[arg-type]
        except UsageError as error:
            raise UserError(f"{self.config} is damaged: {error}") from None

    def save_model(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Keep the best model. ``about`` (its step and metrics) goes into the file's metadata."""
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomically(self.model, safetensors.torch.save(plain, {"format": "pt", "elman": json.dumps(about)}))

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The best model's tensors and what is known about it. Raises UserError where it is missing or damaged."""
        try:
            with safetensors.safe_open(self.model, framework="pt") as file:
                about = json.loads((file.metadata() or {})["elman"])
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            raise UserError(
                f"{self.path} has no model yet: {self.model.name} is written at the first evaluation"
            ) from None
        except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{self.model} is damaged: {error}") from None

    def check(self, task: str, resume: bool) -> bool:
        """Whether there is a checkpoint to go on from. Changes nothing.

        Raises:
            UsageError: the folder holds something and ``resume`` is false, or it is another task's run.
            UserError: it is no run folder, or a damaged one.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run {self.path} is a file, not a folder")
        unwritten = partial_of(self.config)  # of a run killed while it wrote its first file
        if not self.path.is_dir() or all(file == unwritten for file in self.path.iterdir()):
            return False
        if not resume:
            raise UsageError(f"the run folder {self.path} exists; add --resume to continue it, or choose another --run")
        saved = options.saved_task(self.path)
        if saved != task:
            raise UsageError(f"{self.path} is a run of task {saved}, not {task}")
        return bool(self.checkpoints.files())

    def begin(self, config: TrainConfig, task: str, resuming: bool) -> None:
        """Make the folder ready. What an earlier start left without a checkpoint gets the suffix ``.before``."""
        for file in (self.model, self.metrics):
            if file.exists() and not resuming:
                file.replace(file.with_name(file.name + ".before"))
        write_atomically(self.config, options.to_yaml(config, {"task": task}).encode())


def open_run(
    kind: type[AnyConfig], given: Mapping[str, Any], task: str, say: Callable[[str], None]
) -> tuple[AnyConfig, RunFolder, bool]:
    """The whole configuration, the run folder, and whether training goes on from a checkpoint. Writes nothing.

    When a run is resumed its own configuration is the base of the ``given`` options.

    Raises:
        UsageError: an option does not fit the run that is resumed, or the folder must not be used.
        UserError: the folder is damaged.
    """
    config = kind(**given)
    run = RunFolder.named(config.run, task)
    resuming = run.check(task, config.resume)
    if config.resume and run.config.exists():
        saved = run.load_config(kind)
        config = replace(saved, **given)
        changed = [
            f"{options.dashed(field.name)} ({getattr(saved, field.name)} in the run, now {getattr(config, field.name)})"
            for field in fields(config)
            if not field.metadata["resumable"] and getattr(saved, field.name) != getattr(config, field.name)
        ]
        if resuming and changed:
            raise UsageError(f"cannot resume {run.path} with another configuration: {', '.join(changed)}")
    if config.resume and not resuming:
        say(f"{run.path} has no checkpoint: starting afresh")
    if config.epochs is config.max_steps is config.max_minutes is None:
        config = replace(config, epochs=config.default_epochs)
    return config, run, resuming
