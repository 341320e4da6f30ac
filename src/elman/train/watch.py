"""What goes on inside a model: how far errors reach back, how large states are, how many gates are stuck."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from elman.engine.dispatch import use_engine
from elman.train.job import Job, Stretch
from elman.train.metrics import Metrics

LAGS = (1, 2, 4, 8, 16, 32, 64)
GATE_STEPS = 16  # steps whose gates are looked at
CLOSED, OPEN = 0.1, 0.9


def inside(job: Job, epoch: int) -> Metrics:
    """All of this module's measures, on the end of the first sequence of an epoch. Draws no random numbers."""
    length = job.lengths(epoch)[0]
    training = job.model.training
    job.model.eval()
    try:
        metrics = reach(job, Stretch(epoch, 0, max(0, length - LAGS[-1] - 1), length))
        return {**metrics, **gates(job, Stretch(epoch, 0, max(0, length - GATE_STEPS), length))}
    finally:
        job.model.train(training)


def reach(job: Job, stretch: Stretch) -> Metrics:
    """How far the error of a stretch's last step reaches back, and the size of the states.

    Returns:
        ``gradient_lag_K``: the norm of the last loss's gradient with respect to the state K steps before it, for powers
        of two; ``state_NAME``: the root mean square of each entry of the state. Empty for a job that carries no state.
    """
    carry = job.begin()
    states: list[list[Tensor]] = []
    with torch.enable_grad():
        for step in range(stretch.start, stretch.stop - 1):
            carry = job.read(Stretch(stretch.epoch, stretch.index, step, step + 1), carry)
            states.append([tensor for _, tensor in entries(carry) if tensor.requires_grad])
        if not states or not states[-1]:
            return {}
        last = Stretch(stretch.epoch, stretch.index, stretch.stop - 1, stretch.stop)
        loss, _, after = job.loss(last, carry)
        flat = [tensor for state in states for tensor in state]
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    squares = [
        sum(g.double().square().sum().item() for _ in state if (g := next(found)) is not None) for state in states
    ]
    metrics = {f"gradient_lag_{lag}": squares[-lag] ** 0.5 for lag in LAGS if lag <= len(squares)}
    return {**metrics, **state_sizes(after)}


def state_sizes(carry: Any) -> Metrics:
    """``state_NAME``: the root mean square of each floating-point entry."""
    return {f"state_{name}": t.detach().double().square().mean().sqrt().item() for name, t in entries(carry)}


def entries(carry: Any, name: str = "h", number: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of a carry, with names: a named tuple's own, else ``h``, and numbers in sequences."""
    if isinstance(carry, Tensor):
        if carry.is_floating_point():
            yield name + number, carry
    elif isinstance(carry, tuple) and hasattr(carry, "_fields"):
        for field, value in zip(carry._fields, carry, strict=True):
            yield from entries(value, field, number)
    elif isinstance(carry, (list, tuple)):
        for place, value in enumerate(carry):
            yield from entries(value, name, f"{number}{place}")


@torch.no_grad()
def gates(job: Job, stretch: Stretch) -> Metrics:
    """How many gates are stuck, counted on the reference engine, so for any cell.

    Returns:
        ``gates_closed`` and ``gates_open``: the share of sigmoids below 0.1 and above 0.9; ``tanh_saturated``: that of
        hyperbolic tangents beyond 0.9 either way. Only what the cell has.
    """
    counter = _Counter()
    with use_engine("reference"), counter:
        job.read(stretch, job.begin())
    metrics = {}
    if gated := counter.gates:
        metrics = {"gates_closed": counter.closed / gated, "gates_open": counter.open / gated}
    return {**metrics, **({"tanh_saturated": counter.saturated / counter.tanhs} if counter.tanhs else {})}


class _Counter(TorchFunctionMode):
    gates = closed = open = tanhs = saturated = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.sigmoid, Tensor.sigmoid):
            self.gates += result.numel()
            self.closed += int((result < CLOSED).sum())
            self.open += int((result > OPEN).sum())
        elif function in (torch.tanh, Tensor.tanh):
            self.tanhs += result.numel()
            self.saturated += int((result.abs() > OPEN).sum())
        return result


def memory(device: torch.device) -> Metrics:
    """Most memory in use so far, in MB: of the process, and of its CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    metrics = {"memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    if device.type == "cuda":
        metrics["cuda_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return metrics
