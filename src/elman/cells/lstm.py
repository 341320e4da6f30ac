from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Constant
from elman.cells.math import layer_norm, sigmoid, tanh


class LSTM(Cell):
    """Long short-term memory with a forget gate.

    i = σ(W_i x_t + U_i h_{t-1} + b_i)        input gate
    f = σ(W_f x_t + U_f h_{t-1} + b_f)        forget gate
    g = tanh(W_g x_t + U_g h_{t-1} + b_g)     candidate
    o = σ(W_o x_t + U_o h_{t-1} + b_o)        output gate
    c_t = f ∘ c_{t-1} + i ∘ g
    h_t = o ∘ tanh(c_t)

    Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; the forget gate: Gers,
    Schmidhuber & Cummins, "Learning to forget", Neural Computation 12(10), 2000.

    Shapes: x [B, I], h and c [B, H]; weight_ih [4H, I], weight_hh [4H, H]. Parameters: 4H·(I + H + 2).
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    keeping = MappingProxyType({"bias_ih.f": 1, "bias_ih.i": -1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h))
        f = sigmoid(x.f + u.f(s.h))
        g = tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h))
        c = f * s.c + i * g
        return self.State(h=o * tanh(c), c=c)


@dataclass(frozen=True)
class LSTM1997(Cell):
    """Long short-term memory as first published: without a forget gate.

    i = σ(W_i x_t + U_i h_{t-1} + b_i)                       input gate
    o = σ(W_o x_t + U_o h_{t-1} + b_o)                       output gate
    c_t = c_{t-1} + i ∘ (4 σ(W_g x_t + U_g h_{t-1} + b_g) - 2)
    h_t = o ∘ (2 σ(c_t) - 1)

    or, with `squashing="tanh"`, as it is often written since and in torchrecurrent,

    c_t = c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    h_t = o ∘ tanh(c_t)

    Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, with one memory cell in a block.
    Gradients are those of the equations; the paper's learning rule cuts them at the gates.

    Shapes: x [B, I], h and c [B, H]; weight_ih [3H, I], weight_hh [3H, H]. Parameters: 3H·(I + H + 1).
    """

    squashing: Literal["logistic", "tanh"] = "logistic"

    gates = ("i", "g", "o")
    state = ("h", "c")
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.squashing not in ("logistic", "tanh"):
            raise ValueError(f"squashing must be 'logistic' or 'tanh', got {self.squashing!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h))
        g = x.g + u.g(s.h)
        o = sigmoid(x.o + u.o(s.h))
        if self.squashing == "tanh":
            c = s.c + i * tanh(g)
            return self.State(h=o * tanh(c), c=c)
        c = s.c + i * (4 * sigmoid(g) - 2)
        return self.State(h=o * (2 * sigmoid(c) - 1), c=c)


class PeepholeLSTM(Cell):
    """LSTM whose gates see the cell state through one weight a unit.

    i = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
    f = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    o = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
    h_t = o ∘ tanh(c_t)

    Gers & Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.

    Shapes: x [B, I], h and c [B, H]; weight_ih [4H, I], weight_hh [4H, H], p_i, p_f, p_o [H].
    Parameters: 4H·(I + H + 2) + 3H.
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    vectors = ("p_i", "p_f", "p_o")
    keeping = MappingProxyType({"bias_ih.f": 1, "bias_ih.i": -1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + p.p_i * s.c)
        f = sigmoid(x.f + u.f(s.h) + p.p_f * s.c)
        c = f * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + p.p_o * c)
        return self.State(h=o * tanh(c), c=c)


@dataclass(frozen=True)
class CoupledLSTM(Cell):
    """LSTM whose input and forget gate are one (CIFG): what is written replaces what is forgotten.

    i = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
    c_t = (1 - i) ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    o = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
    h_t = o ∘ tanh(c_t)

    or, with `peepholes=False`, without the terms in p.

    Greff, Srivastava, Koutník, Steunebrink & Schmidhuber, "LSTM: a search space odyssey", IEEE Transactions on Neural
    Networks and Learning Systems 28(10), 2017 (arXiv 2015), whose variants all have peepholes but the one without.

    Shapes: x [B, I], h and c [B, H]; weight_ih [3H, I], weight_hh [3H, H], p_i, p_o [H].
    Parameters: 3H·(I + H + 1) + 2H·peepholes.
    """

    peepholes: bool = True

    gates = ("i", "g", "o")
    state = ("h", "c")
    recurrent_bias = False
    keeping = MappingProxyType({"bias_ih.i": -1})

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("p_i", "p_o") if self.peepholes else ()

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + (p.p_i * s.c if self.peepholes else 0))
        c = (1 - i) * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + (p.p_o * c if self.peepholes else 0))
        return self.State(h=o * tanh(c), c=c)


