"""One matrix at both ends of a language model: its gradient is the sum of both, and is held once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from elman.nn import cross_entropy
from elman.tasks.language_model.model import LanguageModel


def tied_model() -> tuple[LanguageModel, Tensor]:
    torch.manual_seed(0)
    model = LanguageModel(60, "lstm", 16, 16, num_layers=2, tied=True).double()
    return model, torch.randint(60, (3, 11, 4))


def plain_loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    """As torch would have it, all dense."""
    output, _ = model.recurrent(F.embedding(tokens[:-1], model.embedding.weight))
    logits = F.linear(output, model.embedding.weight, model.head.bias)
    return F.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())


def loss(model: LanguageModel, tokens: Tensor, early: bool = True) -> Tensor:
    tied = model.tied_weight() if early else None
    return model.loss(model.read(tokens[:-1])[0], tokens[1:], tied)


@pytest.mark.parametrize("early", [True, False])
def test_gradients_accumulate_over_losses_and_uses(early: bool) -> None:
    """Two windows in one loss, then a third on top, as with --accumulate and several pieces."""
    model, tokens = tied_model()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(sum(plain_loss(model, window) for window in tokens), parameters)
    ours = torch.autograd.grad(loss(model, tokens[0], early) + loss(model, tokens[1], early), parameters)
    theirs = torch.autograd.grad(plain_loss(model, tokens[0]) + plain_loss(model, tokens[1]), parameters)
    torch.testing.assert_close([g.to_dense() for g in ours], list(theirs))
    (loss(model, tokens[0], early) + loss(model, tokens[1], early)).backward()
    loss(model, tokens[2], early).backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected))


def test_the_graph_can_be_kept() -> None:
    model, tokens = tied_model()
    tied = model.tied_weight()
    output, _ = model.read(tokens[0, :-1])
    logits = F.linear(output, tied, model.head.bias)
    total = F.cross_entropy(logits.flatten(0, 1), tokens[0, 1:].flatten())
    total.backward(retain_graph=True)
    total.backward()
    expected = torch.autograd.grad(2 * plain_loss(model, tokens[0]), model.embedding.weight)
    torch.testing.assert_close(model.embedding.weight.grad, expected[0])


def test_the_softmaxs_gradient_becomes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second dense matrix, neither for the sum nor for a copy."""
    made: list[int] = []
    real = cross_entropy._LinearCrossEntropy.forward

    def spy(ctx: Any, *arguments: Any) -> Tensor:
        result: Tensor = real(ctx, *arguments)
        made.append(ctx.gradients[1].data_ptr())
        return result

    monkeypatch.setattr(cross_entropy._LinearCrossEntropy, "forward", staticmethod(spy))
    model, tokens = tied_model()
    loss(model, tokens[0]).backward()
    assert model.embedding.weight.grad is not None
    assert [model.embedding.weight.grad.data_ptr()] == made
    assert model.tied_weight() is not None
    assert LanguageModel(60, "lstm", 16, 16).tied_weight() is None
