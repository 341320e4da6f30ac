from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class MUT1(Cell):
    """The first of three units found by a search over mutations of the GRU.

    z = σ(W_z x_t + b_z)                                     update gate, of the input alone
    r = σ(W_r x_t + U_r h_{t-1} + b_r)                       reset gate
    n = tanh(U_n (r ∘ h_{t-1}) + tanh(W_n x_t) + b_n)        candidate
    h_t = z ∘ n + (1 - z) ∘ h_{t-1}

    Jozefowicz, Zaremba & Sutskever, "An empirical exploration of recurrent network architectures", ICML 2015. The
    paper adds the input itself, tanh(x_t), which takes I = H: `projected=False` does so; else x_t is projected first.
    torchrecurrent always projects, with a second bias within the tanh.

    Shapes: x [B, I], h and b_z [B, H]; weight_ih [3H, I], or [2H, I] unless projected, weight_hh [2H, H].
    Parameters: (2 + projected)·H·I + 2H² + 3H.
    """

    projected: bool = True

    recurrent_gates = ("r", "n")
    biases = ("b_z",)
    input_bias = False

    @property
    def input_gates(self) -> tuple[str, ...]:
        return ("z", "r", "n") if self.projected else ("z", "r")

    @property
    def equal_sizes(self) -> bool:
        return not self.projected

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z + p.b_z)
        r = sigmoid(x.r + u.r(s.h))
        n = tanh(u.n(r * s.h) + tanh(x.n if self.projected else x.raw))
        return self.State(h=z * n + (1 - z) * s.h)


@dataclass(frozen=True)
class MUT2(Cell):
    """The second of three units found by a search over mutations of the GRU.

    z = σ(W_z x_t + U_z h_{t-1} + b_z)                       update gate
    r = σ(W_r x_t + U_r h_{t-1} + b_r)                       reset gate
    n = tanh(W_n x_t + U_n (r ∘ h_{t-1}) + b_n)              candidate
    h_t = z ∘ n + (1 - z) ∘ h_{t-1}

    Jozefowicz, Zaremba & Sutskever, "An empirical exploration of recurrent network architectures", ICML 2015. The
    paper has x_t in place of W_r x_t, which takes I = H: `projected=False` does so. Projected, as torchrecurrent always
    is, this is the GRU with the reset gate before the product, and z the other way round.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], or [2H, I] unless projected, weight_hh [3H, H].
    Parameters: (2 + projected)·H·I + 3H² + 3H.
    """

    projected: bool = True

    recurrent_gates = ("z", "r", "n")
    input_bias = False

    @property
    def input_gates(self) -> tuple[str, ...]:
        return ("z", "r", "n") if self.projected else ("z", "n")

    @property
    def equal_sizes(self) -> bool:
        return not self.projected

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z + u.z(s.h))
        r = sigmoid((x.r if self.projected else x.raw) + u.r(s.h))
        n = tanh(x.n + u.n(r * s.h))
        return self.State(h=z * n + (1 - z) * s.h)


class MUT3(Cell):
    """The third of three units found by a search over mutations of the GRU.

    z = σ(W_z x_t + U_z tanh(h_{t-1}) + b_z)                 update gate
    r = σ(W_r x_t + U_r h_{t-1} + b_r)                       reset gate
    n = tanh(W_n x_t + U_n (r ∘ h_{t-1}) + b_n)              candidate
    h_t = z ∘ n + (1 - z) ∘ h_{t-1}

    Jozefowicz, Zaremba & Sutskever, "An empirical exploration of recurrent network architectures", ICML 2015.

    Shapes: x [B, I], h [B, H]; weight_ih [3H, I], weight_hh [3H, H]. Parameters: 3H·(I + H + 1).
    """

    gates = ("z", "r", "n")
    recurrent_bias = False

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = sigmoid(x.z + u.z(tanh(s.h)))
        r = sigmoid(x.r + u.r(s.h))
        n = tanh(x.n + u.n(r * s.h))
        return self.State(h=z * n + (1 - z) * s.h)
