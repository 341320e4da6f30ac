from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class TauGRU(Cell):
    """τ-GRU: a gated unit with weighted feedback from a state further back.

    n = tanh(W_n x_t + U_n h_{t-1} + b_n)               candidate
    d = tanh(W_d x_t + U_d h_{t-1-delay} + b_d)         candidate of the delayed state
    a = σ(W_a x_t + U_a h_{t-1} + b_a)                  weight of the delayed candidate
    g = σ(W_g x_t + U_g h_{t-1} + b_g)                  update gate
    h_t = (1 - g) ∘ h_{t-1} + g ∘ (n + a ∘ d)

    where states before the first are zero. The delay is tuned to the task. The states past1 … past<delay> are
    h_{t-1} … h_{t-delay}.

    Erichson, Lim & Mahoney, "Gated recurrent neural networks with weighted time-delay feedback", AISTATS 2025.

    Shapes: x [B, I], h and each past state [B, H]; weight_ih [4H, I], weight_hh [4H, H]. Parameters: 4H·(I + H + 1).
    """

    delay: int = 5

    gates = ("n", "d", "g", "a")
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"delay must be at least 1, got {self.delay!r}")

    @property
    def state(self) -> tuple[str, ...]:
        return ("h", *(f"past{k}" for k in range(1, self.delay + 1)))

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        past = [s.h, *(getattr(s, f"past{k}") for k in range(1, self.delay + 1))]
        n = tanh(x.n + u.n(s.h))
        d = tanh(x.d + u.d(past[-1]))
        g = sigmoid(x.g + u.g(s.h))
        a = sigmoid(x.a + u.a(s.h))
        return self.State((1 - g) * s.h + g * (n + a * d), *past[:-1])
