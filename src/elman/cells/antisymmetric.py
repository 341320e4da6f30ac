from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell
from elman.cells.initial import Constant, LecunNormal
from elman.cells.math import sigmoid, tanh
from elman.cells.structure import Antisymmetric


@dataclass(frozen=True)
class AntisymmetricRNN(Cell):
    """Forward Euler steps of a stable differential equation: what is added each time comes from a damped rotation.

    A = U - Uᵀ - γ I
    h_t = h_{t-1} + ε tanh(W x_t + A h_{t-1} + b)

    The eigenvalues of A have the real part -γ, so that the state neither grows nor fades but for γ.

    Chang, Chen, Haber & Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural networks", ICLR 2019. As
    there, W ~ N(0, 1/I), U ~ N(0, 1/H), b = 0 at the start; ε and γ are to be tuned. torchrecurrent has ε = 1, γ = 0.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], weight_hh [H, H], which holds U. Parameters: H·(I + H + 1).
    """

    epsilon: float = 0.01
    gamma: float = 0.01

    gates = ("h",)
    recurrent_bias = False
    initial = MappingProxyType({"weight_ih": LecunNormal(), "weight_hh": LecunNormal(), "bias_ih": Constant(0.0)})

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.gamma < 0:
            raise ValueError(f"epsilon must be positive and gamma not negative, got {self.epsilon} and {self.gamma}")

    @property
    def recurrent_structure(self) -> Antisymmetric:
        return Antisymmetric(self.gamma)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=s.h + self.epsilon * tanh(x.h + u.h(s.h)))


@dataclass(frozen=True)
class GatedAntisymmetricRNN(AntisymmetricRNN):
    """Antisymmetric network whose steps are scaled by a gate that sees the same damped rotation.

    A = U - Uᵀ - γ I
    z = σ(W_z x_t + A h_{t-1} + b_z)
    h_t = h_{t-1} + ε z ∘ tanh(W_h x_t + A h_{t-1} + b_h)

    Chang, Chen, Haber & Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural networks", ICLR 2019;
    options and initial values as for the plain one. torchrecurrent's second bias is added in tanh alone.

    Shapes: x [B, I], h [B, H]; weight_ih [2H, I], weight_hh [H, H], which holds U. Parameters: 2H·(I + 1) + H².
    """

    input_gates = ("z", "h")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        rotation = u.h(s.h)
        z = sigmoid(x.z + rotation)
        return self.State(h=s.h + self.epsilon * z * tanh(x.h + rotation))
