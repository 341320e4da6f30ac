"""The functions that a cell's equations are written in.

Each applies unit by unit, except `mean`, which reduces over the hidden units. The arithmetic operators, comparisons
and `%` work on the same values. A value is a torch tensor on the reference engine and a symbol while a cell is traced;
an operand may be a plain number.
"""

from typing import Any

Value = Any  # a torch.Tensor or a symbolic value; typed loosely because cells import without torch


def _apply(name: str, *operands: Value) -> Value:
    for operand in operands:
        symbolic = getattr(operand, "__elman_apply__", None)
        if symbolic is not None:
            return symbolic(name, operands)
    import torch

    tensor = next(v for v in operands if isinstance(v, torch.Tensor))
    return getattr(torch, name)(*(v if isinstance(v, torch.Tensor) else torch.full_like(tensor, v) for v in operands))


def sigmoid(v: Value) -> Value:
    """σ(v) = 1 / (1 + exp(-v))."""
    return _apply("sigmoid", v)


def tanh(v: Value) -> Value:
    """Hyperbolic tangent."""
    return _apply("tanh", v)


def relu(v: Value) -> Value:
    """max(v, 0); the derivative at 0 is 0."""
    return _apply("relu", v)


def exp(v: Value) -> Value:
    """e to the power v."""
    return _apply("exp", v)


def expm1(v: Value) -> Value:
    """exp(v) - 1, with all its digits where v is near 0."""
    return _apply("expm1", v)


def log(v: Value) -> Value:
    """Natural logarithm."""
    return _apply("log", v)


def log1p(v: Value) -> Value:
    """log(1 + v), with all its digits where v is near 0."""
    return _apply("log1p", v)


def log_sigmoid(v: Value) -> Value:
    """log σ(v) = min(v, 0) - log(1 + exp(-|v|)), without overflow for any v."""
    return minimum(v, 0.0) - log1p(exp(-absolute(v)))


def softplus(v: Value) -> Value:
    """log(1 + exp(v)), without overflow for any v."""
    return -log_sigmoid(-v)


def sqrt(v: Value) -> Value:
    """Square root."""
    return _apply("sqrt", v)


def rsqrt(v: Value) -> Value:
    """1 / sqrt(v)."""
    return _apply("rsqrt", v)


def sin(v: Value) -> Value:
    """Sine of v radians."""
    return _apply("sin", v)


def cos(v: Value) -> Value:
    """Cosine of v radians."""
    return _apply("cos", v)


def floor(v: Value) -> Value:
    """The largest integer that is not above v; its derivative counts as 0."""
    return _apply("floor", v)


def absolute(v: Value) -> Value:
    """|v|; the derivative at 0 is 0."""
    return _apply("abs", v)


def maximum(a: Value, b: Value) -> Value:
    """The larger of two values; where they are equal, each takes half of the derivative."""
    return _apply("maximum", a, b)


def minimum(a: Value, b: Value) -> Value:
    """The smaller of two values; where they are equal, each takes half of the derivative."""
    return _apply("minimum", a, b)


def where(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`. Both are computed, so neither may overflow where it is not taken."""
    for operand in (condition, a, b):
        symbolic = getattr(operand, "__elman_apply__", None)
        if symbolic is not None:
            return symbolic("where", (condition, a, b))
    import torch

    return torch.where(condition, a, b)


def mean(v: Value) -> Value:
    """The mean over the hidden units of each row: [B, H] to [B, 1]."""
    symbolic = getattr(v, "__elman_apply__", None)
    return symbolic("mean", (v,)) if symbolic is not None else v.mean(-1, keepdim=True)


def layer_norm(*values: Value, epsilon: float = 1e-5) -> tuple[Value, ...]:
    """Layer normalisation of a row made of all the values together (Ba, Kiros & Hinton 2016, equations 2-3).

    v̂ = (v - μ) / sqrt(σ² + ε), with the mean μ and the variance σ² taken over the units of *all* the values, which
    must have equal widths: `layer_norm(u.i(h), u.f(h))` normalises the stacked product as the paper does,
    `layer_norm(c)` one vector. Gains and biases are the cell's own vectors. Returns one value for each given.
    """
    count = len(values)
    mu = sum(mean(v) for v in values) / count
    centred = [v - mu for v in values]
    variance = sum(mean(v * v) for v in centred) / count
    scale = rsqrt(variance + epsilon)
    return tuple(v * scale for v in centred)
