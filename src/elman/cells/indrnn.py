from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Between, Initial
from elman.cells.math import relu, tanh


@dataclass(frozen=True)
class IndRNN(Cell):
    """Independently recurrent network: each unit sees, of the past, only itself.

    h_t = relu(W x_t + u ∘ h_{t-1} + b), or tanh in place of relu

    Li, Li, Cook, Zhu & Gao, "Independently recurrent neural network (IndRNN): building a longer and deeper RNN", CVPR
    2018. For gradients that grow at most γ times over T steps the paper keeps |u| ≤ γ^(1/T) and starts with u ~ U(0,
    γ^(1/T)): `limit`, which is near 1 for long sequences. To keep to it in training, clamp u after each update.
    torchrecurrent's default is tanh.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], u [H]. Parameters: H·(I + 2).
    """

    nonlinearity: Literal["relu", "tanh"] = "relu"
    limit: float = 1.0

    input_gates = ("h",)
    recurrent_gates = ()
    vectors = ("u",)

    def __post_init__(self) -> None:
        if self.nonlinearity not in ("relu", "tanh"):
            raise ValueError(f"nonlinearity must be 'relu' or 'tanh', got {self.nonlinearity!r}")
        if self.limit <= 0:
            raise ValueError(f"limit must be positive, got {self.limit}")

    @property
    def initial(self) -> Mapping[str, Initial]:
        return {"u": Between(0.0, self.limit)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        activation = relu if self.nonlinearity == "relu" else tanh
        return self.State(h=activation(x.h + p.u * s.h))
