"""Continuous-time linear systems turned into recurrences, in float64."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def zero_order_hold(a: Array, b: Array) -> tuple[Array, Array]:
    """The recurrence m_{t+1} = Ā m_t + B̄ u_t that m' = A m + B u follows while u is constant over a unit step.

    Args:
        a: A, [n, n]. b: B, [n].

    Returns:
        Ā = exp(A), [n, n], and B̄ = A⁻¹ (exp(A) - 1) B, [n]: both blocks of one exponential.
    """
    n = len(b)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = a
    system[:n, n] = b
    result = _exponential(system)
    return result[:n, :n], result[:n, n]


def _exponential(a: Array) -> Array:
    """exp(a) by scaling and squaring: the series converges at once for the small norm, the squares undo the scaling."""
    doublings = max(0, math.ceil(math.log2(max(float(np.linalg.norm(a, 1)), 1e-300))) + 4)
    small = a / 2.0**doublings
    result = term = np.eye(len(a))
    for k in range(1, 13):  # norm ≤ 1/16: the 13th term is below 1e-25
        term = term @ small / k
        result = result + term
    for _ in range(doublings):
        result = result @ result
    return np.asarray(result)
