"""Inference one step at a time, with the state kept between the calls."""

import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from elman.compiler import build
from elman.compiler.build import BuildError
from elman.compiler.graph import CannotCompile
from elman.engine import dispatch
from elman.engine.cpu import build_problem
from elman.engine.draws import SILENT
from elman.engine.products import tools
from elman.engine.program import REALS
from elman.engine.stepping import LayerStep
from elman.nn.recurrent import Recurrent


class Stepper:
    """Steps of a unidirectional `Recurrent` for a fixed number of rows; no gradients, and no masks, as in evaluation.

    Where the compiled engine can run the layers, matrices are packed once and each step is one call into a kernel.

    Args:
        module: the layers to step; their parameters are read when the stepper is made.
        batch_size: B, rows that step together.

    Raises:
        ValueError: the module is bidirectional, or batch_size is not positive.
    """

    def __init__(self, module: Recurrent, batch_size: int = 1) -> None:
        if module.bidirectional:
            raise ValueError("a bidirectional layer cannot be stepped: its backward direction starts at the end")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._module = module
        self.batch_size = batch_size
        self._state: Any = None
        self._kernel = _prepare(module, batch_size)

    @property
    def state(self) -> Any:
        """The state after the last step, in the form that the module's `forward` takes and gives; it may be assigned.

        None at the start: the cell's default.
        """
        if self._kernel is not None:
            return self._kernel.state()
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        if self._kernel is not None:
            self._kernel.enter(state)
        else:
            self._state = state

    def __call__(self, input: Tensor, *, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        """One time step: [B, I] to [B, H]."""
        if self._kernel is not None and not extras:
            return self._kernel.step(input)
        if input.dim() != 2 or input.shape[0] != self.batch_size:
            raise ValueError(f"input must be [B, I] with B = {self.batch_size}, got {tuple(input.shape)}")
        with torch.no_grad():
            output, self.state = self._module.step(input, self.state, extras=extras, noise=SILENT)
        return output  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Go back to the cell's default state, for all rows."""
        self.state = None


class _Cache(threading.local):
    """Prepared layers by module, with what the parameters were then; each thread has its own, for they hold buffers."""

    def __init__(self) -> None:
        self.kernels: WeakKeyDictionary[Recurrent, _Kept] = WeakKeyDictionary()


_SAMPLED = 64  # numbers of each parameter that are compared, since torch does not count changes through `.data`


class _Kept:
    """What was prepared for a module, and what it depends on.

    Args:
        parameters: the module's, which compiled kernels can read.
        situation: what else it depends on.
    """

    def __init__(self, module: Recurrent, parameters: Sequence[Tensor], situation: tuple[Any, ...]) -> None:
        self.kernels = None if module.bidirectional else _prepare(module, situation[0])
        self._situation = situation
        self._tools = tools(parameters[0].dtype)
        self._described = self._tools.described(parameters)
        self._places = [p.data_ptr() for p in parameters]
        self._versions = [p._version for p in parameters]
        self._sample = self._tools.sample(self._described, _SAMPLED)

    def holds(self, parameters: Sequence[Tensor], situation: tuple[Any, ...]) -> bool:
        """Whether nothing has changed."""
        return (
            self._situation == situation
            and [p.data_ptr() for p in parameters] == self._places
            and [p._version for p in parameters] == self._versions
            and self._tools.sample(self._described, _SAMPLED) == self._sample
        )


def prepared(module: Recurrent, batch: int) -> "_Kernels | None":
    """The layers as kernels that `Recurrent.step` may use, kept until a parameter changes, or None."""
    if module._modules or batch == 0 or torch.is_autocast_enabled("cpu"):  # a parametrization is a submodule
        return None
    parameters = [p for p in module._parameters.values() if p is not None]
    situation = (batch, dispatch.wanted(), build.instruction_set())
    kept = _cache.kernels.get(module)
    if kept is not None and kept.holds(parameters, situation):
        return kept.kernels
    if any(p.is_inference() for p in parameters):  # they count no versions
        return None
    dtype = parameters[0].dtype
    if situation[1] not in ("auto", "cpu") or dtype not in REALS:
        return None
    if any(p.device.type != "cpu" or p.dtype != dtype or not p.is_contiguous() for p in parameters):
        return None
    if build_problem(dtype) is not None:
        return None
    kept = _cache.kernels[module] = _Kept(module, parameters, situation)
    return kept.kernels


def _prepare(module: Recurrent, batch: int) -> "_Kernels | None":
    """The layers as prepared kernels, or None where `step` has to do."""
    weight = next(module.parameters())
    layers = module.layers
    plain = all(not cell.below and not parts.extras for cell, parts in layers)
    counted = any(entry.dtype == "int64" for entry, _ in layers[0][1].states)
    plain = plain and not module.layered and module.plain_stack and not any(parts.draws for _, parts in layers)
    if not plain or counted or weight.dtype not in REALS or weight.device.type != "cpu":
        return None
    if dispatch.wanted() not in ("auto", "cpu"):
        return None
    try:
        return _Kernels(module, batch)
    except (CannotCompile, BuildError):
        if dispatch.wanted() == "cpu":
            raise
        return None  # `explain` says why; the layers' own engine is asked at each step


class _Kernels:
    def __init__(self, module: Recurrent, batch: int) -> None:
        weight = next(module.parameters())
        self._batch = batch
        self._dtype = weight.dtype
        self._layers: list[LayerStep] = []
        self._specifications = [parts for _, parts in module.layers]
        self._form = module.cell.State
        self._input = torch.zeros(batch, module.input_size, dtype=self._dtype)
        raw = (self._input, self._input)
        for level, (cell, parts) in enumerate(module.layers):
            parameters = {p.name: getattr(module, f"{p.name}_l{level}").detach().clone() for p in parts.parameters}
            layer = LayerStep(cell, parts, parameters, batch, raw)
            self._layers.append(layer)
            raw = (layer.states[0][1], layer.states[0][0])  # what an even step, and an odd one, has just written
        size = self._dtype.itemsize
        self._shape = self._input.shape
        self._inputs, self._raw = self._layers[0].inputs, self._layers[0].raw
        # For even and odd steps, each state entry in each layer, where it is read: addresses, and bytes.
        self._places = [
            [[layer.states[k][odd].data_ptr() for layer in self._layers] for k in range(len(self._layers[0].states))]
            for odd in (0, 1)
        ]
        self._bytes = [pair[0].numel() * size for pair in self._layers[0].states]
        defaults = [module.default_state(level) for level in range(len(self._layers))]
        # Of each state entry [layers, B, width], where none is given.
        self._start = [
            torch.stack([value.detach().to(self._dtype).expand(batch, -1) for value in each])
            for each in zip(*defaults, strict=True)
        ]
        self._runs = [[layer.runs[odd] for layer in self._layers] for odd in (0, 1)]
        self._outputs = raw  # what the last layer writes at even and at odd steps
        self._odd = 0
        self._started = False
        self.enter(None)

    def advance(self, input: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A step from a state to the next one, in the form that the module has; the own state stays as it is."""
        self._check(input)
        x = input if input.is_contiguous() and input.is_cpu else self._input.copy_(input)
        given = self._start if state is None else self._checked(state)
        made = [torch.empty_like(like) for like in self._start]
        at, before, after = x.data_ptr(), [v.data_ptr() for v in given], [v.data_ptr() for v in made]
        for level, layer in enumerate(self._layers):
            buffers = layer.buffers
            buffers[layer.raw] = at
            at = after[0] + level * self._bytes[0]
            for k, (old, new) in enumerate(layer.entries):
                start = level * self._bytes[k]
                buffers[old], buffers[new] = before[k] + start, after[k] + start
            layer.run()
        output = torch.empty_like(self._outputs[0])
        ctypes.memmove(output.data_ptr(), at, self._bytes[0])
        return output, self._form(*made) if len(made) > 1 else made[0]

    def _checked(self, state: Any) -> list[Tensor]:
        """The entries of a state, contiguous."""
        values = (state,) if isinstance(state, Tensor) else state
        if len(values) != len(self._start):
            names = [entry.name for entry, _ in self._specifications[0].states]
            raise ValueError(f"state must have the entries {', '.join(names)}, got {len(values)}")
        found = []
        for value, like, (entry, _) in zip(values, self._start, self._specifications[0].states, strict=True):
            if value.dtype != self._dtype:
                raise ValueError(f"state entry {entry.name!r} must be {self._dtype}, got {value.dtype}")
            if value.shape != like.shape:
                raise ValueError(f"state entry {entry.name!r} must be {tuple(like.shape)}, got {tuple(value.shape)}")
            found.append(value if value.is_contiguous() and value.is_cpu else value.detach().cpu().contiguous())
        return found

    def _check(self, input: Tensor) -> None:
        if input.shape != self._shape or input.dtype != self._dtype:
            expected = f"[B, I] with B = {self._shape[0]} and I = {self._shape[1]} of {self._dtype}"
            raise ValueError(f"input must be {expected}, got {tuple(input.shape)} of {input.dtype}")

    def step(self, input: Tensor) -> Tensor:
        self._check(input)
        x = input if input.is_contiguous() and input.is_cpu else self._input.copy_(input)
        odd = self._odd
        self._inputs[odd][self._raw] = x.data_ptr()
        for run in self._runs[odd]:
            run()
        self._odd = 1 - odd
        self._started = True
        return self._outputs[odd].clone()

    def state(self) -> Any:
        if not self._started:
            return None
        entries = []
        for first, size, places in zip(self._layers[0].states, self._bytes, self._places[self._odd], strict=True):
            entry = first[0].new_empty((len(places), *first[0].shape))
            to = entry.data_ptr()
            for level, place in enumerate(places):
                ctypes.memmove(to + level * size, place, size)
            entries.append(entry)
        return self._form(*entries) if len(entries) > 1 else entries[0]

    def enter(self, state: Any) -> None:
        values = self._start if state is None else self._checked(state)
        self._started = state is not None
        for value, size, places in zip(values, self._bytes, self._places[self._odd], strict=True):
            start = value.data_ptr()
            for level, place in enumerate(places):
                ctypes.memmove(place, start + level * size, size)


_cache = _Cache()
