"""Gradients by way of the reference engine, so that they can be differentiated again, as those of kernels cannot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elman.engine import reference
from elman.engine.call import Direction, LayerCall
from elman.engine.form import Scene


def through_reference(scene: Scene, inputs: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> list[Any]:
    """The gradients by way of the reference engine, so that they can be differentiated again."""
    names = tuple(inputs)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        call, _ = _as_call(scene, dict(zip(names, tensors, strict=True)))
        (result,) = reference.run(call)
        return [*result.sequences, *result.state]

    by_name = dict(zip(names, differentiated(run, tuple(inputs.values()), gradients), strict=True))
    return [by_name.get(n) for n in scene.names]


def differentiated(
    run: Callable[[list[Tensor]], list[Tensor]], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of tensors from those of what a run makes of them; where gradients are on, differentiable again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Tensors of its own: a state may come from the same input or parameters, by a way that is not of this run.
        own = [v.view_as(v) for v in tensors]
        pairs = [(v, g) for v, g in zip(run(own), gradients, strict=True) if g is not None and v.requires_grad]
        wanted = [k for k, v in enumerate(own) if v.requires_grad]
        found = torch.autograd.grad(
            [v for v, _ in pairs],
            [own[k] for k in wanted],
            [g for _, g in pairs],
            create_graph=again,
            allow_unused=True,
        )
    by_place = dict(zip(wanted, found, strict=True))
    return [by_place.get(k) for k in range(len(own))]


def _as_call(scene: Scene, inputs: Mapping[str, Tensor]) -> tuple[LayerCall, Direction]:
    def named(kind: str) -> dict[str, Tensor]:
        return {n.partition(".")[2]: v for n, v in inputs.items() if n.startswith(f"{kind}.")}

    state, below = tuple(named("state").values()) or None, named("below")
    direction = Direction(named("parameter"), state, scene.reverse, below, scene.draws)
    given = named("default")
    if given:
        fixed = reference.default_state(scene.call.layout, 1, inputs["input"])
        entries = scene.call.layout.states
        direction.default = tuple(given.get(e.name, v[0]) for (e, _), v in zip(entries, fixed, strict=True))
    call = scene.call
    made = LayerCall(
        call.cell,
        call.layout,
        call.packing,
        inputs["input"],
        call.reset,
        named("extra"),
        (direction,),
        scene.wanted > 1 or len(call.layout.states) == 1,
    )
    return made, direction
