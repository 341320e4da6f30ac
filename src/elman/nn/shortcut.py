"""Calls of a module that come again in the same form, and so need not be looked at as closely as the first."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elman.engine import cpu, dispatch
from elman.engine.call import DirectionResult, LayerCall
from elman.engine.calls import Form, fitting, form_function
from elman.engine.packing import Packing
from elman.engine.ragged import RaggedLayer
from elman.engine.ready import Ready
from elman.nn.frame import checked_lengths, packing_of
from elman.nn.unrolling import drawn, form, thinned
from elman.nn.wiring import merged

if TYPE_CHECKING:
    from elman.nn.recurrent import Recurrent

Input = Tensor | PackedSequence
KEPT = 64  # forms of a module


class Shortcuts:
    """The forms of call that a module has seen, and routes for those that it has seen twice.

    It holds nothing of the module, and a copy of it, or what pickle makes of it, is empty.
    """

    def __init__(self) -> None:
        self._routes: dict[Form, _Route | _RaggedRoute | None] = {}

    def __reduce__(self) -> Any:
        return Shortcuts, ()

    def form(self, module: "Recurrent", input: Input, state: Any, ragged: bool, chain: int) -> Form | None:
        """What the work of a call depends on, beside the parameters; None where no shortcut can serve."""
        data: Any = input
        rows, dimensions = 0, 3
        if isinstance(input, PackedSequence):  # of which all have the form of the first step's rows
            data, rows, dimensions = input.data, int(input.batch_sizes[0]), 2
        alone = isinstance(state, Tensor)
        entries = (state,) if alone else () if state is None else state
        if not isinstance(entries, tuple):
            return None
        kind = chain << 4 | ragged << 3 | alone << 2 | module.batch_first << 1 | (module.training and module._random)
        return form_function()(dispatch.wanted(), kind, rows, dimensions, data, *entries)

    def run(self, form: Form, module: "Recurrent", input: Input, state: Any, lengths: Any) -> tuple[Any, Any] | None:
        """What the module gives, or None where the call has to go the general way."""
        route = self._routes.get(form)
        return None if route is None else route.run(module, input, state, lengths)

    def recorder(self, form: Form | None, run: Callable[[LayerCall], list[DirectionResult]]) -> Any:
        """`run`, or where the form has been seen before, something that also keeps a list of its calls, `calls`."""
        if form is None:
            return run
        if form not in self._routes:
            if len(self._routes) >= KEPT:
                self._routes.clear()
            self._routes[form] = None
            return run
        return _Recorder(run)

    def learn(self, form: Form | None, module: "Recurrent", input: Any, recorded: Any, ragged: bool) -> None:
        """Make a route of what was recorded, if one can be made."""
        if form is None or not isinstance(recorded, _Recorder):
            return
        calls = recorded.calls
        if ragged:
            if _RaggedRoute.fits(module) and all(_runs(call, RaggedLayer) for call in calls):
                self._routes[form] = _RaggedRoute(module, calls, isinstance(input, PackedSequence))
        else:
            x = input.transpose(0, 1).contiguous() if module.batch_first else input
            strides = [(call.input.stride(0), call.input.stride(1)) for call in calls]
            as_it_is = x.stride(0) == x.shape[1] * x.stride(1) or x.shape[0] == 1
            if as_it_is and strides[0] == x.stride()[1:] and all(_runs(call, Ready) for call in calls):
                self._routes[form] = _Route(module, calls)


def _runs(call: LayerCall, way: type[Ready] | type[RaggedLayer]) -> bool:
    chained = way is RaggedLayer and call.packing.chains is not None
    return dispatch.choose(call)[0] == cpu.name and way.fits(call) and (chained or not call.every_state)


class _Recorder:
    def __init__(self, run: Callable[[LayerCall], list[DirectionResult]]) -> None:
        self._run = run
        self.calls: list[LayerCall] = []

    def __call__(self, call: LayerCall) -> list[DirectionResult]:
        self.calls.append(call)
        return self._run(call)


class _Way:
    """What all routes have in common.

    Args:
        calls: of each layer, from the lowest.
    """

    def __init__(self, module: "Recurrent", calls: list[LayerCall]) -> None:
        self._stack = stack = module._stack
        names = [full for level in stack.slots for slots in level for _, full in slots]
        self._random = module.training and module._random
        self._places = sum(len(call.directions) for call in calls)
        self._entries = [(self._places, calls[0].packing.count, width) for _, width in calls[0].layout.states]
        parameters = [(name, getattr(module, name)) for name in names]
        self._fitting = fitting(parameters, self._entries, calls[0].input.dtype)
        self._form = form(module.layers[-1][0])

    def _given(self, module: "Recurrent", state: Any) -> tuple[list[Tensor], tuple[Tensor, ...]] | None:
        """The parameters, and the entries of the caller's state, if all can be used as they are."""
        if state is None:
            states: tuple[Tensor, ...] = ()
        else:
            states = (state,) if isinstance(state, Tensor) else state
            if isinstance(state, Tensor) != (len(self._entries) == 1):
                return None
        parameters = self._fitting(module._parameters, *states)
        return None if parameters is None else (parameters, states)

    def _state(self, entries: Sequence[Tensor]) -> Any:
        """The state in the caller's form."""
        return entries[0] if len(entries) == 1 else self._form(*entries)


