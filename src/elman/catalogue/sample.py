"""A cell as layers of one size, at which its engine is told and its cost measured. Imports torch."""

from typing import Any

import torch

from elman.cells.contract import Cell
from elman.cells.layout import layout
from elman.engine.dispatch import explain, wanted
from elman.nn.recurrent import Recurrent

BATCH, STEPS, SIZE = 32, 32, 128  # B, T, and I = H


def layers_of(cell: Cell, num_layers: int) -> Recurrent:
    """Layers of the size that is measured, or of the next that the cell can have."""
    for size in range(SIZE, 2 * SIZE):
        inputs = size if cell.equal_sizes else SIZE
        try:
            layout(cell, inputs, size)
        except ValueError:
            continue
        return Recurrent(cell, inputs, size, num_layers)
    return Recurrent(cell, SIZE, SIZE, num_layers)  # raises what is wrong


def arguments_of(module: Recurrent) -> dict[str, Any]:
    """An input of the size that is measured, and the extra inputs that the cell cannot do without."""
    needed = [e for e in module.layers[0][1].extras if e.default is None]
    extras = {e.name: torch.ones(STEPS, BATCH, e.width) for e in needed}
    return {"input": torch.randn(STEPS, BATCH, module.input_size, requires_grad=True), "extras": extras or None}


def engine_of(cell: Cell) -> tuple[str, dict[str, str]]:
    """The engine of a training step at this size, and the engines that cannot run it, each with its reason."""
    module = layers_of(cell, 2 if cell.below else 1)
    try:
        found = explain(module, **arguments_of(module))
    except RuntimeError as error:  # ELMAN_ENGINE names one that cannot
        return "none", {wanted(): str(error)}
    return found.engines[-1], dict(found.refusals[-1])
