from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Product
from elman.cells.math import Value, maximum, minimum, sigmoid, softplus, tanh


def _hard_sigmoid(v: Value, slope: float) -> Value:
    return minimum(maximum(slope * v + 0.5, 0.0), 1.0)


@dataclass(frozen=True)
class SGU(Cell):
    """Simple gated unit: the input multiplies the state, twice, and one gate lets the result in.

    a = tanh(U_a ((W_a x_t + b_a) ∘ h_{t-1}))
    z = hard σ(W_z x_t + U_z h_{t-1} + b_z)
    h_t = (1 - z) ∘ h_{t-1} + z ∘ softplus(a ∘ h_{t-1})

    with hard σ(v) = min(max(slope · v + ½, 0), 1); the default slope is Theano's and Keras's, torch's is ⅙.

    Gao & Glowacka, "Deep gate recurrent neural network", ACML 2016.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H]. Parameters: 2H·(I + H + 1).
    """

    slope: float = 0.2

    gates = ("a", "z")
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.slope <= 0:
            raise ValueError(f"slope must be positive, got {self.slope!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        a = tanh(u.a(x.a * s.h))
        z = _hard_sigmoid(x.z + u.z(s.h), self.slope)
        return self.State(h=(1 - z) * s.h + z * softplus(a * s.h))


@dataclass(frozen=True)
class DSGU(SGU):
    """Deep simple gated unit: SGU with one more product, and a bounded output.

    h_t = (1 - z) ∘ h_{t-1} + z ∘ σ(U_o (a ∘ h_{t-1}))

    with a and z as in SGU.

    Gao & Glowacka, "Deep gate recurrent neural network", ACML 2016.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H], weight_o [H, H]. Parameters: H·(2I + 3H + 2).
    """

    products = (Product("o", input="H", bias=False),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        a = tanh(u.a(x.a * s.h))
        z = _hard_sigmoid(x.z + u.z(s.h), self.slope)
        return self.State(h=(1 - z) * s.h + z * sigmoid(u.o(a * s.h)))
