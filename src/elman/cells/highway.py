from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Constant
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class RecurrentHighway(Cell):
    """Recurrent highway network: several highway layers, the micro-steps, within each time step.

    s_0 = h_{t-1}; for l = 1 … depth:
    a_l = tanh([l = 1] W_a x_t + U_a,l s_{l-1} + b_a,l)
    z_l = σ([l = 1] W_z x_t + U_z,l s_{l-1} + b_z,l)          transform gate; the carry gate is 1 - z_l
    s_l = a_l ∘ z_l + s_{l-1} ∘ (1 - z_l)
    h_t = s_depth

    Zilly, Srivastava, Koutník & Schmidhuber, "Recurrent highway networks", ICML 2017, equations 6-9.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H·depth, H]. Parameters: 2H·(I + 1) + 2H·depth·(H + 1).
    """

    depth: int = 3

    input_gates = ("a", "z")
    initial = MappingProxyType({"bias_ih.z": Constant(-2.0)})

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")

    @property
    def recurrent_gates(self) -> tuple[str, ...]:
        return tuple(f"{gate}{level}" for level in range(self.depth) for gate in "az")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        h = s.h
        for level in range(self.depth):
            a = u[f"a{level}"](h) + (x.a if level == 0 else 0)
            z = sigmoid(u[f"z{level}"](h) + (x.z if level == 0 else 0))
            h = tanh(a) * z + h * (1 - z)
        return self.State(h=h)
