from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Gate, Product, StateEntry, Vector
from elman.cells.math import sigmoid


@dataclass(frozen=True)
class SCRN(Cell):
    """Structurally constrained network: slow context units beside a small vanilla network.

    s_t = (1 - α) W_s x_t + α s_{t-1}                   context
    h_t = σ(P s_t + W_h x_t + R h_{t-1})                hidden units
    y_t = U h_t + V s_t                                 output

    α is a number; with `adaptive` it is learned for each context unit, as σ(a).

    Mikolov, Joulin, Chopra, Mathieu & Ranzato, "Learning longer memory in recurrent neural networks", ICLR 2015
    workshop. There the output goes through a softmax; here it is left to what reads the layer.

    Shapes: x [B, I], y and h [B, H], s [B, context]; weight_ih [context + H, I], weight_hh (R) and weight_u [H, H],
    weight_p and weight_v [H, context], with `adaptive` a [context]. Parameters: (I + 2H)·(H + context).
    """

    context: int = 10
    alpha: float = 0.95
    adaptive: bool = False

    recurrent_gates = ("h",)
    input_bias = False
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1, got {self.context!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {self.alpha!r}")

    @property
    def input_gates(self) -> tuple[str | Gate, ...]:
        return (Gate("s", self.context), "h")

    @property
    def state(self) -> tuple[str | StateEntry, ...]:
        return ("y", "h", StateEntry("s", self.context))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        return (Vector("a", self.context),) if self.adaptive else ()

    @property
    def products(self) -> tuple[Product, ...]:
        return (
            Product("p", input=self.context, bias=False),
            Product("u", input="H", bias=False),
            Product("v", input=self.context, bias=False),
        )

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        alpha = sigmoid(p.a) if self.adaptive else self.alpha
        context = (1 - alpha) * x.s + alpha * s.s
        h = sigmoid(u.p(context) + x.h + u.h(s.h))
        return self.State(y=u.u(h) + u.v(context), h=h, s=context)
