"""Strongly-typed networks: no product acts on the state, so that its units keep their meaning from step to step.

Where they need the previous input, their states carry its products V x_{t-1} rather than x_{t-1} itself: those have
the same width in every layer of a stack, and all products of a sequence are computed at once.
"""

from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


class TRNN(Cell):
    """Strongly-typed vanilla network: a moving average of linear images of the inputs.

    f = σ(W_f x_t + b_f)
    h_t = f ∘ h_{t-1} + (1 - f) ∘ (W_z x_t)

    Balduzzi & Ghifary, "Strongly-typed recurrent neural networks", ICML 2016.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], b_f [H], no weight_hh. Parameters: H·(2I + 1).
    """

    input_gates = ("z", "f")
    recurrent_gates = ()
    biases = ("b_f",)
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(x.f + p.b_f)
        return self.State(h=f * s.h + (1 - f) * x.z)


class TGRU(Cell):
    """Strongly-typed GRU.

    z = V_z x_{t-1} + W_z x_t + b_z
    f = σ(V_f x_{t-1} + W_f x_t + b_f)
    o = tanh(V_o x_{t-1} + W_o x_t + b_o)
    h_t = f ∘ h_{t-1} + z ∘ o

    with x_0 = 0. The states v_z, v_f and v_o are V_z x_t, V_f x_t and V_o x_t.

    Balduzzi & Ghifary, "Strongly-typed recurrent neural networks", ICML 2016.

    Shapes: x [B, I], h, v_z, v_f and v_o [B, H]; weight_ih [6H, I] (W, then V), b_z, b_f, b_o [H], no weight_hh.
    Parameters: 6H·I + 3H.
    """

    input_gates = ("z", "f", "o", "v_z", "v_f", "v_o")
    recurrent_gates = ()
    biases = ("b_z", "b_f", "b_o")
    state = ("h", "v_z", "v_f", "v_o")
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = s.v_z + x.z + p.b_z
        f = sigmoid(s.v_f + x.f + p.b_f)
        o = tanh(s.v_o + x.o + p.b_o)
        return self.State(h=f * s.h + z * o, v_z=x.v_z, v_f=x.v_f, v_o=x.v_o)


class TLSTM(Cell):
    """Strongly-typed LSTM.

    z = V_z x_{t-1} + W_z x_t + b_z
    f = σ(V_f x_{t-1} + W_f x_t + b_f)
    o = tanh(V_o x_{t-1} + W_o x_t + b_o)
    c_t = f ∘ c_{t-1} + (1 - f) ∘ z
    h_t = c_t ∘ o

    with x_0 = 0. The states v_z, v_f and v_o are V_z x_t, V_f x_t and V_o x_t.

    Balduzzi & Ghifary, "Strongly-typed recurrent neural networks", ICML 2016.

    Shapes: x [B, I], h, c, v_z, v_f and v_o [B, H]; weight_ih [6H, I] (W, then V), b_z, b_f, b_o [H], no weight_hh.
    Parameters: 6H·I + 3H.
    """

    input_gates = ("z", "f", "o", "v_z", "v_f", "v_o")
    recurrent_gates = ()
    biases = ("b_z", "b_f", "b_o")
    state = ("h", "c", "v_z", "v_f", "v_o")
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = s.v_z + x.z + p.b_z
        f = sigmoid(s.v_f + x.f + p.b_f)
        o = tanh(s.v_o + x.o + p.b_o)
        c = f * s.c + (1 - f) * z
        return self.State(h=c * o, c=c, v_z=x.v_z, v_f=x.v_f, v_o=x.v_o)
