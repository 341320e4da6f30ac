import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from elman.cells.contract import Cell, Extra, Gate, Product
from elman.cells.initial import Constant
from elman.cells.math import sigmoid, softplus, tanh


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


@dataclass(frozen=True)
class LTC(Cell):
    """Liquid time-constant network: how fast a unit forgets, and what it tends to, depend on input and state.

    δ = Δt / unfolds; from v = h_{t-1}, `unfolds` times:
    f = σ(W x_t + U v + b)
    v ← (v + δ f ∘ A) / (1 + δ (1 / τ + f))
    h_t = v

    the fused (semi-implicit) Euler solver for h' = -(1 / τ + f) ∘ h + f ∘ A. Δt, the extra input `dt`, is the time gap
    of the step, 1 unless given. τ = softplus(τ̃), so that it stays positive; it starts at 1.

    Hasani, Lechner, Amini, Rus & Grosu, "Liquid time-constant networks", AAAI 2021, algorithm 1, with one layer for f;
    the authors' package ncps has, in its place, a synapse with its own sigmoid for each pair of units. f may be tanh
    too, but then the divisor can come to zero.

    Shapes: x [B, I], dt [B, 1], h [B, H]; weight_ih [H, I], weight_hh [H, H], a and tau (τ̃) [H].
    Parameters: H·(I + H + 3).
    """

    unfolds: int = 6
    nonlinearity: Literal["sigmoid", "tanh"] = "sigmoid"

    gates = ("f",)
    vectors = ("a", "tau")
    extras = (Extra("dt", default=1.0),)
    recurrent_bias = False
    initial = MappingProxyType({"tau": Constant(math.log(math.e - 1))})

    def __post_init__(self) -> None:
        if self.unfolds < 1:
            raise ValueError(f"unfolds must be at least 1, got {self.unfolds}")
        if self.nonlinearity not in ("sigmoid", "tanh"):
            raise ValueError(f"nonlinearity must be 'sigmoid' or 'tanh', got {self.nonlinearity!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        activation = sigmoid if self.nonlinearity == "sigmoid" else tanh
        delta, leak = x.dt / self.unfolds, 1 / softplus(p.tau)
        v = s.h
        for _ in range(self.unfolds):
            f = activation(x.f + u.f(v))
            v = (v + delta * f * p.a) / (1 + delta * (leak + f))
        return self.State(h=v)
