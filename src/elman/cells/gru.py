from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


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

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        r = sigmoid(x.r + u.r(s.h))
        z = sigmoid(x.z + u.z(s.h))
        n = tanh(x.n + u.n(r * s.h))
        return self.State(h=(1 - z) * n + z * s.h)


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

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z)
        return self.State(h=(1 - z) * s.h + z * x.n)
