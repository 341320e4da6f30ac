"""The kernels' functions of a vector: accurate over the whole range of numbers, in every build."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from elman.compiler import build

SOURCE = """
#include "functions.h"
#define OF(name) EXPORT void apply_##name(const real *in, real *out, int64_t n) {{ \\
    for (int64_t i = 0; i + LANES <= n; i += LANES) store(out + i, name(load(in + i))); \\
}}
{each}
"""


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# each with the units in the last place that it may be wrong by, and where its argument is taken from
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float, tuple[float, float]]] = {
    "exp": (np.exp, 2, (-750, 720)),
    "expm1": (np.expm1, 3, (-750, 720)),
    "sigmoid": (_sigmoid, 3, (-87, 750)),
    "tanh": (np.tanh, 3, (-25, 25)),
    "log": (np.log, 2, (0, 10)),
    "log1p": (np.log1p, 3, (-1, 10)),
    "sqrt": (np.sqrt, 1, (0, 10)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2, (0, 10)),
    "sin": (np.sin, 3, (-2000, 2000)),
    "cos": (np.cos, 3, (-2000, 2000)),
    "floor": (np.floor, 0, (-1e7, 1e7)),
    "abs": (np.abs, 0, (-10, 10)),
    "relu": (lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)), 0, (-10, 10)),
}
REALS = {"float": (np.float32, np.float64), "double": (np.float64, np.longdouble)}


@pytest.fixture(params=["avx512", "avx512 by division", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, by_division = request.param.partition(" ")
    needed = {"avx512": {"avx512f"}, "avx2": {"avx2", "fma"}, "portable": set()}
    if not needed[name] <= build.processor_flags():
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv("ELMAN_ISA", name)
    monkeypatch.setattr(build, "divides_quickly", lambda: bool(by_division))
    return str(name)


def _arguments(real: str, low: float, high: float) -> Any:
    """Numbers of every size and sign, numbers from the range that matters, and the special ones."""
    dtype = REALS[real][0]
    limits = np.finfo(dtype)
    random = np.random.default_rng(0)
    powers = np.exp2(random.uniform(limits.minexp - limits.nmant, limits.maxexp, 20_000).astype(np.longdouble))
    special = [
        0.0,
        1.0,
        0.5,
        2.0,
        np.inf,
        np.nan,
        limits.max,
        limits.tiny,
        limits.smallest_subnormal,
        limits.eps,
        87.5,
        1e5,
    ]
    values = [powers, -powers, special, np.negative(special), random.uniform(low, high, 40_000)]
    values += [np.arange(-2000, 2001) * (np.pi / 4), 1 + random.uniform(-1e-3, 1e-3, 10_000)]
    with np.errstate(over="ignore"):
        joined = np.concatenate([np.asarray(v, np.longdouble) for v in values]).astype(dtype)
    return np.resize(joined, -(-len(joined) // 64) * 64)


@pytest.mark.parametrize("real", REALS)
def test_accuracy(real: str, isa: str) -> None:
    dtype, exact_dtype = REALS[real]
    if np.finfo(exact_dtype).nmant < np.finfo(dtype).nmant + 10:
        pytest.skip("numpy has no wider numbers here")
    library = build.load(SOURCE.format(each="\n".join(f"OF({name})" for name in FUNCTIONS)), real)
    for name, (reference, allowed, (low, high)) in FUNCTIONS.items():
        given = _arguments(real, low, high)
        got = np.full_like(given, 7)
        getattr(library, f"apply_{name}")(
            given.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(given))
        )
        with np.errstate(all="ignore"):
            exact = reference(given.astype(exact_dtype))
            expected = exact.astype(dtype)
            unit = np.spacing(np.abs(expected))
            error = np.abs(got.astype(exact_dtype) - exact) / unit
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        if name == "sigmoid":  # so near 0 that only its size counts
            same |= (given < -85) & (got >= 0) & (got < 1e-36)
        wrong = ~same & ~(error <= allowed)
        worst = np.nanargmax(np.where(wrong, np.where(np.isfinite(error), error, 1e30), np.where(same, 0, error)))
        assert not wrong.any(), f"{name}({given[worst]!r}) = {got[worst]!r}, not {exact[worst]!r}"
        print(f"{name:8s} {real:6s} {isa}: {error[worst]:.2f} units at {given[worst]!r}")
