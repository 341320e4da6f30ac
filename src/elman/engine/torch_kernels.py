"""The torch engine: torch's own kernels (oneDNN, cuDNN, ATen) for the cells that torch has."""

import functools
from typing import Any

import torch
from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.elman import Elman
from elman.cells.gru import GRU
from elman.cells.lstm import LSTM
from elman.cells.wrapped import Projected
from elman.engine.call import DirectionResult, LayerCall
from elman.engine.reference import default_state
from elman.engine.surroundings import transformed

name = "torch"


def why_not(call: LayerCall) -> str | None:
    """The reason why torch's kernels cannot run the call, or None."""
    if _kernel(call.cell) is None:
        return f"torch has no kernel for {call.cell!r}"
    if call.reset is not None:
        return "torch's kernels take no reset"
    if call.every_state and len(call.layout.states) > 1:
        return "torch's kernels give no sequences of the inner states"
    problem = transformed()
    if problem is not None:
        return f"torch's kernels are one operation for all steps, and {problem}"
    mixed = torch.is_autocast_enabled("cpu")
    if call.input.device.type == "cpu" and mixed and _kernel(call.cell) is torch._VF.lstm:
        return _refusal(torch.get_autocast_dtype("cpu"))
    return None


@functools.cache
def _refusal(dtype: torch.dtype) -> str | None:
    """Why torch's LSTM cannot run under autocast on this processor, or None; a tiny one is tried."""
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        try:
            torch.nn.LSTM(4, 8, device="cpu")(torch.zeros(2, 1, 4, device="cpu"))
        except RuntimeError as error:
            return f"torch's LSTM does not run in {dtype} on this processor: {str(error).partition('.')[0]}"
    return None


def rather_not(call: LayerCall) -> str | None:
    """The reason why `auto` passes over torch's kernels where compiled ones can run, or None."""
    return "Elman's kernels are at least as fast on CPU" if call.input.device.type == "cpu" else None


def _kernel(cell: Cell) -> Any:
    if type(cell) is Projected:
        return _kernel(cell.cell) if type(cell.cell) is LSTM else None
    if type(cell) is Elman:
        return getattr(torch._VF, f"rnn_{cell.nonlinearity}")
    return {LSTM: torch._VF.lstm, GRU: torch._VF.gru}.get(type(cell))


def run(call: LayerCall) -> list[DirectionResult]:
    """Run a layer; see `LayerCall` for shapes."""
    packing = call.packing
    entries = range(len(call.layout.states))
    given = [d.state or default_state(call.layout, packing.batch, call.input) for d in call.directions]
    hx = tuple(torch.stack([state[k] for state in given]) for k in entries)
    state = hx if len(hx) > 1 else hx[0]
    weights = [d.parameters[p.name] for d in call.directions for p in call.layout.parameters]
    # A single layer: no dropout, so "training" only asks torch to keep what the backward pass needs.
    options = (call.layout.input_bias, 1, 0.0, torch.is_grad_enabled(), len(call.directions) == 2)
    kernel = _kernel(call.cell)
    output: Tensor
    if packing.is_dense:
        steps = call.input.unflatten(0, (packing.steps, packing.batch))
        output, *final = kernel(steps, state, weights, *options, False)
        output = output.flatten(0, 1)
    else:
        output, *final = kernel(call.input, packing.sizes, state, weights, *options)
    sequences = torch.split(output, call.layout.output_size, dim=1)
    return [DirectionResult((sequences[d],), tuple(final[k][d] for k in entries)) for d in range(len(call.directions))]
