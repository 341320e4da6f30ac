"""Losses over large vocabularies: torch's numbers, without torch's memory."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import elman
from elman.nn import cross_entropy
from elman.nn.cross_entropy import linear_cross_entropy, linear_losses, multiply
from elman.nn.softmax import AdaptiveSoftmax, FullSoftmax, MixtureOfSoftmaxes

EPSILON = torch.finfo(torch.float64).eps


@pytest.fixture(params=[1 << 30, 1000, 37])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, several chunks, and a chunk for every row."""
    monkeypatch.setattr(cross_entropy, "CHUNK", request.param)
    monkeypatch.setattr(cross_entropy, "SLICE", min(request.param, 300))


@pytest.fixture(params=["cpu", "torch"])
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    with elman.use_engine(request.param):
        yield


def example(bias: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    hidden = (torch.randn(41, 19, dtype=torch.float64) * scale).requires_grad_()
    weight = torch.randn(103, 19, dtype=torch.float64, requires_grad=True)
    b = torch.randn(103, dtype=torch.float64, requires_grad=True) if bias else None
    return hidden, weight, b, torch.randint(103, (41,))


@pytest.mark.usefixtures("chunk", "engine")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 300.0, 0.0])
def test_loss_and_gradients_are_torchs(bias: bool, scale: float) -> None:
    hidden, weight, b, targets = example(bias, scale)
    inputs = [hidden, weight, *([b] if b is not None else [])]
    expected = F.cross_entropy(F.linear(hidden, weight, b), targets)
    gradients = torch.autograd.grad(3 * expected, inputs)
    found = linear_cross_entropy(hidden, weight, b, targets)
    # logits of this size have no more digits than that
    digits = 64 * EPSILON * max(1.0, F.linear(hidden, weight, b).abs().max().item())
    torch.testing.assert_close(found, expected, atol=digits, rtol=digits)
    torch.testing.assert_close(list(torch.autograd.grad(3 * found, inputs)), list(gradients), atol=digits, rtol=digits)
    losses = F.cross_entropy(F.linear(hidden, weight, b), targets, reduction="none")
    torch.testing.assert_close(linear_losses(hidden, weight, b, targets), losses, atol=digits, rtol=digits)


@pytest.mark.usefixtures("chunk")
def test_gradients_only_where_they_are_wanted() -> None:
    hidden, weight, b, targets = example()
    assert b is not None
    whole = torch.autograd.grad(linear_cross_entropy(hidden, weight, b, targets), (hidden, weight, b))
    for number, wanted in enumerate((hidden, weight, b)):
        inputs = [tensor if tensor is wanted else tensor.detach() for tensor in (hidden, weight, b)]
        (alone,) = torch.autograd.grad(linear_cross_entropy(*inputs, targets), wanted)
        assert torch.equal(alone, whole[number])
    loss = linear_cross_entropy(hidden, weight, b, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_never_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 1000)
    seen: list[int] = []
    real = cross_entropy._logits
    monkeypatch.setattr(cross_entropy, "_logits", lambda *a: (seen.append(len(a[0]) * len(a[1])), real(*a))[1])
    hidden, weight, b, targets = example()
    linear_cross_entropy(hidden, weight, b, targets)
    linear_losses(hidden, weight, b, targets)
    assert max(seen) <= 1000
    assert sum(seen) == 2 * 41 * 103


