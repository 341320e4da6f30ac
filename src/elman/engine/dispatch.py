"""Which engine runs a layer, and why."""

import os
from collections.abc import Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elman.engine import cpu, reference, torch_kernels
from elman.engine.call import DirectionResult, LayerCall

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from elman.nn.recurrent import Recurrent

_ENGINES: dict[str, Any] = {
    engine.name: engine for engine in (torch_kernels, cpu, reference)
}  # in the order that `auto` prefers
ENGINE_NAMES = ("auto", *_ENGINES)

_chosen: ContextVar[str | None] = ContextVar("elman_engine", default=None)


@dataclass(frozen=True)
class Explanation:
    """Which engine each layer would run on.

    Attributes:
        engines: the engine of each layer, from the lowest.
        refusals: for each layer, the engines that cannot run it, each with its reason.
    """

    engines: tuple[str, ...]
    refusals: tuple[Mapping[str, str], ...]

    def __str__(self) -> str:
        lines = []
        for layer, (engine, refusals) in enumerate(zip(self.engines, self.refusals, strict=True)):
            reasons = "".join(f"; not {name}: {reason}" for name, reason in refusals.items())
            lines.append(f"layer {layer}: {engine}{reasons}")
        return "\n".join(lines)


class use_engine(ContextDecorator):  # noqa: N801 - used as a function, as torch.no_grad is
    """Run layers on one engine, "auto", "torch", "cpu" or "reference": within the context, or without one from now on.

    It holds for this thread. Where nothing was chosen so, the environment variable ELMAN_ENGINE chooses, and without it
    "auto". A named engine that cannot run a layer raises a RuntimeError that says why.

    Raises:
        ValueError: no engine has this name.
    """

    def __init__(self, name: str) -> None:
        self._name = _check(name, "engine")
        self._before = [_chosen.get()]  # what to go back to, of each context that was entered and is not left yet
        self._entered = False
        _chosen.set(name)

    def __enter__(self) -> None:
        if self._entered:
            self._before.append(_chosen.get())
        self._entered = True
        _chosen.set(self._name)

    def __exit__(self, *problem: object) -> None:
        _chosen.set(self._before.pop())

    def __call__(self, function: Any) -> Any:
        """As a decorator, of that function alone."""
        _chosen.set(self._before[0])
        return super().__call__(function)

    def _recreate_cm(self) -> "use_engine":
        """What each call of a decorated function enters; see `ContextDecorator`."""
        return use_engine(self._name)


def _check(name: str, what: str) -> str:
    if name not in ENGINE_NAMES:
        raise ValueError(f"{what} must be one of {', '.join(ENGINE_NAMES)}, got {name!r}")
    return name


# What `os.environ` holds, if it can be had: behind a kernel, its own functions take longer than all of `wanted`.
_variables: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_variable: Any = "ELMAN_ENGINE" if _variables is os.environ else os.environ.encodekey("ELMAN_ENGINE")


def wanted() -> str:
    """The engine that is asked for here: "auto", or a name."""
    chosen = _chosen.get()
    if chosen is None and _variables.get(_variable):
        chosen = _check(os.environ["ELMAN_ENGINE"], "ELMAN_ENGINE")
    return chosen or "auto"


def choose(call: LayerCall) -> tuple[str, dict[str, str]]:
    """The engine for a call, and the reasons of the preferred ones that cannot run it.

    Raises:
        RuntimeError: an engine was named and cannot run the call.
    """
    named = wanted()
    if named != "auto":
        reason = _ENGINES[named].why_not(call)
        if reason is not None:
            raise RuntimeError(f"the engine {named!r} cannot run this layer: {reason}")
        return named, {}
    refusals: dict[str, str] = {}
    slower: dict[str, str] = {}
    for name, engine in _ENGINES.items():
        reason = engine.why_not(call)
        if reason is not None:
            refusals[name] = reason
            continue
        reason = engine.rather_not(call)
        if reason is None and not (slower and name == reference.name):
            return name, refusals | slower
        if reason is not None:
            slower[name] = reason
    return next(iter(slower)), refusals


def run(call: LayerCall) -> list[DirectionResult]:
    """Run a layer on the engine that `choose` names."""
    results: list[DirectionResult] = _ENGINES[choose(call)[0]].run(call)
    return results


def explain(module: "Recurrent", input: "Tensor | PackedSequence | None" = None, **arguments: Any) -> Explanation:
    """Which engine would run each layer of a module, and why not another.

    Args:
        module: a `Recurrent`.
        input: what the module would be called with; by default two steps of one row.
        arguments: `lengths`, `reset` and `extras` as for the call.
    """
    if not hasattr(module, "plan"):
        raise TypeError(f"explain takes a Recurrent, got {type(module).__name__}")
    found: list[tuple[str, dict[str, str]]] = []
    module.plan(input, found=found, **arguments)
    return Explanation(tuple(engine for engine, _ in found), tuple(refusals for _, refusals in found))
