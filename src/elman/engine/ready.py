"""A layer, ready to run on one form of call: nothing that the form decides is looked at again.

What runs for a call follows from shapes, strides and options, which the general way through `cpu.run` works out each
time. Python takes longer for that than a small layer takes to run. So a form of call that comes again is kept as a
`Ready`. Tensors are as the caller has them here, [T, B, *] and states [1, B, *], so that no views of them are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elman.engine import backward, cpu, double_backward, memory
from elman.engine.backward import Backward, backward_of
from elman.engine.call import LayerCall
from elman.engine.form import Scene, form_of, tensors_of
from elman.engine.forward import forward_of
from elman.engine.program import Run, run_all
from elman.engine.surroundings import wants_operations

Draws = Sequence[Mapping[str, Tensor]]


class Ready:
    """Runs of one layer.

    Args:
        call: one like those to come, which the cpu engine can run. It needs `fits`.
        beside: whether the outputs of two directions are wanted side by side.
    """

    def __init__(self, call: LayerCall, beside: bool) -> None:
        ((scenes, inputs),) = cpu.scenes_of(call, cpu.plan_of(call))
        packing, width = call.packing, call.layout.states[0][1]
        whole = width * len(scenes)
        self.directions = [
            _Direction(call, scene, given, (k * width, whole) if beside else None)
            for k, (scene, given) in enumerate(zip(scenes, inputs, strict=True))
        ]
        self.packing, self.training, self.width = packing, scenes[0].training, width
        shape = (packing.steps, packing.batch, whole)
        self.output = memory.Tensors([shape], call.input.dtype) if beside else None

    @staticmethod
    def fits(call: LayerCall) -> bool:
        """Whether such calls can be made ready: dense batches without anything that differs from call to call."""
        plan = cpu.plan_of(call)
        special = call.reset is not None or call.extras or any(d.below or d.default for d in call.directions)
        of_cell = plan.integer or plan.structured or plan.clock
        as_it_is = call.input.is_contiguous() or not plan.reads_input
        return as_it_is and not (special or of_cell) and call.packing.is_dense and len(cpu.scenes_of(call, plan)) == 1

    def run(self, x: Tensor, own: Sequence[Tensor], draws: Draws) -> Sequence[Tensor]:
        """The sequences of the first state, [T, B, width], then each direction's final states, [1, B, width] each.

        Args:
            x: the input, [T, B, I].
            own: by `Scene.names`, what each direction is given beside the input: parameters, then states
                [1, B, width]; with the strides of the call that this was made from.
            draws: for each direction and random choice, the table that `draws.rows` gives.

        Returns:
            One sequence for each direction, or one for both, side by side.
        """
        if self.training:
            return _Run.apply(self, draws, x, *own)  # type: ignore[no-untyped-call, no-any-return]
        results, _, runs = self.prepared(x, own, draws)
        run_all(self.packing, *runs)
        return results

    def prepared(
        self, x: Tensor, own: Sequence[Tensor], draws: Draws
    ) -> tuple[list[Tensor], list[dict[str, Tensor]], list[Run]]:
        """What `run` gives and all that each direction makes, before they are written, and the runs that write them."""
        outputs = [] if self.output is None else self.output.make()
        finals: list[Tensor] = []
        runs: list[Run] = []
        all_made: list[dict[str, Tensor]] = []
        for direction, given in zip(self.directions, self.by_name(x, own, draws), strict=True):
            made = direction.make()
            if self.output is None:
                outputs.append(direction.sequence(made))
            else:
                given["output"] = outputs[0]
            finals += direction.finals(made)
            runs.append((direction.program, given, made))
            all_made.append(made)
        return [*outputs, *finals], all_made, runs

    def gradients(self, given: Sequence[Tensor | None]) -> list[list[Tensor | None]]:
        """Of each direction those of its sequence and its final states, from those of what `run` gives."""
        count, width = len(self.directions), self.width
        if self.output is None:
            outputs, finals = list(given[:count]), given[count:]
        else:
            whole, *finals = given
            columns = [(k * width, (k + 1) * width) for k in range(count)]
            outputs = [None if whole is None else whole[..., start:end] for start, end in columns]
        each = len(finals) // count
        return [[output, *finals[k * each : (k + 1) * each]] for k, output in enumerate(outputs)]

    def given_back(self, found: Sequence[dict[str, Tensor]], needed: Sequence[bool], again: bool) -> tuple[Any, ...]:
        """The gradients of what `_Run` was given, from those of each direction.

        Args:
            needed: which are wanted. again: whether they may be differentiated again, and have the caller's shapes.
        """
        directions = self.directions
        if not again:
            found = [d.shaped(g) for d, g in zip(directions, found, strict=True)]
        cpu.sum_of_inputs(found, in_place=not again)
        total = next((one["input"] for one in found if "input" in one), None)
        names = [(one, n) for d, one in zip(directions, found, strict=True) for n in d.scene.names[1:]]
        rest = zip(names, needed[3:], strict=True)
        return (
            None,
            None,
            total if needed[2] else None,
            *(one.get(name) if need else None for (one, name), need in rest),
        )

    def by_name(self, x: Tensor, own: Sequence[Tensor], draws: Draws) -> Sequence[dict[str, Tensor]]:
        """What each direction is given, by name."""
        found: list[dict[str, Tensor]] = []
        start = 0
        for direction, tables in zip(self.directions, draws, strict=True):
            end = start + direction.count
            given = dict(zip(direction.scene.names, (x, *own[start:end]), strict=True))
            for name, table in tables.items():
                given[f"draws.{name}"] = table
            found.append(given)
            start = end
        return found


class _Direction:
    """One direction of a layer, and its programs."""

    def __init__(
        self, call: LayerCall, scene: Scene, inputs: Mapping[str, Tensor], output: tuple[int, int] | None
    ) -> None:
        self._form = form_of(scene, tensors_of(scene, inputs))._replace(output=output)
        # Of the call only what all such calls have in common.
        scene.call = replace(call, input=call.input.new_empty(0, call.input.shape[1]), directions=())
        scene.draws = {}
        self.scene = scene
        self.count = len(inputs) - 1
        forward = forward_of(self._form)
        self.program, self._whole = forward.program, forward.whole
        self._backward: dict[tuple[int | bool | None, ...], tuple[Backward, memory.Tensors]] = {}
        self._steps, self._batch = steps, batch = call.packing.steps, call.packing.batch
        self._saves = tuple(f"sequence.{entry.name}" for entry, _ in call.layout.states)
        rows = {"sequence": (steps + self._whole, batch), "final": (1, batch)}
        results = self.program.results()
        shapes = [(*rows.get(name.partition(".")[0], (call.packing.total,)), *rest) for name, (_, *rest), _ in results]
        self._made = [name for name, _, _ in results]
        self._finals = [name for name in self._made if name.startswith("final.")]
        self._tensors = memory.Tensors(shapes, self._form.dtype, [margins for _, _, margins in results])

    def make(self) -> dict[str, Tensor]:
        """All that a forward run makes, before it has written it."""
        return dict(zip(self._made, self._tensors.make(), strict=True))

    def sequence(self, made: Mapping[str, Tensor]) -> Tensor:
        """Of it, the sequence of the first state."""
        found = made[self._saves[0]]
        return found.narrow(0, 0 if self.scene.reverse else 1, self._steps) if self._whole else found

    def finals(self, made: Mapping[str, Tensor]) -> list[Tensor]:
        """Of it, the final states."""
        return [made[name] for name in self._finals]

    def kept(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of it, what backward needs."""
        return {name: made[name] for name in (*self._saves, "saved") if name in made}

    def backward(
        self, given: dict[str, Tensor], gradients: Sequence[Tensor | None], through: bool, over: bool
    ) -> tuple[Backward, dict[str, Tensor], dict[str, Tensor]]:
        """The backward program, what it is given, and what it makes.

        Args:
            given: what the forward run was given, and `kept`.
            gradients: of the sequence and the final states.
            through: whether the input's is wanted.
            over: whether to write over what is kept; see `cpu.may_write_over`.
        """
        strides: list[int | None] = []
        for k, gradient in enumerate(gradients):
            if gradient is None:
                strides.append(None)
                continue
            apart, row, step = gradient.stride()
            if step != 1 or (apart != row * self._batch and self._steps > 1) or (k and not gradient.is_contiguous()):
                gradient = gradient.contiguous()
                row = gradient.shape[2]
            given[f"gradient.{k}"] = gradient
            strides.append(row)
        key = (*strides, through, over)
        known = self._backward.get(key)
        if known is None:
            form = self._form._replace(gradients=tuple(strides), through=through, over=over)
            known = self._backward[key] = self._written(backward_of(form, given))
        program, tensors = known
        return program, given, dict(zip(program.program.names, tensors.make(), strict=True))

    def _written(self, backward: Backward) -> tuple[Backward, memory.Tensors]:
        """A backward program, and what it makes: gradients of the input as the caller has it, [T, B, I]."""
        results = backward.program.results()
        rows, names = (self._steps, self._batch), ("through", "d.input")
        shapes = [(*rows, *shape[1:]) if name in names else shape for name, shape, _ in results]
        return backward, memory.Tensors(shapes, self._form.dtype, [margins for _, _, margins in results])

    def shaped(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients as the caller has what they are of."""
        for name, gradient in found.items():
            if name.startswith("state."):
                found[name] = gradient.unsqueeze(0)
        return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ready: Ready, draws: Draws, x: Tensor, *own: Tensor) -> Any:
        results, made, runs = ready.prepared(x, own, draws)
        ctx.set_materialize_grads(False)
        kept = [direction.kept(one) for direction, one in zip(ready.directions, made, strict=True)]
        ctx.ready, ctx.draws = ready, draws
        ctx.own = [cpu.Own(one) for one in kept]
        ctx.names = [tuple(one) for one in kept]
        ctx.save_for_backward(x, *own, *[v for one in kept for v in one.values()])
        given_back = tuple(results)
        run_all(ready.packing, *runs)  # behind which the caches hold nothing of what Python wants
        return given_back

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ready: Ready = ctx.ready
        directions, saved = ready.directions, iter(ctx.saved_tensors)
        x = next(saved)
        own = [next(saved) for direction in directions for _ in range(direction.count)]
        again = wants_operations(gradients)
        found: list[dict[str, Any]] = [{} for _ in directions]
        runs = []
        for k, (given, wanted) in enumerate(
            zip(ready.by_name(x, own, ctx.draws), ready.gradients(gradients), strict=True)
        ):
            direction = directions[k]
            kept = {name: next(saved) for name in ctx.names[k]}
            if again:
                found[k] = _through_reference(direction.scene, ctx.draws[k], given, wanted)
                continue
            over = cpu.may_write_over(ctx.own[k], direction.scene.plan, kept.get("saved"))
            runs.append(direction.backward(given | kept, wanted, ctx.needs_input_grad[2], over))
        needed = ctx.needs_input_grad
        if again:
            return ready.given_back(found, needed, again)
        work = backward.Work(ready.packing, *runs)
        if work.whole and len(runs) == 1:
            given_back = ready.given_back(work.found, needed, again)
            work.run()
            return given_back
        return ready.given_back(work.run(), needed, again)


def _through_reference(
    scene: Scene, draws: Mapping[str, Tensor], given: Mapping[str, Tensor], gradients: Sequence[Tensor | None]
) -> dict[str, Any]:
    """The gradients by way of the reference engine, so that they can be differentiated again."""
    named = {name: given[name] for name in scene.names}
    flat = {name: v.flatten(0, 1) if v.dim() == 3 else v for name, v in named.items()}
    wanted = tuple(None if g is None else g.flatten(0, 1) for g in gradients)
    found = double_backward.through_reference(replace(scene, draws=draws), flat, wanted)
    return {n: g.view(v.shape) for (n, v), g in zip(named.items(), found, strict=True) if g is not None}
