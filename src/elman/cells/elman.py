from dataclasses import dataclass
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.math import relu, tanh


@dataclass(frozen=True)
class Elman(Cell):
    """The vanilla recurrent network.

    h_t = tanh(W x_t + b + U h_{t-1} + b'), or relu in place of tanh.

    Jeffrey L. Elman, "Finding structure in time", Cognitive Science 14, 1990. With relu and an identity for U: Le,
    Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H]. Parameters: H·(I + H + 2).
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    gates = ("h",)

    def __post_init__(self) -> None:
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        activation = tanh if self.nonlinearity == "tanh" else relu
        return self.State(h=activation(x.h + u.h(s.h)))
