"""Cells whose state moves without a recurrent product: one acts in the gates alone."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Constant, Orthogonal
from elman.cells.math import sigmoid, tanh


class ATR(Cell):
    """Addition-subtraction twin-gated network: the sum and the difference of two products are its gates.

    p = W x_t,  q = U h_{t-1} + b
    i = σ(p + q),  f = σ(p - q)
    h_t = i ∘ p + f ∘ h_{t-1}

    Zhang, Xiong, Su, Lin & Zhang, "Simplifying neural machine translation with addition-subtraction twin-gated
    recurrent networks", EMNLP 2018; the bias of q is in the authors' code.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H]. Parameters: H·(I + H + 1).
    """

    input_gates = ("p",)
    recurrent_gates = ("q",)
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        q = u.q(s.h)
        i = sigmoid(x.p + q)
        f = sigmoid(x.p - q)
        return self.State(h=i * x.p + f * s.h)


class CFN(Cell):
    """Chaos-free network: without input its state dies out, so it has no complicated dynamics of its own.

    θ = σ(W_θ x_t + U_θ h_{t-1} + b_θ)                  forget gate
    η = σ(W_η x_t + U_η h_{t-1} + b_η)                  input gate
    h_t = θ ∘ tanh(h_{t-1}) + η ∘ tanh(W_n x_t)

    Laurent & von Brecht, "A recurrent neural network without chaos", ICLR 2017, equations 1-2. The biases start at
    1 and -1: the state is kept, and little is written.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [2H, H]. Parameters: H·(3I + 2H + 2).
    """

    input_gates = ("theta", "eta", "n")
    recurrent_gates = ("theta", "eta")
    input_bias = False
    initial = MappingProxyType({"bias_hh.theta": Constant(1.0), "bias_hh.eta": Constant(-1.0)})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        theta = sigmoid(x.theta + u.theta(s.h))
        eta = sigmoid(x.eta + u.eta(s.h))
        return self.State(h=theta * tanh(s.h) + eta * tanh(x.n))


@dataclass(frozen=True)
class RAN(Cell):
    """Recurrent additive network: its memory is a gated sum of linear images of the inputs.

    i = σ(W_i x_t + U_i h_{t-1} + b_i)
    f = σ(W_f x_t + U_f h_{t-1} + b_f)
    c_t = i ∘ (W_c x_t) + f ∘ c_{t-1}
    h_t = tanh(c_t), or c_t itself with `output="identity"`

    Lee, Levy & Zettlemoyer, "Recurrent additive networks", 2017, which reports both outputs.

    Shapes: x [B, I], h and c [B, H]; weight_ih [3H, I], weight_hh [2H, H]. Parameters: H·(3I + 2H + 2).
    """

    output: Literal["tanh", "identity"] = "tanh"

    input_gates = ("c", "i", "f")
    recurrent_gates = ("i", "f")
    input_bias = False
    state = ("h", "c")

    def __post_init__(self) -> None:
        if self.output not in ("tanh", "identity"):
            raise ValueError(f"output must be 'tanh' or 'identity', got {self.output!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h))
        f = sigmoid(x.f + u.f(s.h))
        c = i * x.c + f * s.c
        return self.State(h=tanh(c) if self.output == "tanh" else c, c=c)


class SGRN(Cell):
    """Simple gated recurrent network: one product of the input serves the gate and the state.

    f = σ(W x_t + U h_{t-1} + b)
    h_t = tanh((1 - f) ∘ (W x_t) + f ∘ h_{t-1})

    Zu & Wei, "A simple gated recurrent network for detection of power quality disturbances", IET Generation,
    Transmission & Distribution 15(4), 2021.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H]. Parameters: H·(I + H + 1).
    """

    gates = ("f",)
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(x.f + u.f(s.h))
        return self.State(h=tanh((1 - f) * x.f + f * s.h))


class STAR(Cell):
    """Stackable recurrent cell: gradients keep their size through many layers of it.

    z = tanh(W_z x_t + b_z)
    k = σ(W_k x_t + U_k h_{t-1} + b_k)
    h_t = tanh((1 - k) ∘ h_{t-1} + k ∘ z)

    Turkoglu, D'Aronco, Wegner & Schindler, "Gating revisited: deep multi-layer RNNs that can be trained", IEEE TPAMI,
    2021. As in the authors' code where no longest dependency is known, the weights start orthogonal, b_z at 0 and b_k
    at -1, which keeps the state.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [H, H]. Parameters: H·(2I + H + 2).
    """

    input_gates = ("z", "k")
    recurrent_gates = ("k",)
    recurrent_bias = False
    initial = MappingProxyType(
        {
            "weight_ih": Orthogonal(),
            "weight_hh": Orthogonal(),
            "bias_ih.z": Constant(0.0),
            "bias_ih.k": Constant(-1.0),
        }
    )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        k = sigmoid(x.k + u.k(s.h))
        return self.State(h=tanh((1 - k) * s.h + k * tanh(x.z)))