@pytest.mark.usefixtures("engine")
def test_products_of_any_layout() -> None:
    torch.manual_seed(0)
    for transposed in range(4):
        a = torch.randn(7, 5, dtype=torch.float64) if transposed & 1 else torch.randn(5, 7, dtype=torch.float64).t()
        b = torch.randn(5, 9, dtype=torch.float64) if transposed & 2 else torch.randn(9, 5, dtype=torch.float64).t()
        out, bias = torch.full((7, 9), torch.nan, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
        multiply(out, a, b, bias=bias)
        torch.testing.assert_close(out, a @ b + bias)
        multiply(out, a, b, add=True)
        torch.testing.assert_close(out, 2 * (a @ b) + bias)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("rare_only", [False, True])
def test_adaptive_softmax_is_torchs(rare_only: bool) -> None:
    torch.manual_seed(0)
    softmax = AdaptiveSoftmax(20, 200).double()
    hidden = torch.randn(60, 20, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(60 if rare_only else 0, 200, (60,))
    expected = torch.nn.AdaptiveLogSoftmaxWithLoss.forward(softmax, hidden, targets)
    inputs = [hidden, *softmax.parameters()]
    gradients = torch.autograd.grad(expected.loss, inputs, allow_unused=True)
    loss = softmax.loss(hidden, targets)
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(list(torch.autograd.grad(loss, inputs, allow_unused=True)), list(gradients))
    torch.testing.assert_close(softmax.losses(hidden, targets), -expected.output)
    logits = softmax.logits(hidden.view(6, 10, 20))
    assert logits.shape == (6, 10, 200)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(6, 10, dtype=torch.float64))


def test_a_tied_weight_takes_the_place_of_the_own() -> None:
    hidden, weight, _, targets = example()
    softmax = FullSoftmax(19, 103).double()
    expected = F.cross_entropy(F.linear(hidden, weight, softmax.bias), targets)
    torch.testing.assert_close(softmax.loss(hidden, targets, weight), expected)
    torch.testing.assert_close(softmax.losses(hidden, targets, weight).mean(), expected)
    torch.testing.assert_close(softmax.logits(hidden, weight), F.linear(hidden, weight, softmax.bias))


@pytest.mark.usefixtures("chunk", "engine")
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_mixture_is_the_papers_formula(scale: float) -> None:
    torch.manual_seed(0)
    softmax = MixtureOfSoftmaxes(19, 103, mixtures=4, width=7).double()
    hidden = (torch.randn(41, 19, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.randint(103, (41,))
    vectors = torch.tanh(hidden @ softmax.latent.weight.T + softmax.latent.bias).view(41, 4, 7)
    each = F.softmax(vectors @ softmax.weight.T + softmax.bias, -1)
    mixed = (F.softmax(hidden @ softmax.shares.weight.T, -1)[..., None] * each).sum(1)
    expected = -mixed[torch.arange(41), targets].log()
    inputs = [hidden, *softmax.parameters()]
    gradients = torch.autograd.grad(3 * expected.mean(), inputs)
    loss = softmax.loss(hidden, targets)
    digits = 64 * EPSILON * scale
    torch.testing.assert_close(loss, expected.mean(), atol=digits, rtol=digits)
    torch.testing.assert_close(list(torch.autograd.grad(3 * loss, inputs)), list(gradients), atol=digits, rtol=digits)
    torch.testing.assert_close(softmax.losses(hidden, targets), expected.detach(), atol=digits, rtol=digits)
    torch.testing.assert_close(softmax.logits(hidden.view(1, 41, 19))[0], mixed.log(), atol=digits, rtol=digits)


def test_a_mixture_holds_no_more_logits_than_one_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 1000)
    seen: list[int] = []
    real = cross_entropy._logits
    monkeypatch.setattr(cross_entropy, "_logits", lambda *a: (seen.append(len(a[0]) * len(a[1])), real(*a))[1])
    softmax = MixtureOfSoftmaxes(19, 103, mixtures=4).double()
    softmax.loss(torch.randn(41, 19, dtype=torch.float64), torch.randint(103, (41,)))
    assert max(seen) <= 1000
    assert sum(seen) == 4 * 41 * 103


def test_too_small_for_clusters() -> None:
    with pytest.raises(ValueError, match="64 tokens and 16 units or more, got 63 and 16"):
        AdaptiveSoftmax(16, 63)


@pytest.mark.usefixtures("chunk")
def test_autocast_multiplies_in_its_precision_and_sums_in_the_weights() -> None:
    *tensors, targets = example()
    inputs = [tensor.detach().float().requires_grad_() for tensor in tensors if tensor is not None]
    expected = F.cross_entropy(F.linear(*inputs), targets)
    gradients = torch.autograd.grad(expected, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(inputs[0].bfloat16(), inputs[1], inputs[2], targets)
    assert found.dtype == torch.float32
    half = torch.finfo(torch.bfloat16).eps
    assert found.item() != expected.item()
    torch.testing.assert_close(found, expected, atol=4 * half, rtol=half)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), gradients, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.linalg.vector_norm(ours - theirs) < 4 * half * torch.linalg.vector_norm(theirs)
