"""The large matrix products against torch's in float64, at shapes and strides of all kinds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
    (8, 192, 2050),  # small ones whose depth threads share out
    (258, 70, 200),
    (20, 1500, 800),  # packed, more than near caches hold
]


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
@pytest.mark.parametrize("isa", [None, "portable"])
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
                        sums=sums.data_ptr(),
                        column_sums=columns.data_ptr(),
                        add_sums=add,
                    )
                    whole = a.double() @ b.double() + (start if add else bias)
                    assert _close(c, whole, k), f"strides {a.stride()}, {b.stride()}, add {add}"
                    assert _close(sums, a.double().sum(1) + add, k)
                    assert _close(columns, b.double().sum(0) + add, k)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chosen_rows(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    torch.manual_seed(0)
    for left in (False, True):
        a, b = _operand(m, k, left, torch.float64), _operand(k, n, False, torch.float64)
        chosen = torch.randperm(k)[: max(1, k // 3)].sort().values
        c, sums, columns = (torch.empty(*size, dtype=torch.float64) for size in ((m, n), (m,), (n,)))
        memory.scratch.begin()
        tools(torch.float64).multiply(
            AtOnce(),
            (m, n, len(chosen)),
            (a.data_ptr(), a.stride(0), a.stride(1)),
            (b.data_ptr(), b.stride(0), b.stride(1)),
            (c.data_ptr(), n),
            sums=sums.data_ptr(),
            column_sums=columns.data_ptr(),
            chosen=chosen.data_ptr(),
        )
        assert _close(c, a[:, chosen] @ b[chosen], k)
        assert _close(columns, b[chosen].sum(0), k)
        assert _close(sums, a[:, chosen].sum(1), k)


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
