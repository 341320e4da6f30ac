"""On CUDA the reference engine and torch's kernels keep the contract and give what they give on the CPU."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import elman
from elman import Recurrent, cells
from elman.testing import SUITES, Case, assert_near, run_check
from test_contract import CELLS
from test_devices import results
from test_options import OPTIONS, SAMPLE, lacks

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

# See docs/status.md.
pytestmark = pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous")

TORCH = ("elman", "elman_relu", "lstm", "gru", "lstm_projected")  # torch has kernels for them
CONTRACT = ("chunks", "step", "lengths_bidirectional", "reset_bidirectional", "reverse")


@pytest.fixture
def exact() -> Iterator[None]:
    """Products in float32 as such, not in 19 bits."""
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("cell", CELLS)
def test_reference_on_cuda(cell: str, check: str, exact: None) -> None:
    with torch.device("cuda"):
        run_check(check, Case(CELLS[cell]))


@pytest.mark.parametrize("check", SUITES["torch", torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cell", TORCH)
def test_torch_kernels_on_cuda(cell: str, dtype: torch.dtype, check: str, exact: None) -> None:
    with torch.device("cuda"):
        run_check(check, Case(CELLS[cell], engine="torch", dtype=dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_cuda_equals_cpu(cell: str, exact: None) -> None:
    case = Case(CELLS[cell])
    module, x, extras = case.module(bidirectional=True), case.input(7, 4), case.extras(7, 4)
    arguments: dict[str, Any] = {"lengths": [7, 2, 5, 7]}
    if cell not in TORCH:
        arguments["reset"] = torch.rand(7, 4) < 0.3
    wanted = results(module, x, extras, case.noise(), **arguments)
    module.cuda()
    moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    found = results(module, x.cuda(), {k: v.cuda() for k, v in extras.items()}, case.noise(), **moved)
    back = results(module.cpu(), x, extras, case.noise(), **arguments)
    for a, b, c in zip(found, wanted, back, strict=True):
        assert a.device.type == "cuda"
        assert_near(a.cpu(), b, f"{cell} on CUDA against CPU")
        assert torch.equal(b, c)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", SAMPLE)
def test_options_on_cuda_equal_cpu(cell: str, option: str, exact: None) -> None:
    """Random masks included, which come from a counter."""
    if lacks(cell, OPTIONS[option]):
        return
    case = Case(cells.get(cell)(), options=OPTIONS[option])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="residual: layer")
        module = case.module()
    x = case.input(6, 3)
    wanted = results(module, x, {}, case.noise())
    found = results(module.cuda(), x.cuda(), {}, case.noise())
    for a, b in zip(found, wanted, strict=True):
        assert_near(a.cpu(), b, f"{cell}, {option} on CUDA against CPU")


def test_explain_on_cuda() -> None:
    x = torch.randn(3, 2, 4, device="cuda")
    assert elman.explain(elman.LSTM(4, 8, device="cuda"), x).engines == ("torch",)
    found = elman.explain(Recurrent("min_gru", 4, 8, device="cuda"), x)
    assert found.engines == ("reference",)
    assert "the cpu engine does not run on cuda" in str(found)
    with elman.use_engine("cpu"), pytest.raises(RuntimeError, match="the cpu engine does not run on cuda"):
        elman.LSTM(4, 8, device="cuda")(x)


def test_packed_sequences_and_steppers_on_cuda(exact: None) -> None:
    torch.manual_seed(0)
    module = elman.LSTM(4, 8, num_layers=2, bidirectional=True)
    rows = [torch.randn(n, 4) for n in (3, 6, 1)]
    wanted, _ = module(torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False))
    module.cuda()
    found, _ = module(torch.nn.utils.rnn.pack_sequence([r.cuda() for r in rows], enforce_sorted=False))
    assert_near(found.data.cpu(), wanted.data, "packed")
    layer = elman.GRU(4, 8).cuda().eval()
    x = torch.randn(5, 2, 4, device="cuda")
    stepper = layer.stepper(2)
    steps = torch.stack([stepper(x[t]) for t in range(5)])
    with torch.no_grad():
        assert_near(steps, layer(x)[0], "stepper")


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "min_gru"])
def test_mixed_precision_on_cuda(cell: str) -> None:
    layer = Recurrent(cell, 16, 32, device="cuda")
    x = torch.randn(12, 4, 16, device="cuda")
    plain, _ = layer(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        mixed, _ = layer(x)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert (mixed.float() - plain).abs().max() < 0.05


def test_tensors_of_cuda_and_cpu_are_refused() -> None:
    layer = elman.LSTM(4, 8, device="cuda")
    with pytest.raises(ValueError, match="cpu"):
        layer(torch.randn(3, 2, 4))