class _Route(_Way):
    """The layers of a module, ready for one form of call."""

    def __init__(self, module: "Recurrent", calls: list[LayerCall]) -> None:
        super().__init__(module, calls)
        self._packing = calls[0].packing
        self._beside = self._stack.directions == 2 and self._stack.options.merge == "concatenate"
        self._levels = [Ready(call, self._beside) for call in calls]
        self._whole = self._places == 1
        self._read_once = self._stack.directions == 1 and self._stack.wiring.plain

    def run(self, module: "Recurrent", input: Any, state: Any, lengths: Any) -> tuple[Tensor, Any] | None:
        """See `Shortcuts.run`."""
        found = self._given(module, state)
        if found is None:
            return None
        parameters, states = found
        stack, packing, noise = self._stack, self._packing, module._source(None) if self._random else None
        wiring, named = stack.wiring, not module.dropout_as_torch
        x = input.transpose(0, 1).contiguous() if module.batch_first else input
        if not self._read_once:
            x = x.view_as(x)  # where gradients that belong together are added, to the bit as on the general way
        if noise is not None:
            x = wiring.enter(x, packing, noise)
        finals: list[Sequence[Tensor]] = []
        start = place = 0
        for level, ready in enumerate(self._levels):
            given: list[Tensor] = []
            draws: list[Mapping[str, Tensor]] = []
            for index, slots in enumerate(stack.slots[level]):
                taken = parameters[start : start + len(slots)]
                if noise is not None:
                    draws.append(drawn(stack, level, index, noise, packing))
                    if stack.options.weight_dropout:
                        taken = [
                            thinned(stack, level, index, noise, p) if name == "weight_hh" else p
                            for (name, _), p in zip(slots, taken, strict=True)
                        ]
                given += taken
                given += states if self._whole else [v[place : place + 1] for v in states]
                start += len(slots)
                place += 1
            results = ready.run(x, given, draws)
            count, each = 1 if self._beside else stack.directions, len(self._entries)
            output = merged(results[:count], stack.options.merge)
            finals += [results[at : at + each] for at in range(count, len(results), each)]
            x = output if wiring.trivial else wiring.leave(level, x, output, packing, noise, named)
        last = finals[0] if self._whole else [torch.cat(entry) for entry in zip(*finals, strict=True)]
        return (x.transpose(0, 1) if module.batch_first else x), self._state(last)


class _RaggedRoute(_Way):
    """The layers of a module, ready for batches of one shape whose rows have unequal lengths.

    Args:
        packed: whether the caller has packed them, and gets them back like that.
    """

    def __init__(self, module: "Recurrent", calls: list[LayerCall], packed: bool) -> None:
        super().__init__(module, calls)
        first, last = (-1, -1) if packed else (0, len(calls) - 1)
        self._layers = [RaggedLayer(call, level == first, level == last) for level, call in enumerate(calls)]
        self._rows = calls[0].packing.batch if calls[0].packing.chains is not None else 0
        self._counts = [len(call.directions) * len(call.layout.parameters) for call in calls]

    @staticmethod
    def fits(module: "Recurrent") -> bool:
        """Whether layers only read the outputs, side by side, of the one below, and nothing is drawn."""
        stack = module._stack
        beside = stack.directions == 1 or stack.options.merge == "concatenate"
        return beside and stack.wiring.trivial and not (module.training and module._random)

    def run(self, module: "Recurrent", input: Input, state: Any, lengths: Any) -> tuple[Any, Any] | None:
        """See `Shortcuts.run`."""
        found = self._given(module, state)
        if isinstance(input, PackedSequence):
            packing, x = packing_of(input), input.data
            steps = packing.steps
        else:
            x = input.transpose(0, 1) if module.batch_first else input
            steps, batch = x.shape[:2]
            numbers = checked_lengths(lengths, batch, steps)
            if self._rows:
                packing = Packing.chained(numbers, self._rows, input.device)
            else:
                packing = Packing.from_lengths(numbers, input.device)
        if found is None or packing.is_dense:
            return None
        parameters, states = found
        finals = []
        start = place = 0
        for layer, count in zip(self._layers, self._counts, strict=True):
            end = place + self._stack.directions
            own = states if self._places == end - place else [v[place:end] for v in states]
            x, *final = layer.run(packing, steps, x, parameters[start : start + count], own)
            finals.append(final)
            start, place = start + count, end
        entries = finals[0] if len(finals) == 1 else [torch.cat(entry) for entry in zip(*finals, strict=True)]
        output: Input
        if isinstance(input, PackedSequence):
            output = PackedSequence(x, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        else:
            output = x.transpose(0, 1) if module.batch_first else x
        return output, self._state(entries)
