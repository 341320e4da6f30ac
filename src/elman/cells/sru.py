import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell
from elman.cells.initial import Constant, Initial, LecunUniform
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class SRU(Cell):
    """Simple recurrent unit: gates see the input and, of the past, each its own unit; a highway passes the input on.

    f = σ(W_f x_t + v_f ∘ c_{t-1} + b_f)               forget gate
    r = σ(W_r x_t + v_r ∘ c_{t-1} + b_r)               highway gate
    c_t = f ∘ c_{t-1} + (1 - f) ∘ (W_c x_t)
    h_t = r ∘ c_t + (1 - r) ∘ (a W_x x_t),  a = √(1 + 2 exp(highway_bias))

    Lei, Zhang, Wang, Dai & Artzi, "Simple recurrent units for highly parallelizable recurrence", EMNLP 2018; b_r starts
    at `highway_bias` and a keeps the variance through deep stacks. `version=1` is the first text's ("Training RNNs as
    fast as CNNs", 2017): no v_f and v_r, a = 1, and tanh(c_t) in h_t. Where I = H the paper adds x_t itself; here W_x
    is always there, so that widths are free (for the paper's highway, make it the identity and do not train it).

    Shapes: x [B, I], h and c [B, H]; weight_ih [4H, I], no weight_hh, four vectors [H]. Parameters: 4H·(I + 1).
    """

    version: Literal[1, 2] = 2
    highway_bias: float = 0.0

    input_gates = ("f", "r", "c", "x")
    recurrent_gates = ()
    state = ("h", "c")
    biases = ("b_f", "b_r")
    input_bias = False
    keeping = MappingProxyType({"b_f": 1})

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {self.version!r}")

    @property
    def vectors(self) -> tuple[str, ...]:
        return () if self.version == 1 else ("v_f", "v_r")

    @property
    def initial(self) -> Mapping[str, Initial]:
        return {"weight_ih": LecunUniform(), "b_f": Constant(0.0), "b_r": Constant(self.highway_bias)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        if self.version == 1:
            f, r = sigmoid(x.f + p.b_f), sigmoid(x.r + p.b_r)
        else:
            f = sigmoid(x.f + p.v_f * s.c + p.b_f)
            r = sigmoid(x.r + p.v_r * s.c + p.b_r)
        c = f * s.c + (1 - f) * x.c
        if self.version == 1:
            return self.State(h=r * tanh(c) + (1 - r) * x.x, c=c)
        a = math.sqrt(1 + 2 * math.exp(self.highway_bias))
        return self.State(h=r * c + (1 - r) * (a * x.x), c=c)
