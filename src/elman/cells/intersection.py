from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.math import relu, sigmoid, tanh


@dataclass(frozen=True)
class UGRNN(Cell):
    """Update gate network: the vanilla network with one gate, coupled, between the old state and the new.

    g = σ(W_g x_t + U_g h_{t-1} + b_g)
    c = tanh(W_c x_t + U_c h_{t-1} + b_c), or relu in place of tanh
    h_t = g ∘ h_{t-1} + (1 - g) ∘ c

    Collins, Sohl-Dickstein & Sussillo, "Capacity and trainability in recurrent neural networks", ICLR 2017.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H]. Parameters: 2H·(I + H + 1).
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    gates = ("c", "g")
    keeping = MappingProxyType({"bias_ih.g": 1})
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        activation = tanh if self.nonlinearity == "tanh" else relu
        g = sigmoid(x.g + u.g(s.h))
        return self.State(h=g * s.h + (1 - g) * activation(x.c + u.c(s.h)))


@dataclass(frozen=True)
class IntersectionRNN(Cell):
    """Intersection network, +RNN: one gate along time, another along depth, from the input to the output.

    y' = relu(W_y x_t + U_y h_{t-1} + b_y)
    h' = tanh(W_h x_t + U_h h_{t-1} + b_h)
    g_y = σ(W_gy x_t + U_gy h_{t-1} + b_gy)
    g_h = σ(W_gh x_t + U_gh h_{t-1} + b_gh)
    y_t = g_y ∘ (W_s x_t) + (1 - g_y) ∘ y'                   the output
    h_t = g_h ∘ h_{t-1} + (1 - g_h) ∘ h'

    Collins, Sohl-Dickstein & Sussillo, "Capacity and trainability in recurrent neural networks", ICLR 2017. The paper
    has x_t in place of W_s x_t, which takes I = H: `projected=False` does so.

    Shapes: x [B, I], y and h [B, H]; weight_ih [5H, I], or [4H, I] unless projected, weight_hh [4H, H].
    Parameters: (4 + projected)·H·I + 4H·(H + 1).
    """

    projected: bool = True

    recurrent_gates = ("y", "h", "gy", "gh")
    state = ("y", "h")
    input_bias = False

    @property
    def input_gates(self) -> tuple[str, ...]:
        return (*self.recurrent_gates, "s") if self.projected else self.recurrent_gates

    @property
    def equal_sizes(self) -> bool:
        return not self.projected

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        g_y = sigmoid(x.gy + u.gy(s.h))
        g_h = sigmoid(x.gh + u.gh(s.h))
        y = g_y * (x.s if self.projected else x.raw) + (1 - g_y) * relu(x.y + u.y(s.h))
        h = g_h * s.h + (1 - g_h) * tanh(x.h + u.h(s.h))
        return self.State(y=y, h=h)
