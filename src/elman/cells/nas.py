from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import relu, sigmoid, tanh


class NAS(Cell):
    """The cell found by neural architecture search on Penn Treebank.

    v_k = W_k x_t + (U_k h_{t-1} + b_k), k = 0 … 7; but v_3 = W_3 x_t ∘ (U_3 h_{t-1} + b_3)
    a = tanh(σ(v_0) ∘ relu(v_1))
    b = tanh(σ(v_2) + relu(v_3))
    d = tanh(tanh(v_4) ∘ σ(v_5))
    e = σ(tanh(v_6) + σ(v_7))
    c_t = tanh(a + c_{t-1}) ∘ b
    h_t = tanh(c_t ∘ tanh(d + e))

    Zoph & Le, "Neural architecture search with reinforcement learning", ICLR 2017, as the authors published it in
    TensorFlow (`NASCell`). torchrecurrent adds in v_3 where the cell multiplies.

    Shapes: x [B, I], h and c [B, H]; weight_ih [8H, I], weight_hh [8H, H]. Parameters: 8H·(I + H + 1).
    """

    gates = tuple(f"v{k}" for k in range(8))
    state = ("h", "c")
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        a = tanh(sigmoid(x.v0 + u.v0(s.h)) * relu(x.v1 + u.v1(s.h)))
        b = tanh(sigmoid(x.v2 + u.v2(s.h)) + relu(x.v3 * u.v3(s.h)))
        d = tanh(tanh(x.v4 + u.v4(s.h)) * sigmoid(x.v5 + u.v5(s.h)))
        e = sigmoid(tanh(x.v6 + u.v6(s.h)) + sigmoid(x.v7 + u.v7(s.h)))
        c = tanh(a + s.c) * b
        return self.State(h=tanh(c * tanh(d + e)), c=c)
