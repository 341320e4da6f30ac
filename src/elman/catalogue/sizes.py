"""Sizes as formulas of H and I, found by working them out at a few values."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

_POWERS = ((2, 0), (1, 1), (1, 0), (0, 2), (0, 1), (0, 0))  # of H and I


def size_formula(size: Callable[[int, int], int], unit: int) -> str | None:
    """The formula of a size that is a polynomial of at most second degree: "4H·(I + H + 2)".

    Args:
        size: gives the size at (H, I).
        unit: what H must be a multiple of.

    Returns:
        The formula, or None where the size is no such polynomial.
    """
    points = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3)]  # (H / unit, I)
    matrix = [[h**a * i**b for a, b in _POWERS] for h, i in points]
    found = np.linalg.solve(np.array(matrix, dtype=float), np.array([size(h * unit, i) for h, i in points], float))
    # whole sizes at whole points: twice the coefficients are whole
    terms = {(a, b): Fraction(round(2 * c), 2 * unit**a) for (a, b), c in zip(_POWERS, found, strict=True)}
    for h, i in ((7 * unit, 5), (11 * unit, 8)):
        if sum(c * h**a * i**b for (a, b), c in terms.items()) != size(h, i):
            return None
    return _written(terms)


def _written(terms: dict[tuple[int, int], Fraction]) -> str:
    inside = {"I": terms[1, 1], "H": terms[2, 0], "": terms[1, 0]}
    inside = {name: c for name, c in inside.items() if c}
    parts = []
    if len(inside) == 1:
        ((name, c),) = inside.items()
        parts.append(_term(c, {"I": "H·I", "H": "H²", "": "H"}[name]))
    elif inside:
        common = Fraction(
            math.gcd(*(c.numerator for c in inside.values())), math.lcm(*(c.denominator for c in inside.values()))
        )
        parts.append(f"{_term(common, 'H')}·({' + '.join(_term(c / common, name) for name, c in inside.items())})")
    rest = {"I²": terms[0, 2], "I": terms[0, 1], "": terms[0, 0]}
    parts += [_term(c, name) for name, c in rest.items() if c]
    return " + ".join(parts) or "0"


def _term(c: Fraction, name: str) -> str:
    number = "" if c.numerator == 1 and name else str(c.numerator)
    return number + name + (f"/{c.denominator}" if c.denominator > 1 else "")
