"""What the tasks' models have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from elman.engine.dispatch import explain
from elman.errors import UsageError, UserError
from elman.nn.recurrent import Recurrent
from elman.train.run import RunFolder


def check_engine(recurrent: Recurrent) -> None:
    """Raises UsageError where ELMAN_ENGINE names no engine, or one that cannot run this cell."""
    try:
        explain(recurrent)
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def engines_of(recurrent: Recurrent, batch_size: int) -> str:
    """The names of the engines that train the layers with such batches."""
    weight = next(recurrent.parameters())
    one_step = torch.zeros(1, batch_size, recurrent.input_size, device=weight.device)
    return ", ".join(dict.fromkeys(explain(recurrent, one_step).engines))


def load_best(run: RunFolder, model: nn.Module) -> dict[str, Any]:
    """Give a model the best parameters of a run; returns what is known about them.

    Raises:
        UserError: there are none, or they do not fit.
    """
    tensors, about = run.load_model()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{run.model} does not fit {run.config}: {str(error).splitlines()[-1].strip()}") from None
    return about
