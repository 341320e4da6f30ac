from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


class GILR(Cell):
    """Gated impulse linear recurrence: a gated average of impulses, both of which see the input alone.

    g = σ(W_g x_t + b_g)
    h_t = g ∘ h_{t-1} + (1 - g) ∘ tanh(W_i x_t + b_i)

    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR 2018.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], no weight_hh. Parameters: 2H·(I + 1).
    """

    input_gates = ("g", "i")
    recurrent_gates = ()

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        g = sigmoid(x.g)
        return self.State(h=g * s.h + (1 - g) * tanh(x.i))


class GILRLSTM(Cell):
    """LSTM whose gates see, in place of the last output, a gated impulse linear recurrence l that stands in for it.

    g = σ(W_g x_t + b_g)
    l_t = g ∘ l_{t-1} + (1 - g) ∘ tanh(W_j x_t + b_j)
    i, f, o = σ(W x_t + U l_{t-1} + b)                     each with its own W, U, b
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_z x_t + U_z l_{t-1} + b_z)
    h_t = o ∘ c_t

    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR 2018. The authors' published
    code reads l_t in place of l_{t-1}.

    Shapes: x [B, I], h, c and l [B, H]; weight_ih [6H, I], weight_hh [4H, H]. Parameters: 6H·(I + 1) + 4H·H.
    """

    input_gates = ("i", "f", "o", "z", "g", "j")
    recurrent_gates = ("i", "f", "o", "z")
    state = ("h", "c", "l")
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.l))
        f = sigmoid(x.f + u.f(s.l))
        o = sigmoid(x.o + u.o(s.l))
        c = f * s.c + i * tanh(x.z + u.z(s.l))
        g = sigmoid(x.g)
        return self.State(h=o * c, c=c, l=g * s.l + (1 - g) * tanh(x.j))
