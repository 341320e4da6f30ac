from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elman.cells.contract import Cell
from elman.cells.math import tanh, where
from elman.cells.structure import BlockTriangular


@dataclass(frozen=True)
class Clockwork(Cell):
    """Vanilla recurrent network in blocks of units, each of which runs at its own clock period.

    h_t[block j] = tanh(W_j x_t + b_j + Σ_{k ≥ j} U_jk h_{t-1}[block k])   where t mod period_j = 0
    h_t[block j] = h_{t-1}[block j]                                        elsewhere

    Steps count from 0 at the start of each sequence, so that all blocks are due at the first. Periods ascend: a fast
    block sees itself and the slower ones.

    Koutník, Greff, Gomez & Schmidhuber, "A clockwork RNN", ICML 2014.

    Shapes: x [B, I], h [B, H], t [B, 1]; weight_ih [H, I], weight_hh [H, H] of which the blocks below the diagonal
    count as zero. H must be a multiple of the number of periods g. Parameters in use: H·(I + 2) + H²·(g + 1) / 2 / g.
    """

    periods: tuple[int, ...] = (1, 2, 4, 8)

    gates = ("h",)
    state = ("h", "t")

    def __post_init__(self) -> None:
        if not self.periods or min(self.periods) < 1 or list(self.periods) != sorted(self.periods):
            raise ValueError(f"periods must be ascending positive integers, got {self.periods}")

    @property
    def recurrent_structure(self) -> BlockTriangular:
        return BlockTriangular(len(self.periods))

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        return {"period": np.repeat(self.periods, hidden_size // len(self.periods))}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        due = s.t % p.period == 0
        return self.State(h=where(due, tanh(x.h + u.h(s.h)), s.h), t=s.t + 1)
