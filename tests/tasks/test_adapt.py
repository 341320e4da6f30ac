"""Evaluation that learns: the cache and dynamic evaluation, against loops that follow the papers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from elman.cli import main
from elman.data.store import EncodedText
from elman.data.tokenizers import Tokenizer
from elman.tasks.language_model.adapt import Cache, Dynamic
from elman.tasks.language_model.job import score
from elman.tasks.language_model.model import LanguageModel

TEXT = "a cat sat on a mat, and a rat sat on a cat\n" * 4


def example() -> tuple[LanguageModel, EncodedText]:
    tokenizer = Tokenizer.build("char", TEXT)
    torch.manual_seed(0)
    return LanguageModel(tokenizer.size, "lstm", 6, 10).double(), EncodedText.of(TEXT, tokenizer)


@pytest.mark.parametrize("window", [7, 50, 1000])
@pytest.mark.parametrize("size", [1, 20, 10_000])
def test_the_cache_is_the_papers(window: int, size: int) -> None:
    model, text = example()
    cache = Cache(size, theta=2.0, share=0.3)
    model.eval()
    tokens = torch.from_numpy(text.tokens[:]).long()
    with torch.no_grad():
        output = model.read(tokens[:-1, None])[0]
        probabilities = model.logits(output).softmax(-1)[:, 0]
    output, total = output[:, 0], 0.0
    for t in range(len(output)):
        p = probabilities[t, tokens[t + 1]].item()
        past = range(max(t - size, 0), t)
        if len(past):
            votes = [math.exp(2.0 * float(output[t] @ output[i])) for i in past]
            right = sum(vote for vote, i in zip(votes, past, strict=True) if tokens[i + 1] == tokens[t + 1])
            p = 0.7 * p + 0.3 * right / sum(votes)
        total -= math.log(p)
    found = score(model, text, window, lanes=1, cache=cache)
    assert found["loss"] == pytest.approx(total / len(output), rel=1e-10)


def test_a_cache_of_what_repeats_helps() -> None:
    model, text = example()
    plain = score(model, text, 20, lanes=1)
    assert score(model, text, 20, lanes=1, cache=Cache(100, 5.0, 0.3))["loss"] < plain["loss"] - 0.2
    assert score(model, text, 20, lanes=3, cache=Cache(100, 5.0, 0.3))["tokens"] == plain["tokens"]


@pytest.mark.parametrize("clip", [0.25, 1e9])
def test_dynamic_evaluation_is_gradient_descent_behind_each_window(clip: float) -> None:
    model, text = example()
    found = score(model, text, 20, lanes=1, dynamic=Dynamic(0.5, 0.01, clip))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tokens = torch.from_numpy(text.tokens[:]).long()[:, None]
    state, total = None, 0.0
    for start in range(0, len(tokens) - 1, 20):
        inputs, targets = tokens[start : start + 21][:-1], tokens[start + 1 : start + 21]
        output, state = model.read(inputs, state)
        state = type(state)(*(entry.detach() for entry in state))
        losses = F.cross_entropy(model.logits(output).flatten(0, 1), targets.flatten(), reduction="none")
        total += losses.sum().item()
        model.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        with torch.no_grad():
            for parameter, old in zip(model.parameters(), before, strict=True):
                assert parameter.grad is not None
                parameter -= 0.5 * parameter.grad
                parameter += 0.01 * (old - parameter)
    assert found["loss"] == pytest.approx(total / (len(tokens) - 1), rel=1e-5)  # torch's clipping adds 1e-6


def test_dynamic_evaluation_helps_and_leaves_the_model_as_it_was() -> None:
    model, text = example()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = score(model, text, 20, lanes=1)
    assert score(model, text, 20, lanes=1, dynamic=Dynamic(1.0, 0.001))["loss"] < plain["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert score(model, text, 20, lanes=1) == plain


def test_from_the_command_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def loss(*options: str) -> float:
        capsys.readouterr()
        assert main(["evaluate", str(trained), "--format", "json", *options]) == 0
        return float(json.loads(capsys.readouterr().out)["loss"])

    plain = loss()
    assert loss("--dynamic-rate", "1") < plain
    assert loss("--cache-size", "500", "--cache-theta", "1", "--cache-share", "0.05") != plain
    assert loss("--cache-size", "500", "--dynamic-rate", "1") != plain
    assert main(["evaluate", str(trained), "--cache-share", "1"]) == 2
