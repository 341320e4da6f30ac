from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Initial, SpectralRadius, Uniform
from elman.cells.math import relu, tanh


@dataclass(frozen=True)
class LeakyRNN(Cell):
    """Network of leaky integrators: each step goes a share α of the way to the vanilla network's state.

    h_t = (1 - α) h_{t-1} + α tanh(W x_t + U h_{t-1} + b), or relu in place of tanh

    With α = Δt / τ it is an Euler step Δt of the continuous-time network τ h' = -h + tanh(W x + U h + b).

    Jaeger, Lukoševičius, Popovici & Siewert, "Optimization and applications of echo state networks with
    leaky-integrator neurons", Neural Networks 20(3), 2007.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H]. Parameters: H·(I + H + 1).
    """

    alpha: float = 0.2
    nonlinearity: Literal["tanh", "relu"] = "tanh"

    gates = ("h",)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {self.alpha}")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        activation = tanh if self.nonlinearity == "tanh" else relu
        return self.State(h=(1 - self.alpha) * s.h + self.alpha * activation(x.h + u.h(s.h)))


@dataclass(frozen=True)
class EchoState(Cell):
    """Echo state network: a random reservoir that is not trained, only what reads its states.

    h_t = (1 - α) h_{t-1} + α tanh(W x_t + U h_{t-1} + b)

    U is sparse, each unit fed by a share `density` of the units, and scaled to the spectral radius `radius`: below 1
    the state forgets its start. W and b are from U(-input_scale, input_scale). None of them is trained.

    Jaeger, "The 'echo state' approach to analysing and training recurrent neural networks", GMD report 148, 2001,
    which has neither leak (α = 1) nor bias; the leak: Jaeger, Lukoševičius, Popovici & Siewert, "Optimization and
    applications of echo state networks with leaky-integrator neurons", Neural Networks 20(3), 2007.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H], both frozen. Parameters: H·(I + H).
    """

    radius: float = 0.9
    density: float = 0.1
    input_scale: float = 1.0
    alpha: float = 1.0
    input_bias: bool = False

    gates = ("h",)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.radius <= 0 or self.input_scale <= 0:
            raise ValueError(f"radius and input_scale must be positive, got {self.radius} and {self.input_scale}")
        if not 0 < self.density <= 1 or not 0 < self.alpha <= 1:
            raise ValueError(f"density and alpha must be above 0 and at most 1, got {self.density} and {self.alpha}")

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("weight_ih", "weight_hh", "bias_ih") if self.input_bias else ("weight_ih", "weight_hh")

    @property
    def initial(self) -> Mapping[str, Initial]:
        inputs = Uniform(self.input_scale)
        return {"weight_ih": inputs, "bias_ih": inputs, "weight_hh": SpectralRadius(self.radius, self.density)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=(1 - self.alpha) * s.h + self.alpha * tanh(x.h + u.h(s.h)))