class DepthGatedLSTM(Cell):
    """Peephole LSTM whose memory also takes in, through a depth gate, the memory of the layer below.

    d = σ(W_d x_t + w_c ∘ c_{t-1} + w_l ∘ c_t^{below} + b_d)
    c_t = d ∘ c_t^{below} + f ∘ c_{t-1} + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)

    with i, f, o and h_t as in the peephole LSTM, which is what the lowest layer is.

    Yao, Cohn, Vylomova, Duh & Dyer, "Depth-gated LSTM", 2015.

    Shapes: x [B, I], h and c [B, H]; above the lowest layer weight_ih [5H, I], weight_hh [4H, H] and five vectors [H].
    Parameters: 5H·(I + 1) + 4H·(H + 1) + 5H in each layer above the lowest.
    """

    input_gates = ("i", "f", "g", "o", "d")
    recurrent_gates = ("i", "f", "g", "o")
    state = ("h", "c")
    vectors = ("p_i", "p_f", "p_o", "w_c", "w_l")
    below = ("c",)

    def at_layer(self, layer: int) -> Cell:
        return PeepholeLSTM() if layer == 0 else self

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + p.p_i * s.c)
        f = sigmoid(x.f + u.f(s.h) + p.p_f * s.c)
        d = sigmoid(x.d + p.w_c * s.c + p.w_l * x.below.c)
        c = d * x.below.c + f * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + p.p_o * c)
        return self.State(h=o * tanh(c), c=c)


class LayerNormLSTM(Cell):
    """LSTM with layer normalisation inside the recurrence.

    (i, f, g, o) = LN(U h_{t-1}) ∘ α + LN(W x_t) ∘ β + b     each LN over the 4H stacked units
    c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g)
    h_t = σ(o) ∘ tanh(LN(c_t) ∘ γ + δ)

    Ba, Kiros & Hinton, "Layer normalization", 2016, equations 20-22. The paper's three additive terms in the first
    line (two of the normalisations' and b) are the one bias b here.

    Shapes: x [B, I], h and c [B, H]; weight_ih [4H, I], weight_hh [4H, H], fourteen vectors [H].
    Parameters: 4H·(I + H + 3) + 2H.
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    vectors = (
        *("alpha_i", "alpha_f", "alpha_g", "alpha_o"),
        *("beta_i", "beta_f", "beta_g", "beta_o"),
        "gamma",
    )
    biases = ("b_i", "b_f", "b_g", "b_o", "delta")
    input_bias = False
    recurrent_bias = False
    keeping = MappingProxyType({"b_f": 1, "b_i": -1})
    initial = MappingProxyType(
        {
            **{f"{v}_{gate}": Constant(1.0) for v in ("alpha", "beta") for gate in "ifgo"},
            **{f"b_{gate}": Constant(0.0) for gate in "ifgo"},
            **{"gamma": Constant(1.0), "delta": Constant(0.0)},
        }
    )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        x_i, x_f, x_g, x_o = layer_norm(x.i, x.f, x.g, x.o)
        u_i, u_f, u_g, u_o = layer_norm(u.i(s.h), u.f(s.h), u.g(s.h), u.o(s.h))
        i = sigmoid(p.alpha_i * u_i + p.beta_i * x_i + p.b_i)
        f = sigmoid(p.alpha_f * u_f + p.beta_f * x_f + p.b_f)
        g = tanh(p.alpha_g * u_g + p.beta_g * x_g + p.b_g)
        o = sigmoid(p.alpha_o * u_o + p.beta_o * x_o + p.b_o)
        c = f * s.c + i * g
        (normal,) = layer_norm(c)
        return self.State(h=o * tanh(p.gamma * normal + p.delta), c=c)
