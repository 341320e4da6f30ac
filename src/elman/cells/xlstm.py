from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import exp, log_sigmoid, maximum, sigmoid, tanh, where
from elman.cells.structure import BlockDiagonal


@dataclass(frozen=True)
class SLSTM(Cell):
    """The scalar-memory LSTM of xLSTM: exponential input gate, normaliser, and memory mixing within heads.

    m_t = max(log σ(f̃) + m_{t-1}, ĩ)               stabiliser; ĩ at the first step
    i = exp(ĩ - m_t),  f = exp(log σ(f̃) + m_{t-1} - m_t)
    c_t = f ∘ c_{t-1} + i ∘ tanh(g̃)
    n_t = f ∘ n_{t-1} + i
    h_t = σ(õ) ∘ c_t / n_t

    where ĩ, f̃, g̃, õ are the pre-activations W x_t + U h_{t-1} + b, with U block-diagonal: one block for each head.

    Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, equations 8-18 and appendix A.

    Shapes: x [B, I], h, c, n and m [B, H]; weight_ih [4H, I], weight_hh [4H, H / heads]. H must be a multiple of the
    number of heads. Parameters: 4H·(I + H / heads + 2).
    """

    heads: int = 4

    gates = ("i", "f", "g", "o")
    state = ("h", "c", "n", "m")

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @property
    def recurrent_structure(self) -> BlockDiagonal:
        return BlockDiagonal(self.heads)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i_log = x.i + u.i(s.h)
        f_log = log_sigmoid(x.f + u.f(s.h)) + s.m
        m = where(s.n == 0, i_log, maximum(f_log, i_log))
        i = exp(i_log - m)
        f = exp(f_log - m)
        c = f * s.c + i * tanh(x.g + u.g(s.h))
        n = f * s.n + i
        return self.State(h=sigmoid(x.o + u.o(s.h)) * c / n, c=c, n=n, m=m)
