from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


class MGU(Cell):
    """Minimal gated unit: a GRU whose one gate both resets and updates.

    f = σ(W_f x_t + U_f h_{t-1} + b_f)
    n = tanh(W_n x_t + U_n (f ∘ h_{t-1}) + b_n)
    h_t = (1 - f) ∘ h_{t-1} + f ∘ n

    Zhou, Wu, Zhang & Zhou, "Minimal gated unit for recurrent neural networks", International Journal of Automation and
    Computing 13(3), 2016.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H]. Parameters: 2H·(I + H + 1).
    """

    gates = ("f", "n")
    keeping = MappingProxyType({"bias_ih.f": -1})
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(x.f + u.f(s.h))
        n = tanh(x.n + u.n(f * s.h))
        return self.State(h=(1 - f) * s.h + f * n)


class MGU1(Cell):
    """Minimal gated unit whose gate does not see the input: f = σ(U_f h_{t-1} + b_f), and the rest as in MGU.

    Heck & Salem, "Simplified minimal gated unit variations for recurrent neural networks", MWSCAS 2017.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [2H, H], b_f [H]. Parameters: H·(I + 2H + 2).
    """

    input_gates = ("n",)
    recurrent_gates = ("f", "n")
    biases = ("b_f",)
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(u.f(s.h) + p.b_f)
        n = tanh(x.n + u.n(f * s.h))
        return self.State(h=(1 - f) * s.h + f * n)


class MGU2(Cell):
    """Minimal gated unit whose gate sees the state alone, without a bias: f = σ(U_f h_{t-1}), the rest as in MGU.

    Heck & Salem, "Simplified minimal gated unit variations for recurrent neural networks", MWSCAS 2017.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [2H, H]. Parameters: H·(I + 2H + 1).
    """

    input_gates = ("n",)
    recurrent_gates = ("f", "n")
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(u.f(s.h))
        n = tanh(x.n + u.n(f * s.h))
        return self.State(h=(1 - f) * s.h + f * n)


class MGU3(Cell):
    """Minimal gated unit whose gate is a learned constant: f = σ(b_f), and the rest as in MGU; without biases f = ½.

    Heck & Salem, "Simplified minimal gated unit variations for recurrent neural networks", MWSCAS 2017.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H], b_f [H]. Parameters: H·(I + H + 2).
    """

    gates = ("n",)
    biases = ("b_f",)
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(p.b_f)
        n = tanh(x.n + u.n(f * s.h))
        return self.State(h=(1 - f) * s.h + f * n)
