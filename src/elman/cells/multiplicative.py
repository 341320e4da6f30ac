from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Gate, Product, Width
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class MultiplicativeRNN(Cell):
    """A vanilla network whose recurrent matrix depends on the input, through as many factors.

    f = (W_f x_t) ∘ (U_f h_{t-1})                            so the matrix is U_h diag(W_f x_t) U_f
    h_t = tanh(W_h x_t + U_h f + b_h)

    Sutskever, Martens & Hinton, "Generating text with recurrent neural networks", ICML 2011.

    Shapes: x [B, I], h [B, H], f [B, factors], where factors is H unless given; weight_ih [factors + H, I],
    weight_hh [factors, H], weight_h [H, factors]. Parameters: (factors or H)·(I + 2H) + H·(I + 1).
    """

    factors: int | None = None

    input_bias = False
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.factors is not None and self.factors < 1:
            raise ValueError(f"factors must be at least 1, or None for H, got {self.factors}")

    @property
    def _width(self) -> Width:
        return "H" if self.factors is None else self.factors

    @property
    def input_gates(self) -> tuple[Gate, ...]:
        return (Gate("f", self._width), Gate("h"))

    @property
    def recurrent_gates(self) -> tuple[Gate, ...]:
        return (Gate("f", self._width),)

    @property
    def products(self) -> tuple[Product, ...]:
        return (Product("h", input=self._width),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = x.f * u.f(s.h)
        return self.State(h=tanh(x.h + u.h(f)))


class MultiplicativeLSTM(Cell):
    """LSTM whose gates see, in place of the last output, its product with the input.

    m = (W_m x_t) ∘ (U_m h_{t-1})
    i = σ(W_i x_t + U_i m + b_i)                             and likewise f, and o
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g m + b_g)
    h_t = o ∘ tanh(c_t)

    Krause, Murray, Renals & Lu, "Multiplicative LSTM for sequence modelling", ICLR 2017 workshop track. As there, the
    factors of m have no biases; torchrecurrent gives each of them one.

    Shapes: x [B, I], h and c [B, H]; weight_ih [5H, I], weight_hh [4H, H], weight_m [H, H].
    Parameters: 5H·(I + H) + 4H.
    """

    input_gates = ("m", "i", "f", "g", "o")
    recurrent_gates = ("i", "f", "g", "o")
    products = (Product("m", input="H", bias=False),)
    state = ("h", "c")
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        m = x.m * u.m(s.h)
        i = sigmoid(x.i + u.i(m))
        f = sigmoid(x.f + u.f(m))
        c = f * s.c + i * tanh(x.g + u.g(m))
        o = sigmoid(x.o + u.o(m))
        return self.State(h=o * tanh(c), c=c)
