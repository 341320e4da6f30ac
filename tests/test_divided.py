"""Rows divided among processes, which are threads here: losses, vectors and gradients of the whole matrices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.nn import cross_entropy
from elman.nn.divided import DividedEmbedding, DividedSoftmax, Rows, divide, divided_rows
from elman.nn.softmax import AdaptiveSoftmax, FullSoftmax, MixtureOfSoftmaxes

V, H, N = 103, 19, 14  # tokens of a process
DRAWING = threading.Lock()


class Threads:
    """Processes whose collectives pass tensors through a list."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.size = rank, size
        self.barrier, self.table = barrier, table

    def gathered(self, tensor: Tensor) -> Tensor:
        self.table[self.rank] = tensor.detach().clone()
        self.barrier.wait(30)
        everyones = torch.stack(self.table)
        self.barrier.wait(30)
        return everyones

    def summed_share(self, tensor: Tensor) -> Tensor:
        return self.gathered(tensor).sum(0)[self.rank]


def together(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """What ``work`` returns in each of ``size`` processes."""
    barrier, table = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, size, barrier, table))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    return results


def example(size: int) -> tuple[Tensor, Tensor, nn.Embedding, FullSoftmax]:
    """Outputs [P, N, H], targets [P, N], and the whole modules, alike in all processes."""
    with DRAWING:  # threads share torch's generator
        torch.manual_seed(0)
        hidden = 3 * torch.randn(size, N, H, dtype=torch.float64)
        softmax, embedding = FullSoftmax(H, V).double(), nn.Embedding(V, H).double()
        return hidden, torch.randint(V, (size, N)), embedding, softmax


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1 << 30, 200, 153])  # 153 holds two rows of 52 logits, and three of 51
@pytest.mark.parametrize("tied", [False, True])
def test_a_divided_softmax_is_the_whole_one(size: int, chunk: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    monkeypatch.setattr(cross_entropy, "SLICE", min(chunk, 150))
    hidden, targets, embedding, whole = example(size)
    weight = embedding.weight if tied else whole.weight
    outputs = hidden.clone().requires_grad_()
    logits = F.linear(outputs, weight, whole.bias)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(size, N)
    losses.mean().backward()

    def work(processes: Threads) -> Any:
        _, _, token_vectors, softmax = example(size)
        if tied:
            del softmax.weight
        divided, vectors = DividedSoftmax(softmax, processes), DividedEmbedding(token_vectors, processes)
        own = hidden[processes.rank].clone().requires_grad_()
        used = vectors.weight if tied else divided.weight
        given = used if tied else None
        loss = divided.loss(own, targets[processes.rank], given)
        (3 * loss).backward()  # a factor, as that of accumulated gradients
        assert own.grad is not None
        assert used.grad is not None
        assert divided.bias.grad is not None
        return (
            loss.detach(),
            divided.losses(own, targets[processes.rank], given),
            divided.logits(own, given),
            own.grad / 3,
            used.grad / 3,
            divided.bias.grad / 3,
        )

    found = list(zip(*together(size, work), strict=True))
    assert outputs.grad is not None
    expected = (
        losses.mean().detach().expand(size),
        losses.detach(),
        logits.detach(),
        outputs.grad * size,  # of a process's own mean, which is averaged afterwards
    )
    for number, tensor in enumerate(expected):
        torch.testing.assert_close(torch.stack(found[number]), tensor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(found[4]), weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(found[5]), whole.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_divided_token_vectors_are_the_whole_ones(size: int, sparse: bool) -> None:
    d_vectors, tokens, whole, _ = example(size)
    vectors = whole(tokens)
    vectors.backward(d_vectors)

    def work(processes: Threads) -> Any:
        divided = DividedEmbedding(example(size)[2], processes)
        own = divided(tokens[processes.rank], sparse)
        own.backward(d_vectors[processes.rank])
        gradient = divided.weight.grad
        assert gradient is not None
        assert gradient.is_sparse == sparse
        return own.detach(), gradient.to_dense()

    found = list(zip(*together(size, work), strict=True))
    assert torch.equal(torch.stack(found[0]), vectors.detach())
    assert whole.weight.grad is not None
    torch.testing.assert_close(torch.cat(found[1]) * size, whole.weight.grad, rtol=1e-12, atol=1e-12)


def test_shares_cover_all_rows() -> None:
    for whole, size in ((103, 4), (8, 8), (9, 2)):
        shares = [Rows.of(whole, rank, size) for rank in range(size)]
        assert [row for rows in shares for row in range(rows.start, rows.stop)] == list(range(whole))
        lengths = [rows.stop - rows.start for rows in shares]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == [len(part) for part in torch.arange(whole).tensor_split(size)]


def test_what_is_divided() -> None:
    processes = Threads(1, 4, threading.Barrier(1), [None])
    model = nn.ModuleDict({"words": nn.Embedding(10, 3), "inner": nn.Sequential(FullSoftmax(3, 9), nn.Linear(3, 3))})
    weights = model["inner"][0].weight.detach()  # type: ignore[index]
    divide(model, processes)
    assert divided_rows(model) == {
        "words.weight": Rows(3, 6, 10),
        "inner.0.weight": Rows(3, 5, 9),
        "inner.0.bias": Rows(3, 5, 9),
    }
    assert torch.equal(model["inner"][0].weight, weights[3:5])  # type: ignore[index]
    adaptive = nn.ModuleDict({"words": nn.Embedding(64, 16), "head": AdaptiveSoftmax(16, 64)})
    divide(adaptive, processes)
    assert set(divided_rows(adaptive)) == {"words.weight"}
    with pytest.raises(ValueError, match="no token vectors and no softmax"):
        divide(nn.ModuleDict({"a": nn.Linear(2, 2)}), processes)
    with pytest.raises(ValueError, match="a mixture of softmaxes cannot be divided"):
        divide(nn.ModuleDict({"words": nn.Embedding(8, 4), "head": MixtureOfSoftmaxes(4, 8, 2, 4)}), processes)
    with pytest.raises(ValueError, match="the 3 rows of words cannot be divided among 4 processes"):
        divide(nn.ModuleDict({"words": nn.Embedding(3, 2)}), processes)
