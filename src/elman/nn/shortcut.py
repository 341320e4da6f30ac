"""Calls of a module that come again in the same form, and so need not be looked at as closely as the first."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from elman.engine import cpu, dispatch
from elman.engine.call import DirectionResult, LayerCall
from elman.engine.ready import Ready
from elman.nn.unrolling import form
from elman.nn.wiring import merged

if TYPE_CHECKING:
    from elman.nn.recurrent import Recurrent

Form = tuple[Any, ...]
KEPT = 64  # forms of a module


class Shortcuts:
    """The forms of call that a module has seen, and routes for those that it has seen twice.

    It holds nothing of the module, and a copy of it, or what pickle makes of it, is empty.
    """

    def __init__(self) -> None:
        self._routes: dict[Form, _Route | None] = {}

    def __reduce__(self) -> Any:
        return Shortcuts, ()

    def form(self, module: "Recurrent", input: Tensor, state: Any) -> Form | None:
        """What the work of a call depends on, beside the parameters; None where no shortcut can serve."""
        random = module.training and module._random
        if input.dim() != 3 or not input.is_cpu or random or torch.is_autocast_enabled("cpu"):
            return None
        if state is None:
            states: Any = None
        elif isinstance(state, Tensor):
            states = state.requires_grad
        elif isinstance(state, tuple) and all(isinstance(v, Tensor) for v in state):
            states = tuple([v.requires_grad for v in state])
        else:
            return None
        situation = (states, torch.is_grad_enabled(), torch.get_num_threads(), dispatch.wanted(), module.batch_first)
        return (input.shape, input.stride(), input.dtype, input.requires_grad, *situation)

    def run(self, form: Form, module: "Recurrent", input: Tensor, state: Any) -> tuple[Tensor, Any] | None:
        """What the module gives, or None where the call has to go the general way."""
        route = self._routes.get(form)
        return None if route is None else route.run(module, input, state)

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

    def learn(self, form: Form | None, module: "Recurrent", input: Any, recorded: Any) -> None:
        """Make a route of what was recorded, if one can be made."""
        if form is not None and isinstance(recorded, _Recorder):
            calls = recorded.calls
            x = input.transpose(0, 1).contiguous() if module.batch_first else input
            strides = [(call.input.stride(0), call.input.stride(1)) for call in calls]
            as_it_is = x.stride(0) == x.shape[1] * x.stride(1) or x.shape[0] == 1
            if as_it_is and strides[0] == x.stride()[1:] and all(map(_runs, calls)):
                self._routes[form] = _Route(module, calls)


def _runs(call: LayerCall) -> bool:
    return dispatch.choose(call)[0] == cpu.name and Ready.fits(call) and not call.every_state


class _Recorder:
    def __init__(self, run: Callable[[LayerCall], list[DirectionResult]]) -> None:
        self._run = run
        self.calls: list[LayerCall] = []

    def __call__(self, call: LayerCall) -> list[DirectionResult]:
        self.calls.append(call)
        return self._run(call)


class _Route:
    """The layers of a module, ready for one form of call.

    Args:
        calls: of each layer, from the lowest.
    """

    def __init__(self, module: "Recurrent", calls: list[LayerCall]) -> None:
        self._dtype = calls[0].input.dtype
        self._levels = [[Ready(call, direction) for direction in call.directions] for call in calls]
        names = [full for level in module._stack.slots for slots in level for _, full in slots]
        wanted = [v.requires_grad for call in calls for d in call.directions for v in d.parameters.values()]
        self._parameters = list(zip(names, wanted, strict=True))
        self._each = [[len(slots) for slots in level] for level in module._stack.slots]
        widths = [width for _, width in calls[0].layout.states]
        places = sum(map(len, self._levels))
        self._states = [torch.Size((places, calls[0].packing.batch, width)) for width in widths]
        self._whole = places == 1
        self._merge = module.options.merge
        self._form = form(module.layers[-1][0])

    def run(self, module: "Recurrent", input: Tensor, state: Any) -> tuple[Tensor, Any] | None:
        """See `Shortcuts.run`."""
        dtype, owned = self._dtype, module._parameters
        parameters = []
        for name, wanted in self._parameters:
            p = owned.get(name)
            if type(p) is not Parameter or p.requires_grad is not wanted or p.dtype is not dtype:
                return None
            if not p.is_contiguous() or not p.is_cpu:
                return None
            parameters.append(p)
        states: tuple[Tensor, ...] = ()
        if state is not None:
            states = (state,) if isinstance(state, Tensor) else state
            if len(states) != len(self._states) or isinstance(state, Tensor) != (len(self._states) == 1):
                return None
            for v, shape in zip(states, self._states, strict=True):
                if v.shape != shape or v.dtype is not dtype or not v.is_contiguous() or not v.is_cpu:
                    return None
        x = input.transpose(0, 1).contiguous() if module.batch_first else input
        if len(self._levels[0]) > 1:
            x = x.view_as(
                x
            )  # where the gradients of both directions are added, as they are on the general way, to the bit
        finals: list[tuple[Tensor, ...]] = []
        start = place = 0
        for level, counts in zip(self._levels, self._each, strict=True):
            outputs = []
            for ready, count in zip(level, counts, strict=True):
                own = states if self._whole else [v[place : place + 1] for v in states]
                output, *final = ready.run((x, *parameters[start : start + count], *own))
                outputs.append(output)
                finals.append(tuple(final))
                start += count
                place += 1
            x = outputs[0] if len(outputs) == 1 else merged(outputs, self._merge)
        last = finals[0] if self._whole else [torch.cat(entry) for entry in zip(*finals, strict=True)]
        given = last[0] if len(self._states) == 1 else self._form(*last)
        return (x.transpose(0, 1) if module.batch_first else x), given
