"""A layer, ready to run on batches of unequal lengths: packing, all directions and unpacking as one operation.

On the general way each of these is an operation of its own, with a node in autograd's graph and copies between them.
Here rows go from the caller's [T, B, *] to packed ones and back within one operation, where the layer is the lowest or
the highest; the directions' outputs are written side by side, and final states where the caller wants them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elman.engine import backward, cpu, double_backward, memory, reference
from elman.engine.backward import Backward, backward_of
from elman.engine.call import Direction, LayerCall
from elman.engine.form import Form, Scene, form_of, tensors_of
from elman.engine.forward import Forward, forward_of
from elman.engine.packing import Packing
from elman.engine.runs import run_all
from elman.engine.surroundings import wants_operations

_Prepared = tuple[Forward, dict[str, Tensor], dict[str, Tensor]]  # a program, what it is given, and what it makes


class RaggedLayer:
    """Runs of one layer on batches of one number of rows, whose lengths may differ from run to run.

    Args:
        call: one like those to come, which the cpu engine can run. It needs `fits`.
        enters: whether the input is [T, B, I] in the caller's order, and not packed.
        leaves: whether the output is wanted like that.
    """

    def __init__(self, call: LayerCall, enters: bool, leaves: bool) -> None:
        self._enters, self._leaves = enters, leaves
        ((scenes, inputs),) = cpu.scenes_of(call, cpu.plan_of(call))
        self._chained = call.packing.chains is not None
        self._directions: list[_Direction] = []
        for scene, given in zip(scenes, inputs, strict=True):
            form = form_of(scene, tensors_of(scene, given))
            # Of the call only what all such calls have in common.
            scene.call = replace(call, input=call.input.new_empty(0, call.input.shape[1]), directions=(), reset=None)
            self._directions.append(_Direction(scene, form))
        self._widths = [width for _, width in call.layout.states]
        self._wanted = [f"ends.{entry.name}" for entry, _ in call.layout.states]
        if leaves or len(scenes) > 1:
            self._wanted = ["output", *self._wanted]
        self._batch = call.packing.count
        self._results = self._made(call.input.dtype)
        self._parameters = len(call.layout.parameters)
        self._training = scenes[0].training

    @staticmethod
    def fits(call: LayerCall) -> bool:
        """Whether such calls can be made ready: nothing that differs from call to call but lengths."""
        plan = cpu.plan_of(call)
        cut = call.reset is not None and call.packing.chains is None
        special = cut or call.extras or any(d.below or d.default or d.draws for d in call.directions)
        of_cell = plan.integer or plan.structured or plan.clock
        return not (special or of_cell or call.packing.is_dense) and len(cpu.scenes_of(call, plan)) == 1

    def run(
        self, packing: Packing, steps: int, x: Tensor, parameters: Sequence[Tensor], states: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The output, [T, B, width] or [N, width], and the final state entries, [directions, B, width] each.

        Args:
            packing: of the batch.
            steps: T.
            x: the input, [T, B, I] or [N, I].
            parameters: of all directions, one after the other.
            states: entries [directions, B, width] in the caller's order, or none.
        """
        if self._training:
            return _Run.apply(self, packing, steps, x, *parameters, *states)  # type: ignore[no-untyped-call, no-any-return]
        results, _, runs = self.prepared(packing, steps, (x, *parameters, *states))
        self.finish(packing, steps, results, runs)
        return results

    def prepared(
        self, packing: Packing, steps: int, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, list[_Prepared]]:
        """The results before they are written, the input as programs read it, and the runs that write them."""
        x = tensors[0]
        x = x if x.is_contiguous() or (self._enters and x.stride(2) == 1) else x.contiguous()
        results = self._results.make(steps if self._leaves else packing.total)
        wanted = dict(zip(self._wanted, results, strict=True))
        runs: list[_Prepared] = []
        for k, direction in enumerate(self._directions):
            given = self.given(packing, k, x, tensors) | wanted
            forward = direction.forward(packing, output=self._place(k), finals=k, enters=self._entering(x))
            made = forward.program.make(packing)
            runs.append((forward, given, made))
            if "output" not in wanted:
                results = [forward.results(made)[0], *results]
        return results, x, runs

    def finish(self, packing: Packing, steps: int, results: Sequence[Tensor], runs: Sequence[_Prepared]) -> None:
        """Write the results."""
        output = results[0]
        if self._leaves and steps > packing.longest:
            output[packing.longest :].zero_()
        run_all(packing, *((forward.program, given, made) for forward, given, made in runs))
        if not self._leaves and len(runs) > 1:
            torch.cat([forward.results(made)[0] for forward, _, made in runs], -1, out=output)

    def _made(self, dtype: torch.dtype) -> memory.Tensors:
        """What makes `_wanted`; an output has [rows, B], or so many packed rows."""
        count, batch = len(self._directions), self._batch
        output = (memory.rows_and(0), *((batch,) if self._leaves else ()), self._widths[0] * count)
        shapes = [(count, batch, width) for width in self._widths]
        return memory.Tensors([output, *shapes] if "output" in self._wanted else shapes, dtype)

    def _place(self, index: int) -> tuple[int, int] | None:
        """See `Form.output`."""
        width = self._widths[0]
        return (index * width, width * len(self._directions)) if self._leaves else None

    def _entering(self, x: Tensor) -> tuple[int, int] | None:
        """See `Form.enters`."""
        return (x.stride(0), x.stride(1)) if self._enters else None

    def given(self, packing: Packing, index: int, x: Tensor, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a direction is given, by name, of what `run` is given; `x` is the input as programs read it."""
        direction, count = self._directions[index], self._parameters
        own = tensors[1 + index * count : 1 + (index + 1) * count]
        entries = [v[index] for v in tensors[1 + len(self._directions) * count :]]
        if packing.order is not None:
            entries = [v.index_select(0, packing.order) for v in entries]
        found = dict(zip(direction.scene.names, (x, *own, *(v.contiguous() for v in entries)), strict=True))
        found["sizes"], found["offsets"], found["sequences"] = packing.sizes, packing.offsets, packing.sequences
        if self._chained:
            found["reset"] = packing.cuts[direction.scene.reverse]
        return found

    def backward(
        self,
        packing: Packing,
        tensors: Sequence[Tensor],
        x: Tensor,
        kept: Sequence[dict[str, Tensor]],
        gradients: Sequence[Tensor | None],
        needed: Sequence[bool],
        over: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of what `run` was given, from those of what it gave.

        Args:
            tensors: what it was given. x, kept: see `prepared`.
            needed: which gradients are wanted.
            over: for each direction, whether to write over what is kept; see `cpu.may_write_over`.
        """
        output, *finals = gradients
        if output is not None and self._leaves:
            output = output.contiguous()
        start, width, runs = 0, self._widths[0], []
        for index, direction in enumerate(self._directions):
            own: list[Tensor | None] = [None]
            if output is not None:
                own = [output if self._leaves else output[:, start : start + width]]
            start += width
            for final in finals:
                entry = None if final is None else final[index]
                own.append(entry if entry is None or packing.order is None else entry.index_select(0, packing.order))
            given = self.given(packing, index, x, tensors) | kept[index]
            form = {"output": self._place(index), "enters": self._entering(x)}
            if self._chained:
                if any(g is not None for g in own[1:]):
                    form["output"] = None
                    own = self._at_ends(packing, index, own)
                else:
                    own += [None] * (len(self._widths) - 1)
            program, given = direction.backward(packing, given, own, through=needed[0], over=over[index], **form)
            runs.append((program, given, program.program.make(packing)))
        padded = memory.empty_like(x, *x.shape) if needed[0] and self._enters else None
        parts = backward.Work(packing, *runs, padded=padded).run()
        found: list[Tensor | None] = [padded]
        if needed[0] and padded is None:
            cpu.sum_of_inputs(parts, in_place=True)
            found = [parts[0]["input"]]
        for part, direction in zip(parts, self._directions, strict=True):
            found += [part.get(name) for name in direction.scene.names[1 : 1 + self._parameters]]
        for k in range(len(tensors) - len(found)):
            name = self._directions[0].scene.names[1 + self._parameters + k]
            zeros = tensors[0].new_zeros(packing.batch, self._widths[k])
            found.append(_ordered(packing, [part.get(name, zeros) for part in parts]))
        return [v if need else None for v, need in zip(found, needed, strict=True)]

    def _at_ends(self, packing: Packing, index: int, own: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of all states' sequences, [N, width] each, of which those of final states are a part.

        Args:
            own: a direction's gradients, of its output and of its final states.
        """
        output, *finals = own
        if output is not None and self._leaves:
            start = index * self._widths[0]
            output = packing.pack(output[..., start : start + self._widths[0]])
        found: list[Tensor | None] = [output, *(None for _ in self._widths[1:])]
        for k, (final, width) in enumerate(zip(finals, self._widths, strict=True)):
            if final is not None:
                whole = final.new_zeros(packing.total, width)
                whole.index_add_(0, packing.entries_at_ends(self._directions[index].scene.reverse), final)
                before = found[k]
                found[k] = whole if before is None else before + whole
        return [*found, *(None for _ in finals)]

    def through_reference(
        self, packing: Packing, steps: int, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The gradients by way of the reference engine, so that they can be differentiated again."""

        def run(own: list[Tensor]) -> list[Tensor]:
            x = packing.pack(own[0]) if self._enters else own[0]
            results = []
            for index, direction in enumerate(self._directions):
                named = self.given(packing, index, x, own)
                reset = packing.cuts[0].bool() if self._chained else None
                parameters = {n.partition(".")[2]: v for n, v in named.items() if n.startswith("parameter.")}
                entries = tuple(v for n, v in named.items() if n.startswith("state.")) or None
                one = Direction(parameters, entries, direction.scene.reverse, {})
                call = replace(direction.scene.call, packing=packing, input=x, directions=(one,), reset=reset)
                results += reference.run(call)
            output = torch.cat([result.sequences[0] for result in results], -1)
            output = packing.unpack(output, steps) if self._leaves else output
            states = [result.state for result in results]
            if self._chained:
                reverse = [direction.scene.reverse for direction in self._directions]
                pairs = zip(results, reverse, strict=True)
                states = [tuple(packing.ends(v, back) for v in result.sequences) for result, back in pairs]
            finals = [torch.stack(entry) for entry in zip(*states, strict=True)]
            return [output, *(packing.to_caller_order(final, 1) for final in finals)]

        return double_backward.differentiated(run, tensors, gradients)


class _Direction:
    """One direction, and its programs."""

    def __init__(self, scene: Scene, form: Form) -> None:
        self.scene = scene
        self._form = form
        self._programs: dict[Any, Any] = {}

    def forward(self, packing: Packing, **special: Any) -> Forward:
        """The program of a forward run, whose form differs in so far from the layer's."""
        found: Forward = self._kept(packing, forward_of, special)
        return found

    def backward(
        self, packing: Packing, tensors: dict[str, Tensor], gradients: Sequence[Tensor | None], **special: Any
    ) -> tuple[Backward, dict[str, Tensor]]:
        """The program of a backward run, and what it is given; see `forward`."""
        strides: list[int | None] = []
        for k, gradient in enumerate(gradients):
            if gradient is None:
                strides.append(None)
                continue
            if k or gradient.stride(-1) != 1:
                gradient = gradient.contiguous()
            tensors[f"gradient.{k}"] = gradient
            strides.append(gradient.stride(-2))
        special["gradients"] = tuple(strides)
        return self._kept(packing, lambda form: backward_of(form, tensors), special), tensors

    def _kept(self, packing: Packing, written: Callable[[Form], Any], special: dict[str, Any]) -> Any:
        key = (packing.ragged, *special.values())
        program = self._programs.get(key)
        if program is None:
            program = written(self._form._replace(packing=packing, **special))
            if program.form.packing.kept:
                self._programs[key] = program
        return program


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: RaggedLayer, packing: Packing, steps: int, *tensors: Tensor) -> Any:
        results, x, runs = layer.prepared(packing, steps, tensors)
        made = [one for _, _, one in runs]
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.packing, ctx.steps, ctx.count = layer, packing, steps, len(tensors)
        ctx.names = [list(one) for one in made]
        ctx.own = [cpu.Own(one.get("saved")) for one in made]
        ctx.save_for_backward(*tensors, x, *(v for one in made for v in one.values()))
        given_back = tuple(results)
        layer.finish(packing, steps, results, runs)  # behind which the caches hold nothing of what Python wants
        return given_back

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        layer: RaggedLayer = ctx.layer
        saved = iter(ctx.saved_tensors)
        tensors = [next(saved) for _ in range(ctx.count)]
        x = next(saved)
        needed = ctx.needs_input_grad[3:]
        if wants_operations(gradients):
            found = layer.through_reference(ctx.packing, ctx.steps, tensors, gradients)
        else:
            kept = [{name: next(saved) for name in names} for names in ctx.names]
            plan = layer._directions[0].scene.plan
            over = [cpu.may_write_over(own, plan, k.get("saved")) for own, k in zip(ctx.own, kept, strict=True)]
            found = layer.backward(ctx.packing, tensors, x, kept, gradients, needed, over)
        return (None, None, None, *found)


def _ordered(packing: Packing, rows: Sequence[Tensor]) -> Tensor:
    """Several [B, width] in packed order as one [., B, width] in the caller's."""
    whole = memory.empty_like(rows[0], len(rows), *rows[0].shape)
    for k, v in enumerate(rows):
        whole[k] = packing.to_caller_order(v, 0)
    return whole
