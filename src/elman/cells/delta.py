from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Constant
from elman.cells.math import relu, sigmoid, tanh


@dataclass(frozen=True)
class DeltaRNN(Cell):
    """Delta-RNN: a slow state and a second-order candidate, mixed by a gate that shares the input's matrix.

    d¹ = α ∘ (V h_{t-1}) ∘ (W x_t),  d² = β_1 ∘ (V h_{t-1}) + β_2 ∘ (W x_t)
    z = tanh(d¹ + d² + b)
    r = σ(W x_t + b_r)
    h_t = Φ((1 - r) ∘ z + r ∘ h_{t-1}),  Φ = tanh, relu or the identity (`outer`)

    Ororbia, Mikolov & Reitter, "Learning simpler language models with the differential state framework", Neural
    Computation 29(12), 2017. At the start α = 2, β_1 = β_2 = 1 and b = b_r = 0.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh (V) [H, H], five vectors [H]. Parameters: H·(I + H + 5).
    """

    outer: Literal["tanh", "relu", "identity"] = "tanh"

    gates = ("h",)
    vectors = ("alpha", "beta_1", "beta_2")
    biases = ("b", "b_r")
    input_bias = False
    recurrent_bias = False
    initial = MappingProxyType(
        {
            "alpha": Constant(2.0),
            "beta_1": Constant(1.0),
            "beta_2": Constant(1.0),
            "b": Constant(0.0),
            "b_r": Constant(0.0),
        }
    )

    def __post_init__(self) -> None:
        if self.outer not in ("tanh", "relu", "identity"):
            raise ValueError(f"outer must be 'tanh', 'relu' or 'identity', got {self.outer!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        v = u.h(s.h)
        z = tanh(p.alpha * v * x.h + p.beta_1 * v + p.beta_2 * x.h + p.b)
        r = sigmoid(x.h + p.b_r)
        h = (1 - r) * z + r * s.h
        if self.outer != "identity":
            h = tanh(h) if self.outer == "tanh" else relu(h)
        return self.State(h=h)
