"""Chrono initialisation: gates that keep the state start open, for memories of different lengths.

Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018: to bridge up to T steps, a forget gate's bias
starts at log U(1, T - 1), and the bias of an input gate at the negative of it.
"""

from __future__ import annotations

import torch

from elman.cells.initial import Chrono
from elman.nn.recurrent import Recurrent

# each cell's biases that decide about keeping: + where an open gate keeps the state, - where it lets new content in
_FORGET_AND_INPUT = {"bias_ih.f": 1, "bias_ih.i": -1}
KEEPING: dict[str, dict[str, int]] = {
    "lstm": _FORGET_AND_INPUT,
    "peephole_lstm": _FORGET_AND_INPUT,
    "layer_norm_lstm": {"b_f": 1, "b_i": -1},
    "coupled_lstm": {"bias_ih.i": -1},
    "janet": {"bias_ih.f": 1},
    "gru": {"bias_ih.z": 1},
    "gru_reset_before": {"bias_ih.z": 1},
    "layer_norm_gru": {"b_z": -1},
    "mgu": {"bias_ih.f": -1},
    "ugrnn": {"bias_ih.g": 1},
    "sru": {"b_f": 1},
    "min_gru": {"bias_ih.z": -1},
    "min_lstm": _FORGET_AND_INPUT,
}


@torch.no_grad()
def open_gates(recurrent: Recurrent, cell: str, steps: int) -> tuple[str, ...]:
    """Set the biases that decide about keeping; returns their names, none for a cell without such gates.

    Gates of one unit start from the same draw. A second bias of the gate, ``bias_hh``, starts at zero.
    """
    keeping = KEEPING.get(cell, {})
    for level, (_, parts) in enumerate(recurrent.layers):
        units = parts.hidden_size
        for direction in range(recurrent.num_directions):
            suffix = f"_l{level}" + "_reverse" * direction
            blocks = {
                name: getattr(recurrent, parameter.name + suffix)[rows]
                for parameter in parts.parameters
                for name, rows in (
                    (parameter.name, slice(None)),
                    *((f"{parameter.name}.{gate}", rows) for gate, rows in parameter.blocks.items()),
                )
            }
            start = torch.empty(units)
            Chrono(max(steps, 3)).fill(start, units)
            for name, sign in keeping.items():
                blocks[name].copy_(sign * start)
                second = name.replace("bias_ih", "bias_hh")
                if second != name and second in blocks:
                    blocks[second].zero_()
    return tuple(keeping)
