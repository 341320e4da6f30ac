"""The large matrix products against torch's in float64, at shapes and strides of all kinds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elman.compiler import build
from elman.engine import memory
from elman.engine.products import matrix, tools
from elman.engine.sinks import AtOnce

SHAPES = [  # M, N, K; some with blocks of the depth that are not equally deep, and with one panel, and with one row
    (1, 1, 1),
    (5, 3, 2),
    (6, 64, 400),
    (7, 200, 700),
    (100, 100, 1100),
    (64, 300, 1093),
    (300, 40, 513),
    (97, 130, 17),
    (256, 290, 400),  # as many rows as fit beside each other, and more
    (262, 290, 400),
    (256, 290, 576),  # by vectors: the deepest block of sixteen registers
    (262, 70, 577),  # and two
    (40, 300, 961),
    (8, 192, 2050),  # small ones whose depth threads share out
    (258, 70, 200),
    (20, 1500, 800),  # packed, more than near caches hold
    (300, 48, 1100),  # by matrix tiles: blocks of the depth that are not equally deep, a tile that is not full
    (200, 704, 1120),  # the next panel is packed while tiles multiply by one, and used once
    (270, 290, 1088),  # or by several blocks of rows
]

TILES = build.instruction_set() == "amx"


@pytest.fixture(params=[1, 2, 3], ids=["one thread", "two threads", "three threads"], autouse=True)
def threads(request: pytest.FixtureRequest, set_threads: Callable[[int], None]) -> None:
    set_threads(request.param)


def _close(found: Tensor, expected: Tensor, depth: int) -> bool:
    bound = 8 * torch.finfo(found.dtype).eps * (depth + 1) ** 0.5
    return bool(((found - expected).abs() <= bound * (expected.abs().max() + 1)).all())


def _operand(rows: int, columns: int, transposed: bool, dtype: torch.dtype) -> Tensor:
    stored = torch.randn(columns, rows + 3, dtype=dtype)[:, :rows].T if transposed else torch.randn(rows, columns + 3)
    return stored.to(dtype) if transposed else stored[:, :columns].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "isa", [None, "portable", pytest.param("avx512", marks=pytest.mark.skipif(not TILES, reason="as None"))]
)
def test_products(
    shape: tuple[int, int, int], dtype: torch.dtype, isa: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa is not None:
        monkeypatch.setenv("ELMAN_ISA", isa)
    m, n, k = shape
    torch.manual_seed(0)
    product = tools(dtype)
    for left in (False, True):
        for right in (False, True):
            a, b = _operand(m, k, left, dtype), _operand(k, n, right, dtype)
            bias, start = torch.randn(n, dtype=dtype), torch.randn(m, n, dtype=dtype)
            for add in (False, True):
                summed = left or add  # else the rows of A that are wanted next are packed while tiles multiply
                for _ in range(5):  # threads that overtake each other do so now and then
                    memory.scratch.begin()
                    c, sums, columns = start.clone(), torch.ones(m, dtype=dtype), torch.ones(n, dtype=dtype)
                    product.multiply(
                        AtOnce(),
                        shape,
                        (a.data_ptr(), a.stride(0), a.stride(1)),
                        (b.data_ptr(), b.stride(0), b.stride(1)),
                        (c.data_ptr(), n),
                        bias=0 if add else bias.data_ptr(),
                        add=add,
                        sums=sums.data_ptr() if summed else 0,
                        column_sums=columns.data_ptr(),
                        add_sums=add,
                    )
                    whole = a.double() @ b.double() + (start if add else bias)
                    assert _close(c, whole, k), f"strides {a.stride()}, {b.stride()}, add {add}"
                    assert _close(sums, a.double().sum(1) + add, k) if summed else bool((sums == 1).all())
                    assert _close(columns, b.double().sum(0) + add, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chosen_rows(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    torch.manual_seed(0)
    for left in (False, True):
        a, b = _operand(m, k, left, dtype), _operand(k, n, False, dtype)
        chosen = torch.randperm(k)[: max(1, k // 3)].sort().values
        c, sums, columns = (torch.empty(*size, dtype=dtype) for size in ((m, n), (m,), (n,)))
        memory.scratch.begin()
        tools(dtype).multiply(
            AtOnce(),
            (m, n, len(chosen)),
            (a.data_ptr(), a.stride(0), a.stride(1)),
            (b.data_ptr(), b.stride(0), b.stride(1)),
            (c.data_ptr(), n),
            sums=sums.data_ptr(),
            column_sums=columns.data_ptr(),
            chosen=chosen.data_ptr(),
        )
        assert _close(c, a[:, chosen].double() @ b[chosen].double(), k)
        assert _close(columns, b[chosen].double().sum(0), k)
        assert _close(sums, a[:, chosen].double().sum(1), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_once_and_transposed(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    torch.manual_seed(0)
    product = tools(dtype)
    for transposed in (False, True):
        a = torch.randn(m, k, dtype=dtype)
        b = torch.randn(n, k, dtype=dtype) if transposed else torch.randn(k, n, dtype=dtype)
        c, turned = torch.empty(m, n, dtype=dtype), torch.full((n, m + 2), 7.0, dtype=dtype)
        memory.scratch.begin()
        packed = product.packed_right(AtOnce(), matrix(b), transposed)
        product.multiply(AtOnce(), shape, (a.data_ptr(), k, 1), (0, 0, 0), (c.data_ptr(), n), packed=packed)
        assert _close(c, a.double() @ (b.T if transposed else b).double(), k)
        product.transpose(AtOnce(), matrix(c), turned.data_ptr(), m + 2)
        assert torch.equal(turned[:, :m], c.T)
        assert bool((turned[:, m:] == 7).all())


def _product(a: Tensor, b: Tensor) -> Tensor:
    c = torch.empty(len(a), b.shape[1])
    memory.scratch.begin()
    tools(torch.float32).multiply(
        AtOnce(),
        (*a.shape[:1], b.shape[1], len(b)),
        (a.data_ptr(), len(b), 1),
        (b.data_ptr(), b.shape[1], 1),
        (c.data_ptr(), b.shape[1]),
    )
    return c


@pytest.mark.skipif(not TILES, reason="no matrix tiles")
@pytest.mark.parametrize("depth", [48, 300, 3000])
@pytest.mark.parametrize("spread", [0.0, 6.0], ids=["alike", "of all sizes"])
@pytest.mark.parametrize("scale", [1.0, 1e-24, 1e18])
def test_tiles_are_as_exact_as_multiply_adds(
    depth: int, spread: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three terms of each number, six products of them: the errors of sums are no larger than those of 32 bits."""
    torch.manual_seed(0)
    a, b = (torch.randn(*size) * torch.exp(spread * torch.randn(*size)) for size in ((80, depth), (depth, 96)))
    a = a * scale
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()

    def error() -> tuple[float, float]:
        relative = (_product(a, b).double() - exact).abs() / size * 2**24
        return float(relative.square().mean().sqrt()), float(relative.max())

    mean, most = error()
    monkeypatch.setenv("ELMAN_ISA", "avx512")
    mean_of_vectors, most_of_vectors = error()
    assert mean <= mean_of_vectors
    assert most <= 1.1 * most_of_vectors


@pytest.mark.skipif(not TILES, reason="no matrix tiles")
def test_tiles_and_what_is_no_number() -> None:
    """It stays in its row or its column; what is infinite is not taken for a number either."""
    torch.manual_seed(0)
    for special in (float("nan"), float("inf"), -float("inf"), torch.finfo(torch.float32).max):
        a, b = torch.randn(40, 70), torch.randn(70, 50)
        expected = a @ b
        a[17, 33] = b[66, 5] = special
        c = _product(a, b)
        if special != torch.finfo(torch.float32).max:
            assert not c[17].isfinite().any()
            assert not c[:, 5].isfinite().any()
        rows, columns = torch.arange(40) != 17, torch.arange(50) != 5
        assert torch.allclose(c[rows][:, columns], expected[rows][:, columns], atol=1e-4)
    unusual = torch.tensor([-1, 0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)  # NaN, all of them
    for special in unusual:
        a = torch.zeros(40, 70)
        a[3, 4] = special
        assert _product(a, torch.ones(70, 50))[3].isnan().all()
