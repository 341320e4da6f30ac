from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Extra, Gate, Product
from elman.cells.math import sigmoid, tanh


@dataclass(frozen=True)
class CfC(Cell):
    """Closed-form continuous-time network: interpolates between two targets by the time since the last step.

    z = 1.7159 tanh(⅔ (W x_t + U h_{t-1} + b))             backbone
    t = σ(time_a(z) Δt + time_b(z))
    h_t = (1 - t) ∘ tanh(ff1(z)) + t ∘ tanh(ff2(z))

    where time_a, time_b, ff1, ff2 are affine maps of the backbone, and Δt, the extra input `dt`, is the time gap of
    the step, 1 unless given.

    Hasani, Lechner, Amini et al., "Closed-form continuous-time neural networks", Nature Machine Intelligence 4, 2022,
    with the scaled tanh (LeCun 1998) and the one-layer backbone of the authors' package; they write 0.666 for ⅔.

    Shapes: x [B, I], dt [B, 1], h [B, H]; weight_ih [backbone, I], weight_hh [backbone, H], weight_ff1, weight_ff2,
    weight_time_a, weight_time_b [H, backbone]. Parameters: backbone·(I + H + 2) + 4H·(backbone + 1).
    """

    backbone: int = 64

    extras = (Extra("dt", default=1.0),)

    def __post_init__(self) -> None:
        if self.backbone < 1:
            raise ValueError(f"backbone must be at least 1, got {self.backbone}")

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("z", self.backbone),)

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(Product(name, input=self.backbone) for name in ("ff1", "ff2", "time_a", "time_b"))

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        z = 1.7159 * tanh(0.666 * (x.z + u.z(s.h)))
        t = sigmoid(u.time_a(z) * x.dt + u.time_b(z))
        return self.State(h=(1 - t) * tanh(u.ff1(z)) + t * tanh(u.ff2(z)))
