"""LSTMs for events at irregular times."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elman.cells.contract import Cell, Extra, Product, StateEntry
from elman.cells.initial import Between, Constant, Initial
from elman.cells.math import floor, log, sigmoid, tanh, where


@dataclass(frozen=True)
class PhasedLSTM(Cell):
    """Peephole LSTM whose units are open for updates only in a part of a cycle of their own.

    time_t = time_{t-1} + Δt
    φ = ((time_t - s) mod τ) / τ                                             phase of each unit
    k = 2φ / r where φ < r / 2;  2 - 2φ / r where r / 2 ≤ φ < r;  α φ elsewhere      openness
    c_t = k ∘ c̃ + (1 - k) ∘ c_{t-1}
    h_t = k ∘ o ∘ tanh(c̃) + (1 - k) ∘ h_{t-1}

    with o and c̃ the output gate and the memory that the peephole LSTM would have. The period τ, the shift s and the
    open share r are learned. Δt, the extra input `dt`, is the time since the last step, 1 unless given.

    Neil, Pfeiffer & Liu, "Phased LSTM: accelerating recurrent network training for long or event-based sequences",
    NIPS 2016. As there, τ starts log-uniform from 1 to exp(`log_period`), spread evenly over the units, s from U(0, τ)
    and r at `open_share`; the leak α is for training, so that a trained model may run with `leak=0`.

    Shapes: x [B, I], dt [B, 1], h and c [B, H], time [B, 1]; weight_ih [4H, I], weight_hh [4H, H], six vectors [H].
    Parameters: 4H·(I + H + 1) + 6H.
    """

    log_period: float = 3.0
    open_share: float = 0.05
    leak: float = 0.001

    gates = ("i", "f", "g", "o")
    state = ("h", "c", StateEntry("time", 1))
    vectors = ("p_i", "p_f", "p_o", "period", "shift", "share")
    extras = (Extra("dt", default=1.0),)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.log_period <= 0 or not 0 < self.open_share <= 1 or not 0 <= self.leak <= 1:
            got = f"{self.log_period}, {self.open_share} and {self.leak}"
            raise ValueError(f"log_period must be positive, open_share and leak shares from 0 to 1, got {got}")

    @property
    def initial(self) -> Mapping[str, Initial]:
        periods = Between(0.0, self.log_period, through=lambda v: v.exp(), evenly=True)

        def within_period(share: Any) -> Any:
            period = share.clone()
            periods.fill(period, len(period))
            return share * period

        return {"period": periods, "shift": Between(0.0, 1.0, within_period), "share": Constant(self.open_share)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h) + p.p_i * s.c)
        f = sigmoid(x.f + u.f(s.h) + p.p_f * s.c)
        c = f * s.c + i * tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h) + p.p_o * c)

        time = s.time + x.dt
        cycles = (time - p.shift) / p.period
        phase = cycles - floor(cycles)
        rising = 2 * phase / p.share
        k = where(phase < 0.5 * p.share, rising, where(phase < p.share, 2 - rising, self.leak * phase))
        return self.State(h=k * o * tanh(c) + (1 - k) * s.h, c=k * c + (1 - k) * s.c, time=time)


@dataclass(frozen=True)
class TimeAwareLSTM(Cell):
    """LSTM that discounts the short-term part of its memory by the time since the last step.

    c^S = tanh(W_d c_{t-1} + b_d)                  short-term part
    c* = c_{t-1} - c^S + g(Δt) c^S
    c_t = f ∘ c* + i ∘ tanh(W_g x_t + U_g h_{t-1} + b_g)
    h_t = o ∘ tanh(c_t)

    with i, f and o as in the LSTM, and g(Δt) = 1 / log(e + Δt) for long gaps (`decay="logarithmic"`) or 1 / Δt for
    short ones ("inverse"). Δt, the extra input `dt`, is the time since the last step, 1 unless given.

    Baytas, Xiao, Zhang, Wang, Jain & Zhou, "Patient subtyping via time-aware LSTM networks", KDD 2017.

    Shapes: x [B, I], dt [B, 1], h and c [B, H]; weight_ih [4H, I], weight_hh [4H, H], weight_d [H, H].
    Parameters: 4H·(I + H + 1) + H·(H + 1).
    """

    decay: Literal["logarithmic", "inverse"] = "logarithmic"

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    products = (Product("d", input="H"),)
    extras = (Extra("dt", default=1.0),)
    recurrent_bias = False

    def __post_init__(self) -> None:
        if self.decay not in ("logarithmic", "inverse"):
            raise ValueError(f"decay must be 'logarithmic' or 'inverse', got {self.decay!r}")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        i = sigmoid(x.i + u.i(s.h))
        f = sigmoid(x.f + u.f(s.h))
        g = tanh(x.g + u.g(s.h))
        o = sigmoid(x.o + u.o(s.h))
        discount = 1 / (log(math.e + x.dt) if self.decay == "logarithmic" else x.dt)
        short = tanh(u.d(s.c))
        c = f * (s.c - short + discount * short) + i * g
        return self.State(h=o * tanh(c), c=c)
