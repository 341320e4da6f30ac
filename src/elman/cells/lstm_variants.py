from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Product
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class ResidualLSTM(Cell):
    """Peephole LSTM whose projected output has a shortcut from the input, both under the output gate.

    i = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
    f = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    o = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
    h_t = o ∘ (U_p tanh(c_t) + W_s x_t)

    Kim, El-Khamy & Lee, "Residual LSTM: design of a deep recurrent architecture for distant speech recognition",
    Interspeech 2017, with as many outputs as memory cells. Where I = H, the paper leaves out W_s: `projected=False`.

    Shapes: x [B, I], h and c [B, H]; weight_ih [5H, I], or [4H, I] unless projected, weight_hh [4H, H],
    weight_p [H, H], p_i, p_f, p_o [H]. Parameters: (4 + projected)·H·I + 5H² + 7H.
    """

    projected: bool = True

    recurrent_gates = ("i", "f", "g", "o")
    products = (Product("p", input="H", bias=False),)
    vectors = ("p_i", "p_f", "p_o")
    state = ("h", "c")
    input_bias = False

    @property
    def input_gates(self) -> tuple[str, ...]:
        return (*self.recurrent_gates, "s") if self.projected else self.recurrent_gates

    @property
    def equal_sizes(self) -> bool:
        return not self.projected

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + p.p_i * s.c)
        f = sigmoid(x.f + u.f(s.h) + p.p_f * s.c)
        c = f * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + p.p_o * c)
        return self.State(h=o * (u.p(tanh(c)) + (x.s if self.projected else x.raw)), c=c)


class WorkingMemoryLSTM(Cell):
    """LSTM with working memory connections: its gates see a squashed projection of the memory.

    i = σ(W_i x_t + U_i h_{t-1} + tanh(M_i c_{t-1}) + b_i)
    f = σ(W_f x_t + U_f h_{t-1} + tanh(M_f c_{t-1}) + b_f)
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    o = σ(W_o x_t + U_o h_{t-1} + tanh(M_o c_t) + b_o)
    h_t = o ∘ tanh(c_t)

    Landi, Baraldi, Cornia & Cucchiara, "Working memory connections for LSTM", Neural Networks 144, 2021; `WMCLSTM` in
    torchrecurrent, which has further biases within the tanh of the connections.

    Shapes: x [B, I], h and c [B, H]; weight_ih [4H, I], weight_hh [4H, H], weight_m_i, weight_m_f, weight_m_o [H, H].
    Parameters: 4H·(I + H + 1) + 3H².
    """

    gates = ("i", "f", "g", "o")
    products = tuple(Product(name, input="H", bias=False) for name in ("m_i", "m_f", "m_o"))
    state = ("h", "c")
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + tanh(u.m_i(s.c)))
        f = sigmoid(x.f + u.f(s.h) + tanh(u.m_f(s.c)))
        c = f * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + tanh(u.m_o(c)))
        return self.State(h=o * tanh(c), c=c)


class MemoryControllerLSTM(Cell):
    """LSTM that feeds back a control vector, read from its memory through a gate of its own, and not its output.

    i = σ(W_i x_t + U_i v_{t-1} + b_i)                       and likewise f, o, and m
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g v_{t-1} + b_g)
    h_t = o ∘ tanh(c_t)                                      the output
    v_t = m ∘ tanh(c_t)                                      the control vector

    Ben-Ari & Shwartz-Ziv, "Sequence modeling using a memory controller extension for LSTM", NIPS 2017 time series
    workshop; `MCLSTM` in torchrecurrent. (The MC-LSTM of Hoedt et al. 2021, which conserves mass, is another cell.)

    Shapes: x [B, I], h, v and c [B, H]; weight_ih [5H, I], weight_hh [5H, H]. Parameters: 5H·(I + H + 1).
    """

    gates = ("i", "f", "g", "o", "m")
    state = ("h", "v", "c")
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.v))
        f = sigmoid(x.f + u.f(s.v))
        c = f * s.c + i * tanh(x.g + u.g(s.v))
        o = sigmoid(x.o + u.o(s.v))
        m = sigmoid(x.m + u.m(s.v))
        return self.State(h=o * tanh(c), v=m * tanh(c), c=c)
