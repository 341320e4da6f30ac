from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class QRNN(Cell):
    """Quasi-recurrent network with fo-pooling: convolutions over time, and a gated average of what they give.

    z = tanh(W_z0 x_t + W_z1 x_{t-1} + … + W_zk x_{t-k}),  k = window - 1
    f = σ(W_f0 x_t + … + W_fk x_{t-k})
    o = σ(W_o0 x_t + … + W_ok x_{t-k})
    c_t = f ∘ c_{t-1} + (1 - f) ∘ z
    h_t = o ∘ c_t

    Inputs before the first step are zero. What x_t gives to later steps is computed with the rest of its products, and
    carried as states: z1 is the part of the next step's convolution that is known already, z2 that of the one after.

    Bradbury, Merity, Xiong & Socher, "Quasi-recurrent neural networks", ICLR 2017; as in its equations, no biases.

    Shapes: x [B, I], h, c and 3·(window - 1) further states [B, H]; weight_ih [3H·window, I], no weight_hh.
    Parameters: 3H·I·window.
    """

    window: int = 2

    recurrent_gates = ()
    input_bias = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @property
    def input_gates(self) -> tuple[str, ...]:
        return tuple(f"{gate}{delay}" for delay in range(self.window) for gate in "zfo")

    @property
    def state(self) -> tuple[str, ...]:
        return ("h", "c", *self.input_gates[3:])

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        def convolved(name: str) -> Any:
            """What x_t adds to the convolution, and what earlier inputs gave to it."""
            gate, delay = name[0], int(name[1:])
            known = f"{gate}{delay + 1}"
            return getattr(x, name) + (getattr(s, known) if delay + 1 < self.window else 0)

        f, o = sigmoid(convolved("f0")), sigmoid(convolved("o0"))
        c = f * s.c + (1 - f) * tanh(convolved("z0"))
        return self.State(o * c, c, *(convolved(name) for name in self.input_gates[3:]))
