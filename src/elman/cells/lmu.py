from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from elman.cells.contract import Cell, Gate, Product, StateEntry
from elman.cells.discretise import zero_order_hold
from elman.cells.initial import Constant, LecunUniform, XavierNormal
from elman.cells.math import tanh


@dataclass(frozen=True)
class LMU(Cell):
    """Legendre memory unit: a linear memory of the last θ steps, written by one scalar, beside a tanh layer.

    u_t = e_x · x_t + e_h · h_{t-1} + e_m · m_{t-1}
    m_t = Ā m_{t-1} + B̄ u_t
    h_t = tanh(W_x x_t + W_h h_{t-1} + W_m m_t)

    Ā, B̄ are the zero-order hold of θ m' = A m + B u with A_ij = (2i + 1) (-1 if i < j else (-1)^(i-j+1)),
    B_i = (2i + 1) (-1)^i, i, j = 0 … order - 1.

    Voelker, Kajić & Eliasmith, "Legendre memory units: continuous-time representation in recurrent neural networks",
    NeurIPS 2019, equations 2-7. As there, no biases and e_m = 0 at the start.

    Shapes: x [B, I], h [B, H], m [B, order]; weight_ih [1 + H, I], weight_hh [1 + H, H], weight_e_m [1, order],
    weight_w_m [H, order]. Parameters: (H + 1)·(I + H + order).
    """

    order: int = 16
    theta: float = 64.0

    gates = (Gate("e", 1), "h")
    input_bias = False
    recurrent_bias = False
    initial = MappingProxyType(
        {
            "weight_ih.e": LecunUniform(),
            "weight_hh.e": LecunUniform(),
            "weight_e_m": Constant(0.0),
            "weight_ih.h": XavierNormal(),
            "weight_hh.h": XavierNormal(),
            "weight_w_m": XavierNormal(),
        }
    )

    def __post_init__(self) -> None:
        if self.order < 1 or self.theta <= 0:
            raise ValueError(f"order must be at least 1 and theta positive, got {self.order} and {self.theta}")

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        return ("h", StateEntry("m", self.order))

    @property
    def products(self) -> tuple[Product, ...]:
        return (
            Product("e_m", input=self.order, output=1, bias=False),
            Product("w_m", input=self.order, output="H", bias=False),
            Product("A_bar", input=self.order, output=self.order, fixed=True),
        )

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        i, j = np.indices((self.order, self.order))
        a = (2 * i + 1) * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
        b = (2 * i[:, 0] + 1) * (-1.0) ** i[:, 0]
        a_bar, b_bar = zero_order_hold(a / self.theta, b / self.theta)
        return {"A_bar": a_bar, "B_bar": b_bar}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        written = x.e + u.e(s.h) + u.e_m(s.m)
        m = u.A_bar(s.m) + p.B_bar * written
        return self.State(h=tanh(x.h + u.h(s.h) + u.w_m(m)), m=m)
