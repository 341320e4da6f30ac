import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elman.cells.contract import Cell, Gate, Product, StateEntry, Vector
from elman.cells.initial import Between, Initial, LecunNormal
from elman.cells.math import cos, exp, expm1, log_sigmoid, maximum, sigmoid, sin, sqrt


@dataclass(frozen=True)
class LRU(Cell):
    """Linear recurrent unit: a diagonal complex recurrence between two linear maps.

    λ = exp(-exp(ν) + i exp(θ))
    s_t = λ ∘ s_{t-1} + exp(γ) ∘ (B x_t)                complex, `state_size` wide
    h_t = Re(C s_t) + D x_t

    Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De, "Resurrecting recurrent neural networks for long sequences",
    ICML 2023. As there, λ starts on the ring r_min ≤ |λ| ≤ r_max with phases from U(0, max_phase), γ at
    ½ log(1 - |λ|²), and B, C, D are normal. The moduli are spread evenly over the ring where the paper draws them, so
    that γ can start from them; D is the matrix of the paper's definition, of which its code has the diagonal.

    Shapes: x [B, I], h [B, H], re and im [B, state_size]; weight_ih [2·state_size + H, I], weight_c_re and weight_c_im
    [H, state_size], nu, theta and gamma [state_size].
    Parameters: I·(2·state_size + H) + 2·state_size·H + 3·state_size.
    """

    state_size: int = 64
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    recurrent_gates = ()
    input_bias = False

    def __post_init__(self) -> None:
        if self.state_size < 1:
            raise ValueError(f"state_size must be at least 1, got {self.state_size}")
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"r_min and r_max must be 0 ≤ r_min < r_max ≤ 1, got {self.r_min} and {self.r_max}")
        if self.max_phase <= 0:
            raise ValueError(f"max_phase must be positive, got {self.max_phase}")

    @property
    def input_gates(self) -> tuple[Gate, ...]:
        return (Gate("b_re", self.state_size), Gate("b_im", self.state_size), Gate("d"))

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        return ("h", StateEntry("re", self.state_size), StateEntry("im", self.state_size))

    @property
    def products(self) -> tuple[Product, ...]:
        return (Product("c_re", input=self.state_size, bias=False), Product("c_im", input=self.state_size, bias=False))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        return tuple(Vector(name, self.state_size) for name in ("nu", "theta", "gamma"))

    @property
    def initial(self) -> Mapping[str, Initial]:
        ring = self.r_min**2, self.r_max**2  # of |λ|², which is uniform where λ is uniform in area
        return {
            "weight_ih.b_re": LecunNormal(math.sqrt(0.5)),
            "weight_ih.b_im": LecunNormal(math.sqrt(0.5)),
            "weight_ih.d": LecunNormal(),
            "weight_c_re": LecunNormal(),
            "weight_c_im": LecunNormal(),
            "nu": Between(*ring, through=lambda square: (-0.5 * square.log()).log(), evenly=True),
            "gamma": Between(*ring, through=lambda square: 0.5 * (1 - square).log(), evenly=True),
            "theta": Between(0.0, self.max_phase, through=lambda phase: phase.log()),
        }

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        modulus, phase, scale = exp(-exp(p.nu)), exp(p.theta), exp(p.gamma)
        real, imaginary = modulus * cos(phase), modulus * sin(phase)
        re = real * s.re - imaginary * s.im + scale * x.b_re
        im = real * s.im + imaginary * s.re + scale * x.b_im
        return self.State(h=u.c_re(re) - u.c_im(im) + x.d, re=re, im=im)


class RGLRU(Cell):
    """Real-gated linear recurrent unit: a diagonal recurrence whose decay, and whose input, are gated by the input.

    r = σ(W_r x_t + b_r)                                   recurrence gate
    i = σ(W_i x_t + b_i)                                   input gate
    a = σ(Λ)^(8 r)
    h_t = a ∘ h_{t-1} + √(1 - a²) ∘ i ∘ (W_v x_t + b_v)

    De, Smith, Fernando, Botev et al., "Griffin: mixing gated linear recurrences with local attention for efficient
    language models", 2024. There x_t itself, as wide as h_t, is gated; here W_v stands for the linear layer before it,
    so that widths are free, and the gates' matrices are dense, not block-diagonal. As there, Λ starts with σ(Λ)^8 from
    U(0.9, 0.999). 1 - a² is kept above 2.5·10⁻⁷, so that the root's derivative is at most 1000, which the authors'
    code bounds too.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], no weight_hh, decay (Λ) [H]. Parameters: 3H·(I + 1) + H.
    """

    input_gates = ("r", "i", "v")
    recurrent_gates = ()
    vectors = ("decay",)
    initial = MappingProxyType({"decay": Between(0.9, 0.999, through=lambda a: (a ** (1 / 8)).logit())})

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        fall = expm1(8 * sigmoid(x.r) * log_sigmoid(p.decay))  # a - 1, which for a near 1 has more digits than a
        entering = sqrt(maximum(-fall * (2 + fall), 2.5e-7))
        return self.State(h=(1 + fall) * s.h + entering * sigmoid(x.i) * x.v)
