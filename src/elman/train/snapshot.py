"""What a checkpoint holds: all that a trainer needs to go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from elman.errors import UsageError, UserError
from elman.nn.divided import Rows
from elman.train.course import Place
from elman.train.position import Position
from elman.train.randomness import random_state, set_random_state
from elman.train.trees import map_tensors

if TYPE_CHECKING:
    from elman.train.trainer import Trainer


def own(trainer: Trainer) -> dict[str, Any]:
    """What each process has of its own."""
    return {"carry": trainer.course.carry, "random": random_state()}


def take(trainer: Trainer) -> dict[str, Any]:
    """The whole tree, in the first process; the others must call it too."""
    processes = trainer.world.gather(own(trainer))
    return {
        **over_divided(trainer.world.whole, trainer, weights(trainer)),
        "place": asdict(trainer.course.place),
        "position": trainer.at.save(),
        "processes": processes,
        "fingerprint": trainer.job.fingerprint,
        "keepsakes": trainer.job.keepsakes(),
    }


def weights(trainer: Trainer) -> dict[str, Any]:
    """All tensors of the size of weights, of which this process may have some rows only."""
    return {
        "model": dict(trainer.job.model.state_dict()),
        "updater": trainer.updater.state(),
        "average": trainer.average.state(),
    }


def model(trainer: Trainer) -> dict[str, Tensor]:
    """The model's tensors, whole in the first process; the others must call it too."""
    return _by_name(trainer.world.whole, trainer.updater.rows, trainer.job.model.state_dict())


def over_divided(function: Callable[[Tensor, Rows], Tensor], trainer: Trainer, tree: Any) -> dict[str, Any]:
    """What :func:`weights` gives, or its like, with ``function`` applied to the tensors whose rows are divided."""
    rows = trainer.updater.rows
    if not rows:
        return {key: tree[key] for key in ("model", "updater", "average")}
    names = [name for name, parameter in trainer.job.model.named_parameters() if parameter.requires_grad]
    optimizer = tree["updater"]["optimizer"]
    states = {}
    for number, state in optimizer["state"].items():
        mine = rows.get(names[number])
        states[number] = {
            key: function(value, mine) if mine and isinstance(value, Tensor) and value.dim() else value
            for key, value in state.items()
        }
    return {
        "model": _by_name(function, rows, tree["model"]),
        "updater": {**tree["updater"], "optimizer": {**optimizer, "state": states}},
        "average": {**tree["average"], "weights": _by_name(function, rows, tree["average"]["weights"])},
    }


def own_rows(whole: Tensor, rows: Rows) -> Tensor:
    """This process's; a copy, so that nothing keeps the whole. Raises ValueError where there are not as many."""
    if len(whole) != rows.whole:
        raise ValueError(f"{len(whole)} rows where {rows.whole} are divided")
    return whole[rows.start : rows.stop].clone()


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
        ours_of = over_divided(own_rows, trainer, tree)
        trainer.job.model.load_state_dict(ours_of["model"])
        trainer.updater.restore(ours_of["updater"])
        trainer.average.restore(ours_of["average"])
        trainer.course.carry = map_tensors(partial(Tensor.to, device=world.device), ours["carry"])
        trainer.course.place = Place(**tree["place"])
        trainer.at = Position.load(tree["position"])
        set_random_state(ours["random"])
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"the checkpoint in {path} does not fit: {str(error).splitlines()[0]}") from None


def _by_name(
    function: Callable[[Tensor, Rows], Tensor], rows: Mapping[str, Rows], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {name: function(tensor, rows[name]) if name in rows else tensor for name, tensor in tensors.items()}
