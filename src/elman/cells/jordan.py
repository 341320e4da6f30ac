from dataclasses import dataclass
from typing import Any, Literal

from elman.cells.contract import Cell, Product, StateEntry
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class Jordan(Cell):
    """The network whose output, rather than its hidden units, is fed back.

    h_t = tanh(W x_t + U s_{t-1} + b)                   hidden units
    y_t = σ(V h_t + c)                                  output
    s_t = decay · s_{t-1} + y_t                         state units

    where `output` names the function of the output units, and `width` their number, H unless given. With the default
    decay of 0 the output is its own state unit.

    Michael I. Jordan, "Attractor dynamics and parallelism in a connectionist sequential machine", Cognitive Science
    Society 1986. The hidden units there are logistic too.

    Shapes: x [B, I], y [B, width], with a decay s [B, width]; weight_ih [H, I], weight_hh [H, width],
    weight_v [width, H], bias_v [width]. The count is for a width of H. Parameters: H·(I + 2H + 2).
    """

    output: Literal["sigmoid", "tanh", "identity"] = "sigmoid"
    width: int | None = None
    decay: float = 0.0

    gates = ("h",)
    recurrent_bias = False
    products = (Product("v", input="H", output="R"),)

    def __post_init__(self) -> None:
        if self.output not in ("sigmoid", "tanh", "identity"):
            raise ValueError(f"output must be 'sigmoid', 'tanh' or 'identity', got {self.output!r}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be at least 1, or None for the hidden size, got {self.width!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be from 0 to less than 1, got {self.decay!r}")

    @property
    def state(self) -> tuple[StateEntry, ...]:
        output = StateEntry("y", self.width or "H")
        return (output, StateEntry("s", "R")) if self.decay else (output,)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        y = u.v(tanh(x.h + u.h(s.s if self.decay else s.y)))
        if self.output != "identity":
            y = sigmoid(y) if self.output == "sigmoid" else tanh(y)
        return self.State(y, self.decay * s.s + y) if self.decay else self.State(y)
