"""A direction of a layer, ready to run on one form of call: nothing that the form decides is looked at again.

What runs for a call follows from shapes, strides and options, which the general way through `cpu.run` works out each
time. Python takes longer for that than a small layer takes to run. So a form of call that comes again is kept as a
`Ready`. Tensors are as the caller has them here, [T, B, *] and states [1, B, *], so that no views of them are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elman.engine import cpu, memory
from elman.engine.backward import Backward, backward_of
from elman.engine.call import Direction, LayerCall
from elman.engine.form import form_of, tensors_of
from elman.engine.forward import forward_of


class Ready:
    """Runs of one direction of a layer.

    Args:
        call: one like those to come, which the cpu engine can run. It needs `fits`.
        direction: of the call.
    """

    def __init__(self, call: LayerCall, direction: Direction) -> None:
        scene, inputs = cpu.scene_of(call, cpu.plan_of(call), direction)
        self._form = form_of(scene, tensors_of(scene, inputs))
        # Of the call only what all such calls have in common.
        scene.call = replace(call, input=call.input.new_empty(0, call.input.shape[1]), directions=())
        scene.draws = {}
        self.scene = scene
        self.count = len(inputs)
        self._program = forward_of(self._form)
        self._backward: dict[tuple[int | bool | None, ...], Backward] = {}
        packing = call.packing
        self.steps, self.batch = packing.steps, packing.batch
        self._saves = tuple(f"sequence.{entry.name}" for entry, _ in call.layout.states)
        rows = {"sequence": (self.steps + self._program.whole, self.batch), "final": (1, self.batch)}
        results = self._program.program.results()
        shapes = [(*rows.get(name.partition(".")[0], (packing.total,)), *rest) for name, (_, *rest), _ in results]
        self._made = [name for name, _, _ in results]
        self._finals = [name for name in self._made if name.startswith("final.")]
        self._tensors = memory.Tensors(shapes, self._form.dtype, [margins for _, _, margins in results])

    @staticmethod
    def fits(call: LayerCall) -> bool:
        """Whether such calls can be made ready: dense batches without anything that differs from call to call."""
        plan = cpu.plan_of(call)
        special = call.reset is not None or call.extras or any(d.below or d.default for d in call.directions)
        as_it_is = call.input.is_contiguous() or not plan.reads_input
        return as_it_is and not (special or plan.integer or plan.structured or plan.clock) and call.packing.is_dense

    def run(self, tensors: Sequence[Tensor], draws: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The sequence of the first state, [T, B, width], then the final states, [1, B, width] each.

        Args:
            tensors: by `Scene.names`: the input [T, B, I], parameters, states [1, B, width]; with the strides of the
                call that this was made from.
            draws: for each random choice, the table that `draws.rows` gives.
        """
        if self.scene.training:
            return _Run.apply(self, draws, *tensors)  # type: ignore[no-untyped-call, no-any-return]
        return self.forward(tensors, draws)[0]

    def forward(
        self, tensors: Sequence[Tensor], draws: Mapping[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """See `run`; and all that was made."""
        made = dict(zip(self._made, self._tensors.make(), strict=True))
        sequence = made[self._saves[0]]
        if self._program.whole:
            sequence = sequence.narrow(0, 0 if self.scene.reverse else 1, self.steps)
        results = (sequence, *[made[name] for name in self._finals])
        self._program.program.run(self.scene.call.packing, self._by_name(tensors, draws), made)
        return results, made

    def _by_name(self, tensors: Sequence[Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(zip(self.scene.names, tensors, strict=True))
        for name, table in draws.items():
            found[f"draws.{name}"] = table
        return found

    def kept(self, made: Mapping[str, Tensor]) -> list[Tensor]:
        """What backward needs of all that was made."""
        return [made[name] for name in (*self._saves, "saved") if name in made]

    def backward(
        self,
        tensors: Sequence[Tensor],
        draws: Mapping[str, Tensor],
        kept: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        through: bool,
        over: bool,
    ) -> dict[str, Tensor]:
        """The gradients of what `run` was given, by `Scene.names`; those that are absent are zero.

        Args:
            tensors, draws, kept: see `run` and `kept`.
            gradients: of the results of `run`.
            through: whether the input's is wanted.
            over: whether to write over what is kept; see `cpu.may_write_over`.
        """
        given = self._by_name(tensors, draws)
        given |= zip((*self._saves, "saved"), kept, strict=False)
        strides: list[int | None] = []
        for k, gradient in enumerate(gradients):
            if gradient is None:
                strides.append(None)
                continue
            apart, row, step = gradient.stride()
            if step != 1 or (apart != row * self.batch and self.steps > 1) or (k and not gradient.is_contiguous()):
                gradient = gradient.contiguous()
                row = gradient.shape[2]
            given[f"gradient.{k}"] = gradient
            strides.append(row)
        key = (*strides, through, over)
        program = self._backward.get(key)
        if program is None:
            form = self._form._replace(gradients=tuple(strides), through=through, over=over)
            program = self._backward[key] = backward_of(form, given)
        found = program.run(self.scene.call.packing, given)
        for name, gradient in found.items():
            if name == "input":
                found[name] = gradient.view(self.steps, self.batch, gradient.shape[1])
            elif name.startswith("state."):
                found[name] = gradient.unsqueeze(0)
        return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ready: Ready, draws: Mapping[str, Tensor], *tensors: Tensor) -> Any:
        results, made = ready.forward(tensors, draws)
        ctx.set_materialize_grads(False)
        ctx.ready, ctx.draws = ready, draws
        ctx.own = made["saved"].data_ptr() if "saved" in made else 0
        ctx.save_for_backward(*tensors, *ready.kept(made))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ready: Ready = ctx.ready
        tensors = ctx.saved_tensors
        given, kept = tensors[: ready.count], tensors[ready.count :]
        if torch.is_grad_enabled():
            return (None, None, *_through_reference(ready, ctx.draws, given, gradients))
        over = cpu.may_write_over(ctx, ready.scene.plan, kept[-1] if ctx.own else None)
        found = ready.backward(given, ctx.draws, kept, gradients, ctx.needs_input_grad[2], over)
        needed = zip(ready.scene.names, ctx.needs_input_grad[2:], strict=True)
        return (None, None, *(found.get(name) if need else None for name, need in needed))


def _through_reference(
    ready: Ready, draws: Mapping[str, Tensor], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Any]:
    """The gradients by way of the reference engine, so that they can be differentiated again."""
    scene = replace(ready.scene, draws=draws)
    flat = [v.flatten(0, 1) if v.dim() == 3 else v for v in tensors]
    found = cpu.through_reference(
        scene,
        dict(zip(scene.names, flat, strict=True)),
        tuple(None if g is None else g.flatten(0, 1) for g in gradients),
    )
    return [None if g is None else g.view(v.shape) for g, v in zip(found, tensors, strict=True)]
