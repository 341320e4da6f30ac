"""Inference one step at a time, with the state kept between the calls."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from elman.compiler.build import BuildError
from elman.compiler.graph import CannotCompile
from elman.engine import dispatch
from elman.engine.calls import Form, form_function
from elman.engine.cpu import build_problem, tools_problem
from elman.engine.draws import SILENT
from elman.engine.sinks import REALS
from elman.engine.stepping import LayerStep, Steps, unchanged
from elman.engine.surroundings import sees_operations
from elman.nn.unrolling import parameters_of

if TYPE_CHECKING:
    from elman.nn.recurrent import Recurrent


class Stepper:
    """Steps of a unidirectional `Recurrent` for a fixed number of rows; no gradients, and no masks, as in evaluation.

    Where the compiled engine can run the layers, matrices are packed once and each step is one call into a kernel.

    A copy, by `copy` or by pickle, goes on from the same state by itself, and reads the parameters when it is made.

    Args:
        module: the layers to step; their parameters are read when the stepper is made.
        batch_size: B, rows that step together.

    Raises:
        ValueError: the module is bidirectional, or batch_size is not positive.
    """

    def __init__(self, module: "Recurrent", batch_size: int = 1) -> None:
        if module.bidirectional:
            raise ValueError("a bidirectional layer cannot be stepped: its backward direction starts at the end")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self._module = module
        self.batch_size = batch_size
        self._state: Any = None
        self._kernel = _prepare(module, batch_size, carrying=True)
        # At hand for `__call__`, which takes Python longer than a small layer takes to run.
        self._run = None if self._kernel is None else self._kernel.steps.run

    def __reduce__(self) -> Any:
        return _stepper, (self._module, self.batch_size, _plain(self.state))

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
        if self._run is None or extras:
            return self._by_module(input, extras)
        output: Tensor | None = self._run(input)
        if output is None:
            assert self._kernel is not None
            output = self._run(self._kernel.checked(input))
            assert output is not None
        return output

    def _by_module(self, input: Tensor, extras: Mapping[str, Tensor] | None) -> Tensor:
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
        if input.dim() != 2 or input.shape[0] != self.batch_size:
            raise ValueError(f"input must be [B, I] with B = {self.batch_size}, got {tuple(input.shape)}")
        with torch.no_grad():
            output, self.state = self._module.step(input, self.state, extras=extras, noise=SILENT)
        return output  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Go back to the cell's default state, for all rows."""
        self.state = None


def _stepper(module: "Recurrent", batch_size: int, state: Any) -> Stepper:
    made = Stepper(module, batch_size)
    made.state = state
    return made


def _plain(state: Any) -> Any:
    """A state with tuples in place of named ones, which pickle would look for by name."""
    return tuple(_plain(one) for one in state) if isinstance(state, tuple) else state


class _Cache(threading.local):
    """Prepared layers by module, with what the parameters were then; each thread has its own, for they hold buffers."""

    def __init__(self) -> None:
        self.kernels: WeakKeyDictionary[Recurrent, _Kept] = WeakKeyDictionary()


class _Kept:
    """What was prepared for a module, and what it depends on.

    Args:
        parameters: the module's, which compiled kernels can read.
        form: of the calls.
    """

    def __init__(self, module: "Recurrent", parameters: Mapping[str, Tensor], batch: int, form: Form) -> None:
        self.kernels = None if module.bidirectional else _prepare(module, batch)
        self.form = form
        self.unchanged = unchanged(parameters)


def prepared(module: "Recurrent", input: Tensor) -> "_Kernels | None":
    """The layers as kernels that `Recurrent.step` may use, kept until a parameter changes, or None."""
    if module._modules or _hooked(module):  # a parametrization is a submodule
        return None
    batch, engine = input.shape[0], dispatch.wanted()
    form = form_function()(engine, 0, batch, 2, input)
    if form is None or batch == 0:
        return None
    kept = _cache.kernels.get(module)
    if kept is not None and kept.form == form and kept.unchanged(module._parameters):
        return kept.kernels
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if not module._stack.names <= parameters.keys() or engine not in ("auto", "cpu"):
        return None
    if any(p.is_inference() for p in parameters.values()):  # they count no versions
        return None
    dtype = next(iter(parameters.values())).dtype
    if dtype not in REALS or build_problem(dtype) is not None or tools_problem(dtype) is not None:
        return None
    if any(p.device.type != "cpu" or p.dtype != dtype or not p.is_contiguous() for p in parameters.values()):
        return None
    kept = _cache.kernels[module] = _Kept(module, parameters, batch, form)
    return kept.kernels


