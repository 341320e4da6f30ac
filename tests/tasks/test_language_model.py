"""The language model: its scores, its state, its samples."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import cells
from elman.data.store import EncodedText
from elman.data.tokenizers import Kind, Tokenizer
from elman.errors import UsageError, UserError
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.generate import generate
from elman.tasks.language_model.job import LanguageModelJob, score
from elman.tasks.language_model.model import LanguageModel, build_model
from elman.tasks.sampling import Sampler
from elman.train.course import Course
from elman.train.job import Stretch
from elman.train.truncation import Truncation
from elman.train.world import World


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def small(cell: str = "lstm", vocabulary: int = 30, tied: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(vocabulary, cell, 16 if tied else 8, 16, num_layers=2, dropout=0.3, tied=tied)


def job_of(model: LanguageModel, tokenizer: Tokenizer, **options: Any) -> LanguageModelJob:
    text = EncodedText.of(TEXT, tokenizer)
    config = LanguageModelConfig(**{"batch_size": 4, "window": 20, **options})
    return LanguageModelJob(model, tokenizer, text, text, config, World(torch.device("cpu")))


def test_a_score_is_the_mean_over_the_whole_text_in_one_stream() -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    model = small(vocabulary=tokenizer.size).double()
    text = EncodedText.of(TEXT, tokenizer)
    model.eval()
    tokens = torch.from_numpy(text.tokens.astype(np.int64))[:, None]
    with torch.no_grad():
        whole = loss_of(model(tokens[:-1])[0], tokens[1:]).mean().item()
    model.train()
    metrics = score(model, text, window=13, lanes=1)
    assert metrics["loss"] == pytest.approx(whole, rel=1e-12)
    assert metrics["tokens"] == metrics["characters"] == len(TEXT) - 1
    assert score(model, text, window=50, lanes=1)["loss"] == pytest.approx(whole, rel=1e-12)


def test_lanes_hardly_change_a_score(trained: Path, text_file: Path) -> None:
    from elman.train.run import RunFolder

    run = RunFolder(trained)
    tokenizer = Tokenizer.load(run.tokenizer)
    model = build_model(run.load_config(LanguageModelConfig), tokenizer)
    model.load_state_dict(run.load_model()[0])
    text = EncodedText.of(text_file.read_text(), tokenizer)
    one, many = (score(model, text, window=16, lanes=lanes)["loss"] for lanes in (1, 32))
    assert many == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_bits_per_character_count_the_characters_of_what_is_scored(kind: Kind) -> None:
    tokenizer = Tokenizer.build(kind, TEXT)
    text = EncodedText.of(TEXT, tokenizer)
    assert len(TEXT) - text.characters == {"char": 1, "word": 3, "bpe": len(tokenizer.decode(text.tokens[:1]))}[kind]


def test_training_carries_the_state_and_begins_epochs_without_one() -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    model = small(vocabulary=tokenizer.size).eval()
    job = job_of(model, tokenizer)
    assert job.begin() is None
    carry, losses = None, []
    for start in (0, 20, 40):
        loss, count, carry = job.loss(Stretch(0, 0, start, start + 20), carry)
        assert count == 80
        losses.append(loss.item())
    # the same three windows as one long one
    length = (len(job.train.tokens) - 1) // 4
    tokens = torch.from_numpy(job.train.tokens[: 4 * length].astype(np.int64)).view(4, -1).t()
    with torch.no_grad():
        whole = loss_of(model(tokens[:60])[0], tokens[1:61]).view(3, 20, 4).mean((1, 2))
    assert losses == pytest.approx(whole.tolist(), rel=1e-5)


def test_documents_begin_with_the_initial_state() -> None:
    """Each step is what the model makes of its own document alone, wherever windows are cut."""
    tokenizer = Tokenizer.build("char", TEXT)
    model = small(vocabulary=tokenizer.size).eval()
    job = job_of(model, tokenizer, state="documents", document_end="\n")
    inputs, targets = job.batches.window(0, 0, 0, 60)
    carry, losses = None, []
    for start, stop in ((0, 20), (20, 33), (33, 60)):
        loss, _, carry = job.loss(Stretch(0, 0, start, stop), carry)
        losses.append(loss.item() * (stop - start))
    alone = 0.0
    with torch.no_grad():
        for lane in range(4):
            begins = [0, *((inputs[:-1, lane] == tokenizer.encode("\n")[0]).nonzero().flatten() + 1).tolist(), 60]
            for begin, end in pairwise(begins):
                document = slice(begin, end), slice(lane, lane + 1)
                alone += loss_of(model(inputs[document])[0], targets[document]).sum().item() / 4
    assert sum(losses) == pytest.approx(alone, rel=1e-5)
    assert carry is not None
    with pytest.raises(UsageError, match="--document-end '<doc>' is no token"):
        job_of(model, tokenizer, state="documents", document_end="<doc>")


def test_random_windows_begin_without_a_state() -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    job = job_of(small(vocabulary=tokenizer.size).eval(), tokenizer, minibatches="random")
    assert set(job.lengths(1)) == {20}
    course = Course(job, Truncation("fixed", 20))
    parts = []
    for _ in range(3):
        assert course.carry is None
        parts.append(course.advance())
    for index, part in enumerate(parts):
        inputs, targets = job.batches.window(0, index, 0, 20)
        assert part.tokens == inputs.numel() == 80
        assert part.loss.item() == pytest.approx(loss_of(job.model(inputs)[0], targets).mean().item(), rel=1e-5)
    assert parts[0].loss != parts[1].loss


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"state": "kept"}, "--state kept"),
        ({"state": "documents", "document_end": "x"}, "--state documents"),
        ({"truncation": "variable"}, "--truncation variable"),
        ({"truncation": "randomized", "burn_in": 3}, "--truncation randomized and --burn-in 3"),
        ({"backward": 100}, "--backward 100"),
    ],
)
def test_random_windows_are_read_whole_and_fresh(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"it cannot go with {named}$"):
        LanguageModelConfig(minibatches="random", **options)
    for plain in ({}, {"state": "fresh"}, {"truncation": "none"}):
        LanguageModelConfig(minibatches="random", **plain)


@pytest.mark.parametrize("cell", cells.names())
def test_every_cell_learns(cell: str) -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    torch.manual_seed(0)
    model = LanguageModel(tokenizer.size, cell, 8, 16)
    job = job_of(model, tokenizer, window=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    carry, losses = None, []
    for index in range(15):
        loss, _, carry = job.loss(Stretch(0, 0, 10 * index, 10 * index + 10), carry)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        carry = tuple(entry.detach() for entry in carry) if isinstance(carry, tuple) else carry.detach()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])


def test_tied_embeddings_are_one_matrix() -> None:
    model = small(tied=True)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes.count((30, 16)) == 1
    model(torch.zeros(3, 2, dtype=torch.long))[0].sum().backward()
    assert model.embedding.weight.grad is not None
    assert (model.embedding.weight.grad[5] != 0).any()  # a token never read still gets the head's gradient
    with pytest.raises(ValueError, match="as wide as the output: 16, got 8"):
        LanguageModel(30, "lstm", 8, 16, tied=True)


def test_dropout_acts_in_training_only() -> None:
    model, tokens = small(), torch.arange(12).view(6, 2)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_a_stream_of_steps_equals_the_whole_sequence() -> None:
    model = small().eval()
    tokens = torch.arange(12)
    with torch.no_grad():
        whole = model(tokens[:, None])[0][:, 0]
    next_logits = model.stream()
    steps = torch.stack([next_logits(int(token)) for token in tokens])
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_generation(kind: Kind) -> None:
    tokenizer = Tokenizer.build(kind, TEXT)
    model = small(vocabulary=tokenizer.size).eval()

    def made(prime: str, length: int, seed: int = 0, **options: float) -> str:
        sampler = Sampler(banned=tokenizer.unknown, **options)  # type: ignore[arg-type]
        return "".join(generate(model, tokenizer, prime, length, sampler, torch.Generator().manual_seed(seed)))

    assert made("the", 30) == made("the", 30)
    assert made("the", 30) != made("the", 30, seed=1)
    assert made("the", 30, temperature=0) == made("the", 30, seed=1, temperature=0)
    assert made("the", 0) == ""
    assert made("", 5) == made("\n", 5)
    assert "<unk>" not in made("the", 300)
    if kind == "char":
        assert len(made("the", 17)) == 17


def test_generation_costs_one_step_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    model = small(vocabulary=tokenizer.size).eval()
    read: list[int] = []
    forward = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens: (read.append(tokens.numel()), forward(tokens))[1])
    "".join(generate(model, tokenizer, "the ", 50, Sampler(), torch.Generator()))
    assert read == [1] * (4 + 49)


def test_text_without_line_ends_still_has_a_start() -> None:
    tokenizer = Tokenizer.build("char", "abc")
    text = "".join(generate(small(vocabulary=4).eval(), tokenizer, "", 5, Sampler(banned=0), torch.Generator()))
    assert set(text) <= set("abc")


def test_a_text_shorter_than_a_window() -> None:
    tokenizer = Tokenizer.build("char", TEXT)
    with pytest.raises(
        UserError, match=r"too short: 1760 tokens are too few: 40 lanes of one 64-step window need 2561"
    ):
        job_of(small(vocabulary=tokenizer.size), tokenizer, batch_size=40, window=64)


def test_options_that_contradict() -> None:
    for options in ({"bidirectional": True}, {"tied": True, "embedding_size": 3}, {"test_share": 0.95}):
        with pytest.raises(UsageError):
            LanguageModelConfig(**options)  # type: ignore[arg-type]
