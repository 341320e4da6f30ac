from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell, Product
from elman.cells.initial import Between, Constant, LecunUniform
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class CoRNN(Cell):
    """Coupled oscillatory network: driven, damped oscillators, each with a position y and a velocity z.

    z_t = z_{t-1} + Δt (tanh(V x_t + W y_{t-1} + 𝒲 z_{t-1} + b) - γ y_{t-1} - ε z)
    y_t = y_{t-1} + Δt z_t

    where the z that is damped is z_{t-1} (`damping="explicit"`) or z_t ("implicit": the first line is solved for it).

    Rusch & Mishra, "Coupled oscillatory recurrent neural network (coRNN): an accurate and (gradient) stable
    architecture for learning long time dependencies", ICLR 2021, equation 3. The defaults are the authors' for
    sequential MNIST; each task wants its own.

    Shapes: x [B, I], y and z [B, H]; weight_ih, weight_hh and weight_w (𝒲) [H, I], [H, H], [H, H].
    Parameters: H·(I + 2H + 1).
    """

    dt: float = 0.042
    gamma: float = 2.7
    epsilon: float = 4.7
    damping: Literal["explicit", "implicit"] = "explicit"

    gates = ("z",)
    state = ("y", "z")
    products = (Product("w", input="H", bias=False),)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if min(self.dt, self.gamma, self.epsilon) <= 0:
            raise ValueError(f"dt, gamma and epsilon must be positive, got {self.dt}, {self.gamma} and {self.epsilon}")
        if self.damping not in ("explicit", "implicit"):
            raise ValueError(f"damping must be 'explicit' or 'implicit', got {self.damping!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        force = tanh(x.z + u.z(s.y) + u.w(s.z)) - self.gamma * s.y
        if self.damping == "explicit":
            z = s.z + self.dt * (force - self.epsilon * s.z)
        else:
            z = (s.z + self.dt * force) / (1 + self.dt * self.epsilon)
        return self.State(y=s.y + self.dt * z, z=z)


@dataclass(frozen=True)
class UnICORNN(Cell):
    """Undamped independent controlled oscillators: units that see only themselves, each with its own time step.

    z_t = z_{t-1} - Δt σ(c) ∘ (tanh(w ∘ y_{t-1} + V x_t + b) + α y_{t-1})
    y_t = y_{t-1} + Δt σ(c) ∘ z_t

    Rusch & Mishra, "UnICORNN: a recurrent model for learning very long time dependencies", ICML 2021. Units meet only
    between layers, so that several are stacked. Initial values are the authors' (b = 0, w ~ U(0, 1), c ~ U(-0.1, 0.1),
    V uniform), the defaults theirs for permuted sequential MNIST; each task wants its own.

    Shapes: x [B, I], y and z [B, H]; weight_ih [H, I], w and c [H]. Parameters: H·(I + 3).
    """

    dt: float = 0.19
    alpha: float = 30.65

    input_gates = ("z",)
    recurrent_gates = ()
    state = ("y", "z")
    vectors = ("w", "c")
    initial = MappingProxyType(
        {
            "weight_ih": LecunUniform(gain=(2 / 65) ** 0.5),
            "bias_ih": Constant(0.0),
            "w": Between(0.0, 1.0),
            "c": Between(-0.1, 0.1),
        }
    )

    def __post_init__(self) -> None:
        if self.dt <= 0 or self.alpha < 0:
            raise ValueError(f"dt must be positive and alpha not negative, got {self.dt} and {self.alpha}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        dt = self.dt * sigmoid(p.c)
        z = s.z - dt * (tanh(p.w * s.y + x.z) + self.alpha * s.y)
        return self.State(y=s.y + dt * z, z=z)
