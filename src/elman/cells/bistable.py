from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Constant, Orthogonal, XavierUniform
from elman.cells.math import sigmoid, tanh


class BRC(Cell):
    """Bistable recurrent cell: a unit remembers by itself, where its feedback a exceeds 1.

    a = 1 + tanh(W_a x_t + w_a ∘ h_{t-1} + b_a)         feedback, from 0 to 2
    c = σ(W_c x_t + w_c ∘ h_{t-1} + b_c)                update gate
    h_t = c ∘ h_{t-1} + (1 - c) ∘ tanh(W_n x_t + a ∘ h_{t-1})

    Vecoven, Ernst & Drion, "A bio-inspired bistable recurrent cell allows for long-lasting memory", PLOS ONE 16(6),
    2021. The biases of the gates, zero at the start, and w_a = w_c = 1 there are the authors' code's.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], w_a, w_c, b_a, b_c [H], no weight_hh. Parameters: H·(3I + 4).
    """

    input_gates = ("a", "c", "n")
    recurrent_gates = ()
    vectors = ("w_a", "w_c")
    biases = ("b_a", "b_c")
    input_bias = False
    initial = MappingProxyType(
        {
            "weight_ih": XavierUniform(),
            **{name: Constant(1.0) for name in ("w_a", "w_c")},
            **{name: Constant(0.0) for name in ("b_a", "b_c")},
        }
    )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        a = 1 + tanh(x.a + p.w_a * s.h + p.b_a)
        c = sigmoid(x.c + p.w_c * s.h + p.b_c)
        return self.State(h=c * s.h + (1 - c) * tanh(x.n + a * s.h))


class NBRC(Cell):
    """Neuromodulated bistable recurrent cell: BRC whose feedback and gate see all units.

    a = 1 + tanh(W_a x_t + U_a h_{t-1} + b_a)           feedback, from 0 to 2
    c = σ(W_c x_t + U_c h_{t-1} + b_c)                  update gate
    h_t = c ∘ h_{t-1} + (1 - c) ∘ tanh(W_n x_t + a ∘ h_{t-1})

    Vecoven, Ernst & Drion, "A bio-inspired bistable recurrent cell allows for long-lasting memory", PLOS ONE 16(6),
    2021. The biases of the gates, zero at the start, and the initial weights are the authors' code's.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [2H, H]. Parameters: H·(3I + 2H + 2).
    """

    input_gates = ("a", "c", "n")
    recurrent_gates = ("a", "c")
    input_bias = False
    initial = MappingProxyType({"weight_ih": XavierUniform(), "weight_hh": Orthogonal(), "bias_hh": Constant(0.0)})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        a = 1 + tanh(x.a + u.a(s.h))
        c = sigmoid(x.c + u.c(s.h))
        return self.State(h=c * s.h + (1 - c) * tanh(x.n + a * s.h))
