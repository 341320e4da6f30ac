"""A layer, ready to run on one form of call: nothing that the form decides is looked at again.

What runs for a call follows from shapes, strides and options, which the general way through `cpu.run` works out each
time. Python takes longer for that than a small layer takes to run. So a form of call that comes again is kept as a
`Ready`. Tensors are as the caller has them here, [T, B, *] and states [1, B, *], so that no views of them are needed.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elman.engine import backward, cpu, double_backward, memory
from elman.engine.backward import Backward, backward_of
from elman.engine.call import LayerCall
from elman.engine.form import Scene, form_of, tensors_of
from elman.engine.forward import forward_of
from elman.engine.program import Program
from elman.engine.runs import Runs
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
        places = self._places([direction.names for direction in self.directions], 0)
        self._runs = _runs([direction.program for direction in self.directions], places)
        self._backward: dict[Any, _BackwardRuns] = {}
        self._draw = any(direction.draws for direction in self.directions)
        self.keeps = sum(len(direction.kept) for direction in self.directions)

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
            draws: for each direction and random choice, the table that `draws.rows` gives; or nothing at all.

        Returns:
            One sequence for each direction, or one for both, side by side.
        """
        if self.training:
            return _apply(self, draws, x, *own)
        results, made = self.made()
        self.write(x, own, draws, made)
        return results

    def made(self) -> tuple[list[Tensor], list[Tensor]]:
        """What `run` gives, and all that the programs write, before they have written it."""
        results = [] if self.output is None else self.output.make()
        made = results[:]
        finals: list[Tensor] = []
        for direction in self.directions:
            own = direction.tensors.make()
            if self.output is None:
                results.append(direction.sequence(own))
            finals += own[direction.finals]
            made += own
        return results + finals, made

    def write(self, x: Tensor, own: Sequence[Tensor], draws: Draws, made: Sequence[Tensor]) -> None:
        """Write it; see `run` and `made`."""
        self._run(self._runs, [x, *own, *self._tables(draws), *made])

    def _tables(self, draws: Draws) -> list[Tensor]:
        """The tables that programs read, of those of each direction."""
        if not self._draw:
            return []
        pairs = zip(self.directions, draws, strict=True)
        return [tables[name] for direction, tables in pairs for name in direction.draws]

    def _places(self, made: Sequence[Sequence[str]], gradients: int) -> list[dict[str, int]]:
        """For each direction where tensors are by name, in lists as `write` or `work` make them.

        Args:
            made: names of what each direction makes. gradients: how many each is given.
        """
        found: list[dict[str, int]] = [{"input": 0} for _ in self.directions]
        place = 1

        def add(own: Sequence[Sequence[str]]) -> None:
            nonlocal place
            for places, names in zip(found, own, strict=True):
                places |= {name: place + k for k, name in enumerate(names)}
                place += len(names)

        add([direction.scene.names[1:] for direction in self.directions])
        add([[f"draws.{name}" for name in direction.draws] for direction in self.directions])
        if gradients:
            add([[direction.names[k] for k in direction.kept] for direction in self.directions])
            add([[f"gradient.{k}" for k in range(gradients)] for _ in self.directions])
        elif self.output is not None:
            for places in found:
                places["output"] = place
            place += 1
        add(made)
        return found

    def kept(self, made: Sequence[Tensor]) -> list[Tensor]:
        """Of all that is made, what backward needs of each direction."""
        place = 0 if self.output is None else 1
        kept: list[Tensor] = []
        for direction in self.directions:
            kept += [made[place + k] for k in direction.kept]
            place += len(direction.names)
        return kept

    def saved(self, kept: Sequence[Tensor]) -> list[Tensor | None]:
        """Of that, what each direction's kernel saved."""
        ends = itertools.accumulate(len(direction.kept) for direction in self.directions)
        return [kept[end - 1] if d.saves else None for d, end in zip(self.directions, ends, strict=True)]

    def work(
        self,
        saved: Sequence[Tensor],
        draws: Draws,
        gradients: Sequence[Sequence[Tensor | None]],
        through: bool,
        overs: Sequence[bool],
    ) -> backward.Work:
        """The gradients of what each direction was given, to be run.

        Args:
            saved: the input, what `run` was given, and `kept`. draws: see `run`.
            gradients: of each direction's sequence and final states.
            through: whether the input's are wanted.
            overs: for each direction, whether to write over what is kept; see `cpu.may_write_over`.
        """
        read: list[Tensor | None] = []
        rows: list[tuple[int | None, ...]] = []
        for direction, own in zip(self.directions, gradients, strict=True):
            found = [direction.readable(g, k > 0) for k, g in enumerate(own)]
            read += [gradient for gradient, _ in found]
            rows.append(tuple([row for _, row in found]))
        key = (*rows, through, *overs)
        known = self._backward.get(key)
        if known is None:
            pairs = zip(self.directions, rows, overs, strict=True)
            written = [direction.backward(own, through, over) for direction, own, over in pairs]
            names = [program.program.names for program, _ in written]
            runs = _runs([program.program for program, _ in written], self._places(names, len(rows[0])))
            known = self._backward[key] = _BackwardRuns(written, runs)
        made = [tensors.make() for _, tensors in known.written]
        tensors: list[Any] = [*saved[: -self.keeps], *self._tables(draws), *saved[-self.keeps :], *read]
        works: list[tuple[Backward, dict[str, Tensor], dict[str, Tensor]]] = []
        for (program, _), own_made in zip(known.written, made, strict=True):
            tensors += own_made
            works.append((program, {}, dict(zip(program.program.names, own_made, strict=True))))
        return backward.Work(self.packing, *works, run=functools.partial(self._run, known.runs, tensors))

    def _run(self, all_runs: Sequence[Runs], tensors: list[Tensor]) -> None:
        for runs in all_runs:
            runs.run(self.packing.total, self.packing.steps, tensors)

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

    def by_name(self, x: Tensor, own: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What each direction is given but tables, by name."""
        ends = list(itertools.accumulate((direction.count for direction in self.directions), initial=0))
        return [
            dict(zip(direction.scene.names, (x, *own[start:end]), strict=True))
            for direction, start, end in zip(self.directions, ends[:-1], ends[1:], strict=True)
        ]


class _BackwardRuns(NamedTuple):
    """The backward programs of a layer's directions, with what makes their results, and what runs them."""

    written: list[tuple[Backward, memory.Tensors]]
    runs: list[Runs]


def _runs(programs: Sequence[Program], places: Sequence[dict[str, int]]) -> list[Runs]:
    """What runs programs: those that run abreast at once, else each."""
    if programs[0].abreast:
        return [Runs(programs, places)]
    return [Runs([program], [own]) for program, own in zip(programs, places, strict=True)]


class _Direction:
    """One direction of a layer, and its programs."""

    def __init__(
        self, call: LayerCall, scene: Scene, inputs: Mapping[str, Tensor], output: tuple[int, int] | None
    ) -> None:
        self._form = form_of(scene, tensors_of(scene, inputs))._replace(output=output)
        # Of the call only what all such calls have in common.
        scene.call = replace(call, input=call.input.new_empty(0, call.input.shape[1]), directions=())
        self.draws = list(scene.draws)
        scene.draws = {}
        self.scene = scene
        self.count = len(inputs) - 1
        forward = forward_of(self._form)
        self.program, self._whole = forward.program, forward.whole
        self._steps, self._batch = steps, batch = call.packing.steps, call.packing.batch
        saves = tuple(f"sequence.{entry.name}" for entry, _ in call.layout.states)
        rows = {"sequence": (steps + self._whole, batch), "final": (1, batch)}
        results = self.program.results()
        shapes = [(*rows.get(name.partition(".")[0], (call.packing.total,)), *rest) for name, (_, *rest), _ in results]
        self.names = [name for name, _, _ in results]
        self.tensors = memory.Tensors(shapes, self._form.dtype, [margins for _, _, margins in results])
        self._first = self.names.index(saves[0])
        finals = [k for k, name in enumerate(self.names) if name.startswith("final.")]
        self.finals = slice(finals[0], finals[-1] + 1)
        self.saves = "saved" in self.names
        self.kept = [k for k, name in enumerate(self.names) if name in (*saves, "saved")]

    def sequence(self, made: Sequence[Tensor]) -> Tensor:
        """The sequence of the first state, of what a forward run makes."""
        found = made[self._first]
        return found.narrow(0, 0 if self.scene.reverse else 1, self._steps) if self._whole else found

    def backward(self, gradients: Sequence[int | None], through: bool, over: bool) -> tuple[Backward, memory.Tensors]:
        """A backward program, and what makes its results: gradients of the input as the caller has it, [T, B, I].

        Args:
            gradients: strides of the rows of those of the sequence and the final states.
            through: whether the input's is wanted.
            over: whether to write over what is kept; see `cpu.may_write_over`.
        """
        program = backward_of(self._form._replace(gradients=tuple(gradients), through=through, over=over), {})
        results = program.program.results()
        rows, names = (self._steps, self._batch), ("through", "d.input")
        shapes = [(*rows, *shape[1:]) if name in names else shape for name, shape, _ in results]
        return program, memory.Tensors(shapes, self._form.dtype, [margins for _, _, margins in results])

    def readable(self, gradient: Tensor | None, final: bool) -> tuple[Tensor | None, int | None]:
        """The gradient of a sequence or of a final state as a program can read it, and the stride of its rows."""
        if gradient is None:
            return None, None
        apart, row, step = gradient.stride()
        if step != 1 or (apart != row * self._batch and self._steps > 1) or (final and not gradient.is_contiguous()):
            return gradient.contiguous(), gradient.shape[2]
        return gradient, row

    def shaped(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients as the caller has what they are of."""
        for name, gradient in found.items():
            if name.startswith("state."):
                found[name] = gradient.unsqueeze(0)
        return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ready: Ready, draws: Draws, x: Tensor, *own: Tensor) -> Any:
        results, made = ready.made()
        ctx.set_materialize_grads(False)
        kept = ready.kept(made)
        ctx.ready, ctx.draws = ready, draws
        ctx.own = [cpu.Own(saved) for saved in ready.saved(kept)]
        ctx.save_for_backward(x, *own, *kept)
        given_back = tuple(results)
        ready.write(x, own, draws, made)  # behind which the caches hold nothing of what Python wants
        return given_back

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ready: Ready = ctx.ready
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad
        wanted = ready.gradients(gradients)
        if wants_operations(gradients):
            draws = ctx.draws or [{} for _ in wanted]
            given = zip(ready.directions, draws, ready.by_name(saved[0], saved[1:]), wanted, strict=True)
            return ready.given_back([_through_reference(d.scene, *of_one) for d, *of_one in given], needed, again=True)
        overs = [
            cpu.may_write_over(own, direction.scene.plan, v)
            for own, direction, v in zip(ctx.own, ready.directions, ready.saved(saved[-ready.keeps :]), strict=True)
        ]
        work = ready.work(saved, ctx.draws, wanted, needed[2], overs)
        if work.whole and len(wanted) == 1:
            given_back = ready.given_back(work.found, needed, again=False)
            work.run()
            return given_back
        return ready.given_back(work.run(), needed, again=False)


# Without what `Function.apply` does for torch.func's transforms, which takes as long as all else before a run; where
# there are such transforms no call is made ready.
_apply: Callable[..., Sequence[Tensor]] = getattr(super(torch.autograd.Function, _Run), "apply", _Run.apply)


def _through_reference(
    scene: Scene, draws: Mapping[str, Tensor], given: Mapping[str, Tensor], gradients: Sequence[Tensor | None]
) -> dict[str, Any]:
    """The gradients by way of the reference engine, so that they can be differentiated again."""
    named = {name: given[name] for name in scene.names}
    flat = {name: v.flatten(0, 1) if v.dim() == 3 else v for name, v in named.items()}
    wanted = tuple(None if g is None else g.flatten(0, 1) for g in gradients)
    found = double_backward.through_reference(replace(scene, draws=draws), flat, wanted)
    return {n: g.view(v.shape) for (n, v), g in zip(named.items(), found, strict=True) if g is not None}
