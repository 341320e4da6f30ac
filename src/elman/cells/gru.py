from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Constant
from elman.cells.math import exp, layer_norm, minimum, sigmoid, tanh


class GRU(Cell):
    """Gated recurrent unit with the reset gate after the recurrent product, as in torch.nn.GRU and cuDNN.

    r = σ(W_r x_t + U_r h_{t-1} + b_r)                       reset gate
    z = σ(W_z x_t + U_z h_{t-1} + b_z)                       update gate
    n = tanh(W_n x_t + b_n + r ∘ (U_n h_{t-1} + b'_n))       candidate
    h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014, in the form of the first
    version of that text (arXiv 1406.1078v1) and of ONNX's `linear_before_reset = 1`.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [3H, H]. Parameters: 3H·(I + H + 2).
    """

    gates = ("r", "z", "n")
    keeping = MappingProxyType({"bias_ih.z": 1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        r = sigmoid(x.r + u.r(s.h))
        z = sigmoid(x.z + u.z(s.h))
        n = tanh(x.n + r * u.n(s.h))
        return self.State(h=(1 - z) * n + z * s.h)


class GRUResetBefore(Cell):
    """Gated recurrent unit with the reset gate before the recurrent product.

    r = σ(W_r x_t + U_r h_{t-1} + b_r)                       reset gate
    z = σ(W_z x_t + U_z h_{t-1} + b_z)                       update gate
    n = tanh(W_n x_t + U_n (r ∘ h_{t-1}) + b_n)              candidate
    h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014; ONNX's
    `linear_before_reset = 0`. As in that paper, in torch and in ONNX the update gate keeps the old state. Many texts
    write h_t = z ∘ n + (1 - z) ∘ h_{t-1} instead: since 1 - σ(a) = σ(-a), that is this cell with the weights and
    biases of z negated.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [3H, H]. Parameters: 3H·(I + H + 2).
    """

    gates = ("r", "z", "n")
    keeping = MappingProxyType({"bias_ih.z": 1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        r = sigmoid(x.r + u.r(s.h))
        z = sigmoid(x.z + u.z(s.h))
        n = tanh(x.n + u.n(r * s.h))
        return self.State(h=(1 - z) * n + z * s.h)


class LayerNormGRU(Cell):
    """GRU with layer normalisation inside the recurrence.

    (r, z) = LN(U h_{t-1}) ∘ α + LN(W x_t) ∘ β + b           each LN over the 2H stacked units
    n = tanh(LN(W_n x_t) ∘ β_n + b_n + σ(r) ∘ (LN(U_n h_{t-1}) ∘ α_n + b'_n))
    h_t = (1 - σ(z)) ∘ h_{t-1} + σ(z) ∘ n

    Ba, Kiros & Hinton, "Layer normalization", 2016, supplementary material. As there, the update gate lets in the new,
    where `gru`'s keeps the old. The additive terms of the two normalisations in the first line are the one bias b here.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [3H, H], ten vectors [H].
    Parameters: 3H·(I + H + 3) + H.
    """

    gates = ("r", "z", "n")
    vectors = (*("alpha_r", "alpha_z", "alpha_n"), *("beta_r", "beta_z", "beta_n"))
    biases = ("b_r", "b_z", "b_n", "b_un")
    input_bias = False
    recurrent_bias = False
    keeping = MappingProxyType({"b_z": -1})
    initial = MappingProxyType(
        {
            **{f"{v}_{gate}": Constant(1.0) for v in ("alpha", "beta") for gate in "rzn"},
            **{f"b_{gate}": Constant(0.0) for gate in ("r", "z", "n", "un")},
        }
    )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        x_r, x_z = layer_norm(x.r, x.z)
        u_r, u_z = layer_norm(u.r(s.h), u.z(s.h))
        (x_n,) = layer_norm(x.n)
        (u_n,) = layer_norm(u.n(s.h))
        r = sigmoid(p.alpha_r * u_r + p.beta_r * x_r + p.b_r)
        z = sigmoid(p.alpha_z * u_z + p.beta_z * x_z + p.b_z)
        n = tanh(p.beta_n * x_n + p.b_n + r * (p.alpha_n * u_n + p.b_un))
        return self.State(h=(1 - z) * s.h + z * n)


class MinGRU(Cell):
    """GRU reduced to gates that see the input alone, so that time steps may be computed in parallel.

    z = σ(W_z x_t + b_z)
    n = W_n x_t + b_n
    h_t = (1 - z) ∘ h_{t-1} + z ∘ n

    Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], no weight_hh. Parameters: 2H·(I + 1).
    """

    input_gates = ("z", "n")
    recurrent_gates = ()
    keeping = MappingProxyType({"bias_ih.z": -1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z)
        return self.State(h=(1 - z) * s.h + z * x.n)


class MinLSTM(Cell):
    """LSTM reduced to gates that see the input alone, and that sum to 1: time steps may be computed in parallel.

    f = σ(W_f x_t + b_f)
    i = σ(W_i x_t + b_i)
    h_t = f / (f + i) ∘ h_{t-1} + i / (f + i) ∘ (W_n x_t + b_n)

    Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024. With f̃ and ĩ for what σ is applied to,
    f / (f + i) = (1 + exp(-ĩ)) / (2 + exp(-f̃) + exp(-ĩ)); above and below are multiplied by exp(min(f̃, ĩ, 0)), so that
    the quotient holds where both gates underflow.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], no weight_hh. Parameters: 3H·(I + 1).
    """

    input_gates = ("f", "i", "n")
    recurrent_gates = ()
    keeping = MappingProxyType({"bias_ih.f": 1, "bias_ih.i": -1})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        least = minimum(minimum(x.f, x.i), 0.0)
        one, f, i = exp(least), exp(least - x.f), exp(least - x.i)
        keep = (one + i) / (2 * one + f + i)
        return self.State(h=keep * s.h + (1 - keep) * x.n)
