from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Product
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class LEM(Cell):
    """Long expressive memory: two states, each updated at time scales that it learns from the input.

    δ = Δt σ(V_1 x_t + W_1 y_{t-1} + b_1)           time steps of z
    δ̄ = Δt σ(V_2 x_t + W_2 y_{t-1} + b_2)           time steps of y
    z_t = (1 - δ) ∘ z_{t-1} + δ ∘ tanh(V_z x_t + W_z y_{t-1} + b_z)
    y_t = (1 - δ̄) ∘ y_{t-1} + δ̄ ∘ tanh(V_y x_t + W_y z_t + b_y)

    Rusch, Mishra, Erichson & Mahoney, "Long expressive memory for sequence modeling", ICLR 2022.

    Shapes: x [B, I], y and z [B, H]; weight_ih [4H, I], weight_hh [3H, H], weight_y (W_y) [H, H].
    Parameters: 4H·(I + H + 1).
    """

    dt: float = 1.0

    input_gates = ("delta_z", "delta_y", "z", "y")
    recurrent_gates = ("delta_z", "delta_y", "z")
    state = ("y", "z")
    products = (Product("y", input="H", bias=False),)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.dt <= 0:
            raise ValueError(f"dt must be positive, got {self.dt}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        delta_z = self.dt * sigmoid(x.delta_z + u.delta_z(s.y))
        delta_y = self.dt * sigmoid(x.delta_y + u.delta_y(s.y))
        z = (1 - delta_z) * s.z + delta_z * tanh(x.z + u.z(s.y))
        return self.State(y=(1 - delta_y) * s.y + delta_y * tanh(x.y + u.y(z)), z=z)
