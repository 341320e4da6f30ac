"""The cpu engine: compiled kernels for any cell, forward and backward, and the large products around them."""

import functools
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elman.compiler import build
from elman.compiler.graph import CannotCompile
from elman.compiler.plan import Plan
from elman.engine import backward, double_backward, forward, threads
from elman.engine.backward import Backward, backward_of
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.form import Scene, abreast, default_names, form_of, parameter_names, state_names, tensors_of
from elman.engine.forward import forward_of
from elman.engine.products import tools
from elman.engine.sinks import REALS
from elman.engine.surroundings import obstacle, sees_operations, wants_operations

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
    if sees_operations(call.input):
        return f"the input is a {type(call.input).__name__}, which takes each operation itself"
    problem = obstacle()
    if problem is not None:
        return f"the cpu engine's kernels are no operations of torch's, and {problem}"
    try:
        plan = plan_of(call)
    except CannotCompile as error:
        return f"{call.cell!r} cannot be compiled: {error}"
    if plan.integer:
        steps = [v for d in call.directions for v in d.state or () if v.dtype == torch.int64]
        if any(int(v.max()) + call.packing.steps >= 1 << 24 for v in steps):
            return "the step index passes 2^24, beyond which the kernels cannot count"
        if any(int(v.min()) < 0 for v in steps):
            return "the step index is below zero, where the kernels do not count"
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
        advice = "; install a compiler (Debian: apt install g++; pip: ziglang, with CXX='python -m ziglang c++')"
    except build.BuildError as error:
        problem, advice = str(error), ""
    warnings.warn(f"Elman's kernels cannot be compiled: {problem}. Layers run on slower engines{advice}", stacklevel=2)
    return problem


@functools.cache
def tools_problem(dtype: torch.dtype) -> str | None:
    """Why what all kernels of a dtype share cannot be built, or None."""
    try:
        tools(dtype)
    except build.BuildError as error:
        return str(error)
    return None


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
    under_way: list[build.Build] = []
    problems: list[str] = []
    try:
        under_way += (build.start(kernel.source, REALS[dtype]) for kernel in kernels)
        tools(dtype)
    except build.BuildError as error:
        problems.append(str(error))
    for started in under_way:
        try:
            started.result()
        except build.BuildError as error:
            problems.append(str(error))
    if not problems:
        return None
    warnings.warn(
        f"Elman's kernels for {plan.cell!r} cannot be built: {problems[0]}. It runs on a slower engine", stacklevel=2
    )
    return problems[0]


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
    found: list[DirectionResult] = []
    for scenes, inputs in scenes_of(call, plan_of(call)):
        tensors = [v for given in inputs for v in given.values()]
        run = _Recurrence.apply if scenes[0].training else _without_gradients
        results = run(scenes, *tensors)
        counts = [scene.wanted + len(scene.plan.layout.states) for scene in scenes]
        for scene, own in zip(scenes, _shared_out(results, counts), strict=True):
            found.append(DirectionResult(tuple(own[: scene.wanted]), tuple(own[scene.wanted :])))
    return found


Scenes = Sequence[Scene]


def scenes_of(call: LayerCall, plan: Plan) -> list[tuple[Scenes, list[dict[str, Tensor]]]]:
    """What runs of a call's directions know, and the tensors that each is given, by `Scene.names`.

    Directions that are one operation stand together: all, unless gradients are wanted of one alone.
    """
    given = [_inputs_of(call, direction) for direction in call.directions]
    recorded = torch.is_grad_enabled()
    training = [recorded and any(v.requires_grad for v in inputs.values()) for inputs in given]
    wanted = len(call.layout.states) if call.every_state else 1
    together = len(set(training)) == 1
    at_once = together and abreast(call)
    workers = threads.count() // 2 if at_once else threads.count()
    scenes = [
        Scene(call, plan, direction.reverse, tuple(inputs), wanted, trained, direction.draws, at_once, workers)
        for direction, inputs, trained in zip(call.directions, given, training, strict=True)
    ]
    if together:
        return [(scenes, given)]
    return [([scene], [inputs]) for scene, inputs in zip(scenes, given, strict=True)]


def _inputs_of(call: LayerCall, direction: Direction) -> dict[str, Tensor]:
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
    return inputs


