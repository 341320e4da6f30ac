"""Chrono initialisation: gates that keep the state start open, for memories of different lengths.

Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018: to bridge up to T steps, a forget gate's bias
starts at log U(1, T - 1), and the bias of an input gate at the negative of it.
"""

from __future__ import annotations

import torch

from elman.nn.initialise import set_chrono
from elman.nn.recurrent import Recurrent


@torch.no_grad()
def open_gates(recurrent: Recurrent, steps: int) -> tuple[str, ...]:
    """Set the biases that decide about keeping; returns their names, none for a cell without such gates."""
    for level, (cell, parts) in enumerate(recurrent.layers):
        for suffix in (f"_l{level}", f"_l{level}_reverse")[: recurrent.num_directions]:
            set_chrono(recurrent, cell, parts, suffix, max(steps, 3))
    return tuple(recurrent.cell.keeping)
