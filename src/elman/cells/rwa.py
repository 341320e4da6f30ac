from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Constant, Normal, XavierUniform
from elman.cells.math import exp, maximum, tanh, where


class RWA(Cell):
    """Recurrent weighted average: the state is a running average over all steps, weighted by attention.

    z = (W_u x_t + b_u) ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    a = W_a x_t + U_a h_{t-1}                               attention; a bias would cancel
    n_t = n_{t-1} + z ∘ exp(a),  d_t = d_{t-1} + exp(a)
    h_t = tanh(n_t / d_t)

    h_0 = tanh(s_0) with a learned s_0, used where d is 0, as it is only at the start. n and d are kept divided by
    exp(m_t), m_t = max(m_{t-1}, a), so that nothing overflows.

    Ostmeyer & Cowell, "Machine learning on sequential data using a recurrent weighted average", 2017.

    Shapes: x [B, I], h, n, d and m [B, H]; weight_ih [3H, I], weight_hh [2H, H], b_u, b_g and s_0 [H].
    Parameters: 3H·I + 2H·H + 3H.
    """

    input_gates = ("u", "g", "a")
    recurrent_gates = ("g", "a")
    state = ("h", "n", "d", "m")
    vectors = ("s_0",)
    biases = ("b_u", "b_g")
    input_bias = False
    recurrent_bias = False
    initial = MappingProxyType(
        {
            "weight_ih": XavierUniform(),
            "weight_hh": XavierUniform(),
            "b_u": Constant(0.0),
            "b_g": Constant(0.0),
            "s_0": Normal(1.0),
        }
    )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        first = s.d == 0
        h = where(first, tanh(p.s_0), s.h)
        z = (x.u + p.b_u) * tanh(x.g + u.g(h) + p.b_g)
        a = x.a + u.a(h)
        before = where(first, a, s.m)
        m = maximum(before, a)
        keep, add = exp(before - m), exp(a - m)
        n = s.n * keep + z * add
        d = s.d * keep + add
        return self.State(h=tanh(n / d), n=n, d=d, m=m)
