"""The cpu engine: compiled kernels for any cell, forward and backward, and the large products around them."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.compiler.graph import CannotCompile
from elman.compiler.plan import Plan
from elman.engine import reference
from elman.engine.backward import backward_of
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.form import Scene, default_names, form_of, parameter_names, state_names, tensors_of
from elman.engine.forward import forward_of
from elman.engine.products import tools
from elman.engine.program import REALS

name = "cpu"


def why_not(call: LayerCall) -> str | None:
    """The reason why kernels cannot run the call, or None."""
    if call.input.device.type != "cpu":
        return f"the cpu engine does not run on {call.input.device.type}"
    if call.input.dtype not in REALS:
        return f"the cpu engine has no kernels for {call.input.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "the cpu engine does not run under autocast"
    if call.packing.batch == 0:
        return "the batch has no rows"
    try:
        plan = plan_of(call)
    except CannotCompile as error:
        return f"{call.cell!r} cannot be compiled: {error}"
    if plan.integer:
        steps = [v for d in call.directions for v in d.state or () if v.dtype == torch.int64]
        if any(int(v.max()) + call.packing.steps >= 1 << 24 for v in steps):
            return "the step index passes 2^24, beyond which the kernels cannot count"
    dtype = call.input.dtype
    return build_problem(dtype) or _kernel_problem(plan, _differentiates(call), dtype, build.instruction_set())


def rather_not(call: LayerCall) -> str | None:
    """No call that this engine can run is passed over."""
    return None


@functools.cache
def build_problem(dtype: torch.dtype) -> str | None:
    """Why nothing can be compiled here, or None; said once as a warning."""
    try:
        build.instruction_set()
        if build.compiler() is not None:
            return None
        problem = "no C++ compiler was found (g++, clang++, or the one that CXX names)"
    except build.BuildError as error:
        problem = str(error)
    warnings.warn(
        f"Elman's kernels cannot be compiled: {problem}. Layers run on slower engines; install a compiler "
        "(Debian: apt install g++; pip: ziglang, with CXX='python -m ziglang c++')",
        stacklevel=2,
    )
    return problem


@functools.lru_cache(maxsize=1024)
def _plan(cell: Any, layout: Any, below: tuple[tuple[str, int], ...]) -> Plan | CannotCompile:
    try:
        return Plan(cell, layout, dict(below))
    except CannotCompile as error:
        return error


def _differentiates(call: LayerCall) -> bool:
    """Whether autograd will ask for a call's gradients."""
    if not torch.is_grad_enabled():
        return False
    tensors = [call.input, *call.extras.values()]
    for direction in call.directions:
        tensors += [*direction.parameters.values(), *(direction.state or ()), *direction.below.values()]
    return any(v.requires_grad for v in tensors)


@functools.lru_cache(maxsize=4096)
def _kernel_problem(plan: Plan, training: bool, dtype: torch.dtype, isa: str) -> str | None:
    """Why a plan's kernels cannot be built, or None when they are there; said once as a warning."""
    kernels = [plan.training, plan.gradients] if training else [plan.inference]
    try:
        under_way = [build.start(kernel.source, REALS[dtype]) for kernel in kernels]
        tools(dtype)
        for started in under_way:
            started.result()
    except build.BuildError as error:
        warnings.warn(
            f"Elman's kernels for {plan.cell!r} cannot be built: {error}. It runs on a slower engine", stacklevel=2
        )
        return str(error)
    return None


def plan_of(call: LayerCall) -> Plan:
    """The compilation of a call's cell.

    Raises:
        CannotCompile: see its message.
    """
    reads = call.directions[0].below
    below = tuple((k, v.shape[1]) for k, v in reads.items()) if reads else ()
    plan = _plan(call.cell, call.layout, below)
    if isinstance(plan, CannotCompile):
        raise plan
    return plan


def run(call: LayerCall) -> list[DirectionResult]:
    """Run a layer; see `LayerCall` for shapes."""
    plan = plan_of(call)
    return [_run_direction(call, plan, direction) for direction in call.directions]


def _run_direction(call: LayerCall, plan: Plan, direction: Direction) -> DirectionResult:
    scene, inputs = scene_of(call, plan, direction)
    run = _Recurrence.apply if scene.training else _without_gradients
    results = run(scene, *inputs.values())
    return DirectionResult(tuple(results[: scene.wanted]), tuple(results[scene.wanted :]))


