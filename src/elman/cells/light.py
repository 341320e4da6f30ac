from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell, Product
from elman.cells.initial import Orthogonal, XavierUniform
from elman.cells.math import relu, sigmoid, tanh


class LiGRU(Cell):
    """Light GRU: no reset gate, and relu in place of tanh.

    z = σ(W_z x_t + U_z h_{t-1} + b_z)                  update gate
    n = relu(W_n x_t + U_n h_{t-1} + b_n)               candidate
    h_t = z ∘ h_{t-1} + (1 - z) ∘ n

    Ravanelli, Brakel, Omologo & Bengio, "Light gated recurrent units for speech recognition", IEEE Transactions on
    Emerging Topics in Computational Intelligence 2(2), 2018. The paper normalises W_z x_t and W_n x_t over the batch;
    here they are left as they are, with a bias in the place of the normalisation's. Since relu does not bound the
    state, normalise the input where sequences are long.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [2H, H]. Parameters: 2H·(I + H + 1).
    """

    gates = ("z", "n")
    recurrent_bias = False
    initial = MappingProxyType({"weight_ih": XavierUniform(), "weight_hh": Orthogonal()})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z + u.z(s.h))
        n = relu(x.n + u.n(s.h))
        return self.State(h=z * s.h + (1 - z) * n)


class LightRU(Cell):
    """Light recurrent unit: a candidate of the input alone, and one gate.

    n = tanh(W_n x_t)
    f = σ(W_f x_t + U_f h_{t-1} + b_f)
    h_t = (1 - f) ∘ h_{t-1} + f ∘ n

    Ye, Zhang, Liu, Li, Chang & Zheng, "Light recurrent unit: towards an interpretable recurrent neural network for
    modeling long-range dependency", Electronics 13(16), 2024.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [H, H]. Parameters: H·(2I + H + 1).
    """

    input_gates = ("n", "f")
    recurrent_gates = ("f",)
    input_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = sigmoid(x.f + u.f(s.h))
        return self.State(h=(1 - f) * s.h + f * tanh(x.n))


class MinimalRNN(Cell):
    """A gate chooses, unit by unit, between the old state and an encoding of the input.

    z = tanh(W x_t + b_z)
    g = σ(U_h h_{t-1} + U_z z + b_g)
    h_t = g ∘ h_{t-1} + (1 - g) ∘ z

    Chen, "MinimalRNN: toward more interpretable and trainable recurrent neural networks", 2017.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H], weight_z [H, H]. Parameters: H·(I + 2H + 2).
    """

    input_gates = ("z",)
    recurrent_gates = ("g",)
    products = (Product("z", input="H", bias=False),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = tanh(x.z)
        g = sigmoid(u.g(s.h) + u.z(z))
        return self.State(h=g * s.h + (1 - g) * z)


@dataclass(frozen=True)
class MiRU(Cell):
    """Minion recurrent unit: a GRU with numbers, the same for all units and steps, in place of its gates.

    n = tanh(W_n x_t + U_n (β h_{t-1}) + b_n)
    h_t = λ h_{t-1} + (1 - λ) n

    with λ = `update` and β = `reset`: this is the authors' MiRU-2. `reset="gate"` is their MiRU-1, in which a reset
    gate r = σ(W_r x_t + U_r h_{t-1} + b_r) stands in place of β. Both numbers are tuned to the task; a half is ours.

    Zyarah & Kudithipudi, "Minion gated recurrent unit for continual learning", Neurocomputing 673, 2026.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H], or twice the rows with the reset gate. The count is
    without it. Parameters: H·(I + H + 1).
    """

    update: float = 0.5
    reset: float | Literal["gate"] = 0.5

    recurrent_bias = False

    def __post_init__(self) -> None:
        if not 0 <= self.update <= 1:
            raise ValueError(f"update must be from 0 to 1, got {self.update!r}")
        if not (self.reset == "gate" if isinstance(self.reset, str) else 0 <= self.reset <= 1):
            raise ValueError(f"reset must be from 0 to 1, or 'gate', got {self.reset!r}")

    @property
    def gates(self) -> tuple[str, ...]:
        return ("r", "n") if self.reset == "gate" else ("n",)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        r = sigmoid(x.r + u.r(s.h)) if self.reset == "gate" else self.reset
        n = tanh(x.n + u.n(r * s.h))
        return self.State(h=self.update * s.h + (1 - self.update) * n)
