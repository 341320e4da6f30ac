"""What a checkpoint holds: all that a trainer needs to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from elman.errors import UsageError, UserError
from elman.train.course import Place
from elman.train.position import Position
from elman.train.randomness import random_state, set_random_state
from elman.train.trees import map_tensors

if TYPE_CHECKING:
    from elman.train.trainer import Trainer


def own(trainer: Trainer) -> dict[str, Any]:
    """What each process has of its own."""
    return {"carry": trainer.course.carry, "random": random_state()}


def take(trainer: Trainer, processes: list[Any]) -> dict[str, Any]:
    """The whole tree; ``processes`` is what each has of its own, in order of rank."""
    return {
        "model": dict(trainer.job.model.state_dict()),
        "updater": trainer.updater.state(),
        "average": trainer.average.state(),
        "place": asdict(trainer.course.place),
        "position": trainer.at.save(),
        "processes": processes,
        "fingerprint": trainer.job.fingerprint,
        "keepsakes": trainer.job.keepsakes(),
    }


def restore(trainer: Trainer, tree: Any) -> None:
    """Put a trainer where the tree was taken.

    Raises:
        UsageError: it was taken on other data, or by another number of processes.
        UserError: it does not fit the model.
    """
    path, world = trainer.run.path, trainer.world
    try:
        if tree["fingerprint"] != trainer.job.fingerprint:
            raise UsageError(f"cannot resume {path}: --data is not the data that the run was trained on")
        if (count := len(tree["processes"])) != world.size:
            raise UsageError(f"cannot resume {path}: it had {count} processes, now {world.size}")
        ours = tree["processes"][world.rank]
        trainer.job.model.load_state_dict(tree["model"])
        trainer.updater.restore(tree["updater"])
        trainer.average.restore(tree["average"])
        trainer.course.carry = map_tensors(partial(Tensor.to, device=world.device), ours["carry"])
        trainer.course.place = Place(**tree["place"])
        trainer.at = Position.load(tree["position"])
        set_random_state(ours["random"])
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"the checkpoint in {path} does not fit: {str(error).splitlines()[0]}") from None