def scene_of(call: LayerCall, plan: Plan, direction: Direction) -> tuple[Scene, dict[str, Tensor]]:
    """What a run of one direction knows, and the tensors that it is given, by `Scene.names`."""
    inputs = {"input": call.input}
    inputs |= zip(parameter_names(call.layout), direction.parameters.values(), strict=True)
    if direction.state is not None:
        inputs |= zip(state_names(call.layout), direction.state, strict=True)
    if direction.default is not None and call.reset is not None:
        floats = [e.dtype == "float" for e, _ in call.layout.states]
        given = zip(default_names(call.layout), direction.default, floats, strict=True)
        inputs |= {name: v for name, v, is_float in given if is_float}
    if call.extras:
        inputs |= {f"extra.{k}": v for k, v in call.extras.items()}
    if direction.below:
        inputs |= {f"below.{k}": v for k, v in direction.below.items()}
    wanted = len(call.layout.states) if call.every_state else 1
    training = torch.is_grad_enabled() and any(v.requires_grad for v in inputs.values())
    return Scene(call, plan, direction.reverse, tuple(inputs), wanted, training, direction.draws), inputs


def _without_gradients(scene: Scene, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _forward(scene, dict(zip(scene.names, tensors, strict=True)))[0]


def _forward(scene: Scene, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The results, and what backward needs beside the inputs."""
    tensors = tensors_of(scene, inputs)
    results, made = forward_of(form_of(scene, tensors)).run(scene.call.packing, tensors)
    return results, {n: v for n, v in made.items() if not n.startswith("final.")}


def _backward(
    scene: Scene,
    inputs: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    gradients: tuple[Tensor | None, ...],
    over: bool,
) -> dict[str, Tensor]:
    """The gradients of the inputs, by name; those that are absent are zero.

    Args:
        over: whether to write over what is kept; see `may_write_over`.
    """
    tensors = tensors_of(scene, inputs)
    form = form_of(scene, tensors)
    tensors |= kept
    strides: list[int | None] = []
    for k, gradient in enumerate(gradients):
        if gradient is not None:
            if k >= scene.wanted or gradient.stride(1) != 1:
                gradient = gradient.contiguous()
            tensors[f"gradient.{k}"] = gradient
        strides.append(None if gradient is None else gradient.stride(0))
    form = form._replace(gradients=tuple(strides), through=inputs["input"].requires_grad, over=over)
    return backward_of(form, tensors).run(scene.call.packing, tensors)


class _Recurrence(torch.autograd.Function):
    """One direction of a layer as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, scene: Scene, *tensors: Tensor) -> Any:
        results, kept = _forward(scene, dict(zip(scene.names, tensors, strict=True)))
        ctx.set_materialize_grads(False)
        if scene.plan.integer:
            ctx.mark_non_differentiable(*(v for v in results if not v.is_floating_point()))
        ctx.scene = scene
        ctx.kept_names = tuple(kept)
        ctx.own = kept["saved"].data_ptr() if "saved" in kept else 0
        ctx.save_for_backward(*tensors, *kept.values())
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        scene = ctx.scene
        tensors = ctx.saved_tensors
        count = len(scene.names)
        inputs = dict(zip(scene.names, tensors[:count], strict=True))
        if torch.is_grad_enabled():
            return (None, *through_reference(scene, inputs, gradients))
        kept = dict(zip(ctx.kept_names, tensors[count:], strict=True))
        over = may_write_over(ctx, scene.plan, kept.get("saved"))
        found = _backward(scene, inputs, kept, gradients, over)
        return (
            None,
            *(found.get(n) if need else None for n, need in zip(scene.names, ctx.needs_input_grad[1:], strict=True)),
        )


def may_write_over(ctx: Any, plan: Plan, saved: Tensor | None) -> bool:
    """Whether the backward pass that is under way may write over what was saved for it, because no other one follows.

    Args:
        ctx: whose `own` is the address of the memory in which it was saved; what hooks put in its place is theirs.

    Raises:
        RuntimeError: one before did.
    """
    if getattr(ctx, "spent", False):
        raise RuntimeError("what this layer saved is gone: a backward pass before did not retain the graph")
    # torch has no public way to ask; without this one nothing is written over.
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    spent: bool = plan.over and saved is not None and saved.data_ptr() == ctx.own and not keeps_graph()
    ctx.spent = spent
    return spent


def through_reference(scene: Scene, inputs: Mapping[str, Tensor], gradients: tuple[Tensor | None, ...]) -> list[Any]:
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
    """The gradients of tensors, which can be differentiated again, from those of what a run makes of them."""
    with torch.enable_grad():
        # Tensors of its own: a state may come from the same input or parameters, by a way that is not of this run.
        own = [v.view_as(v) for v in tensors]
        pairs = [(v, g) for v, g in zip(run(own), gradients, strict=True) if g is not None and v.requires_grad]
        wanted = [k for k, v in enumerate(own) if v.requires_grad]
        found = torch.autograd.grad(
            [v for v, _ in pairs],
            [own[k] for k in wanted],
            [g for _, g in pairs],
            create_graph=True,
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