def _prepare(module: "Recurrent", batch: int, carrying: bool = False) -> "_Kernels | None":
    """The layers as prepared kernels, which may carry their own state, or None where `step` has to do."""
    if _hooked(module):
        return None
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
        return _Kernels(module, batch, carrying)
    except (CannotCompile, BuildError):
        if dispatch.wanted() == "cpu":
            raise
        return None  # `explain` says why; the layers' own engine is asked at each step


def _hooked(module: "Recurrent") -> bool:
    """Whether a call does more than to run the layers: some hooks set weights."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _readable(tensor: Tensor) -> Tensor:
    if sees_operations(tensor):
        raise TypeError(f"a step takes plain tensors, got a {type(tensor).__name__}, which takes each operation itself")
    return tensor.detach().cpu().contiguous()


def _misfit(input: Any, shape: torch.Size, dtype: torch.dtype) -> Exception:
    expected = f"[B, I] with B = {shape[0]} and I = {shape[1]} of {dtype}"
    if not isinstance(input, Tensor):
        return TypeError(f"input must be a Tensor, {expected}, got {type(input).__name__}")
    return ValueError(f"input must be {expected}, got {tuple(input.shape)} of {input.dtype}")


class _Kernels:
    def __init__(self, module: "Recurrent", batch: int, carrying: bool) -> None:
        self._dtype = next(module.parameters()).dtype
        self._specifications = module.layers[0][1].states
        self._form = module.cell.State
        self._shape = torch.Size((batch, module.input_size))
        layers, width = [], module.input_size
        for level, (cell, parts) in enumerate(module.layers):
            given = parameters_of(module, module._stack, level, 0)
            parameters = {name: value.detach().clone() for name, value in given.items()}
            layers.append(LayerStep(cell, parts, parameters, batch, width, self._dtype))
            width = parts.states[0][1]
        defaults = [module.default_state(level) for level in range(len(layers))]
        # Of each state entry [layers, B, width], where none is given.
        self._start = [
            torch.stack([value.detach().to(self._dtype).expand(batch, -1) for value in each])
            for each in zip(*defaults, strict=True)
        ]
        self.steps = Steps(layers, self._shape, self._start, carrying)
        self._run = self.steps.run

    def advance(self, input: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A step from a state to the next one, in the form that the module has; the own state stays as it is."""
        given = () if state is None else (state,) if isinstance(state, Tensor) else state
        made = self._run(input, *given) if isinstance(given, (tuple, list)) else None
        if made is None:
            made = self._run(self.checked(input), *(() if state is None else self._checked(state)))
        output, *entries = made
        return output, self._form(*entries) if len(entries) > 1 else entries[0]

    def checked(self, input: Tensor) -> Tensor:
        """The input as compiled steps can read it."""
        if not isinstance(input, Tensor) or input.shape != self._shape or input.dtype is not self._dtype:
            raise _misfit(input, self._shape, self._dtype)
        return _readable(input)

    def _checked(self, state: Any) -> Sequence[Tensor]:
        """The entries of a state, as compiled steps can read them."""
        values = (state,) if isinstance(state, Tensor) else state
        if not isinstance(values, (tuple, list)) or len(values) != len(self._start):
            raise self._no_state(state)
        if not all(isinstance(value, Tensor) for value in values):
            raise self._no_state(state)
        self._explain(values)
        return [_readable(value) for value in values]

    def _no_state(self, state: Any) -> ValueError:
        names = ", ".join(entry.name for entry, _ in self._specifications)
        values = (state,) if isinstance(state, Tensor) else state
        fine = isinstance(values, (tuple, list)) and all(isinstance(v, Tensor) for v in values)
        got = f"{len(values)}" if fine else f"{state!r:.80}"
        return ValueError(f"state must have the entries {names}, as tensors, got {got}")

    def _explain(self, values: Sequence[Tensor]) -> None:
        for value, like, (entry, _) in zip(values, self._start, self._specifications, strict=True):
            if value.dtype != self._dtype:
                raise ValueError(f"state entry {entry.name!r} must be {self._dtype}, got {value.dtype}")
            if value.shape != like.shape:
                raise ValueError(f"state entry {entry.name!r} must be {tuple(like.shape)}, got {tuple(value.shape)}")

    def state(self) -> Any:
        """A copy of the own state; None at the start."""
        if not self.steps.taken:
            return None
        entries = [entry.clone() for entry in self.steps.state]
        return self._form(*entries) if len(entries) > 1 else entries[0]

    def enter(self, state: Any) -> None:
        """Make a state the own one; None for the default."""
        values = self._start if state is None else self._checked(state)
        for entry, value in zip(self.steps.state, values, strict=True):
            entry.copy_(value)
        self.steps.taken = state is not None


_cache = _Cache()
