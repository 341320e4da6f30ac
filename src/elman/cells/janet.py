from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Chrono, Constant, Initial
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class JANET(Cell):
    """Just another network: the LSTM with a forget gate and no other.

    f̃ = W_f x_t + U_f h_{t-1} + b_f
    h_t = σ(f̃) ∘ h_{t-1} + (1 - σ(f̃ - β)) ∘ tanh(W_c x_t + U_c h_{t-1} + b_c)

    At the start b_c = 0 and b_f = 1, or with `t_max`, the longest dependency expected, b_f = log U(1, t_max - 1).

    van der Westhuizen & Lasenby, "The unreasonable effectiveness of the forget gate", 2018; the biases as in the
    authors' program; chrono initialisation: Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    torchrecurrent trains β, a number in the paper.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H]. Parameters: 2H·(I + H + 1).
    """

    beta: float = 1.0
    t_max: float | None = None

    gates = ("f", "c")
    recurrent_bias = False
    keeping = MappingProxyType({"bias_ih.f": 1})

    def __post_init__(self) -> None:
        if self.t_max is not None and self.t_max < 2:
            raise ValueError(f"t_max must be a number of steps from 2, or None, got {self.t_max}")

    @property
    def initial(self) -> Mapping[str, Initial]:
        forget = Constant(1.0) if self.t_max is None else Chrono(self.t_max)
        return {"bias_ih.f": forget, "bias_ih.c": Constant(0.0)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = x.f + u.f(s.h)
        c = tanh(x.c + u.c(s.h))
        return self.State(h=sigmoid(f) * s.h + (1 - sigmoid(f - self.beta)) * c)