def _shared_out(items: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """So many of some items each, one after the other."""
    ends = list(itertools.accumulate(counts, initial=0))
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def _by_name(scenes: Scenes, tensors: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """What each direction is given, by `Scene.names`."""
    own = _shared_out(tensors, [len(scene.names) for scene in scenes])
    return [dict(zip(scene.names, given, strict=True)) for scene, given in zip(scenes, own, strict=True)]


def _without_gradients(scenes: Scenes, *tensors: Tensor) -> Sequence[Tensor]:
    return _forward(scenes, tensors)[0]


def _forward(scenes: Scenes, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The results of each direction, and what backward needs of each beside the inputs."""
    given = [tensors_of(*pair) for pair in zip(scenes, _by_name(scenes, tensors), strict=True)]
    programs = [forward_of(form_of(*pair)) for pair in zip(scenes, given, strict=True)]
    made = forward.run(scenes[0].call.packing, *zip(programs, given, strict=True))
    kept = [{n: v for n, v in all_made.items() if not n.startswith("final.")} for _, all_made in made]
    return [v for results, _ in made for v in results], kept


def _backward(
    scene: Scene,
    inputs: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    gradients: Sequence[Tensor | None],
    over: bool,
) -> tuple[Backward, dict[str, Tensor]]:
    """The program that gives the gradients of the inputs, and what it is given.

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
    return backward_of(form, tensors), tensors


class _Recurrence(torch.autograd.Function):
    """The directions of a layer as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, scenes: Scenes, *tensors: Tensor) -> Any:
        results, kept = _forward(scenes, tensors)
        ctx.set_materialize_grads(False)
        if scenes[0].plan.integer:
            ctx.mark_non_differentiable(*(v for v in results if not v.is_floating_point()))
        ctx.scenes, ctx.count = scenes, len(tensors)
        ctx.kept_names = [tuple(one) for one in kept]
        ctx.own = [Own(one.get("saved")) for one in kept]
        ctx.save_for_backward(*tensors, *(v for one in kept for v in one.values()))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        scenes = ctx.scenes
        saved = ctx.saved_tensors
        inputs = _by_name(scenes, saved[: ctx.count])
        given = _shared_out(gradients, [s.wanted + len(s.plan.layout.states) for s in scenes])
        # A direction that nothing is wanted of has no gradients.
        used = [k for k, own in enumerate(given) if any(g is not None for g in own)]
        found: list[dict[str, Tensor | None]] = [{} for _ in scenes]
        again = wants_operations(gradients)
        if again:
            for k in used:
                found[k] = dict(
                    zip(inputs[k], double_backward.through_reference(scenes[k], inputs[k], given[k]), strict=True)
                )
        else:
            values = _shared_out(saved[ctx.count :], [len(names) for names in ctx.kept_names])
            runs = []
            for k in used:
                kept = dict(zip(ctx.kept_names[k], values[k], strict=True))
                over = may_write_over(ctx.own[k], scenes[k].plan, kept.get("saved"))
                program, tensors = _backward(scenes[k], inputs[k], kept, given[k], over)
                runs.append((program, tensors, program.program.make(scenes[k].call.packing)))
            for k, gradients_of in zip(used, backward.Work(scenes[0].call.packing, *runs).run(), strict=True):
                found[k] |= gradients_of
        sum_of_inputs(found, in_place=not again)
        named = [(one, n) for scene, one in zip(scenes, found, strict=True) for n in scene.names]
        return (
            None,
            *(one.get(n) if need else None for (one, n), need in zip(named, ctx.needs_input_grad[1:], strict=True)),
        )


def sum_of_inputs(found: Sequence[dict[str, Any]], in_place: bool) -> None:
    """Put the gradients of the input, which all directions read, together in the first that has one."""
    having = [one for one in found if one.get("input") is not None]
    for one in having[1:]:
        total, more = having[0]["input"], one.pop("input")
        having[0]["input"] = total.add_(more) if in_place else total + more


class Own:
    """Of one direction, what `may_write_over` looks at."""

    def __init__(self, saved: Tensor | None) -> None:
        self.address = 0 if saved is None else saved.data_ptr()
        self.spent = False


def may_write_over(own: Own, plan: Plan, saved: Tensor | None) -> bool:
    """Whether the backward pass that is under way may write over what was saved for it, because no other one follows.

    Args:
        own: of what was saved, before hooks might put something of theirs in its place.
        saved: what there is of it now.

    Raises:
        RuntimeError: one before did.
    """
    if own.spent:
        raise RuntimeError("what this layer saved is gone: a backward pass before did not retain the graph")
    # torch has no public way to ask; without this one nothing is written over.
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    own.spent = plan.over and saved is not None and saved.data_ptr() == own.address and not keeps_graph()
    return own.spent
