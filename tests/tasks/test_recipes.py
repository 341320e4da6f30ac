"""The language model's recipes: AWD-LSTM from its ready configuration, Mogrifier, mixture of softmaxes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from elman.cli import main
from elman.data.tokenizers import Tokenizer
from elman.engine.draws import Noise
from elman.nn.dropout import word_mask
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.model import LanguageModel, build_model
from elman.train.truncation import Truncation

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "the quick brown fox jumps over the lazy dog and runs away from it\n" * 60
SMALL = ["--embedding-size", "8", "--hidden-sizes", "12,12,8", "--batch-size", "4", "--window", "8"]


def config_of(name: str, **changes: Any) -> LanguageModelConfig:
    options = yaml.safe_load((CONFIGS / name).read_text())
    assert options.pop("task") == "lm"
    return LanguageModelConfig(**{**options, **changes})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def score_of(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--part", "validation", "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.glob("*.yaml")))
def test_every_configuration_is_one(name: str) -> None:
    config_of(name)


def test_awd_lstm_is_the_papers() -> None:
    """At full size: three layers of 1150, 1150 and 400 units, 33.6 million parameters for WikiText-2's vocabulary."""
    config = config_of("wikitext2-awd.yaml")
    with torch.device("meta"):
        model = LanguageModel(33_278, "lstm", 400, config.sizes, 3, tied=True)
    recurrent = 4 * sum(h * (i + h + 2) for i, h in ((400, 1150), (1150, 1150), (1150, 400)))
    assert sum(p.numel() for p in model.parameters()) == recurrent + 33_278 * 400 + 33_278
    assert (config.average, config.truncation, config.ar, config.tar) == ("asgd", "variable", 2, 1)
    assert Truncation.of(config).style == "variable"
    model = build_model(
        config_of("wikitext2-awd.yaml", embedding_size=8, hidden_sizes=(12, 12, 8)), Tokenizer.build("word", TEXT)
    )
    assert model.recurrent.options.locked_dropout == (0.65, 0.3, 0.3, 0.0)
    assert model.recurrent.options.weight_dropout == 0.5
    assert model.dropout.p == 0.4
    assert model.embedding_dropout == 0.1


@pytest.mark.parametrize("more", [[], ["--mogrify", "5", "--mogrify-rank", "3"], ["--mixtures", "3"]], ids=str)
def test_awd_lstm_trains(tmp_path: Path, text: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps on small data, killed halfway and resumed; it learns, it writes, and its score is reproduced."""
    command = ["train", "lm", "--config", str(CONFIGS / "wikitext2-awd.yaml"), "--data", str(text), *SMALL, *more]
    command += ["--learning-rate", "3", "--evaluate-every", "10", "--run", str(tmp_path / "run")]
    assert main([*command, "--max-steps", "20"]) == 0
    assert main([*command, "--max-steps", "40", "--resume"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert len(losses) == 4
    assert losses[-1] < losses[0] < 4
    assert score_of(tmp_path / "run", capsys)["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert main(["generate", str(tmp_path / "run"), "--prime", "the quick", "--length", "5", "--greedy"]) == 0
    assert len(capsys.readouterr().out.split()) >= 5


def test_words_are_dropped_from_the_input_alone() -> None:
    torch.manual_seed(0)
    model = LanguageModel(40, "lstm", 8, 8, tied=True, embedding_dropout=0.5).double()
    tokens = torch.arange(40).view(8, 5)
    torch.manual_seed(1)
    dropped = model.embed(tokens)
    kept = dropped.ne(0).any(-1)
    assert 5 < int(kept.sum()) < 35
    torch.testing.assert_close(dropped[kept], 2 * model.embedding.weight[tokens][kept])
    loss = model.loss(model.read(tokens[:-1])[0], tokens[1:], model.tied_weight())
    loss.backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.ne(0).any(-1).all()  # by the softmax
    assert torch.equal(model.eval().embed(tokens), model.embedding.weight[tokens])
    mask = word_mask(model.embedding.weight, 0.5, len(model.embedding.weight), Noise(3))
    assert mask.shape == (40, 1)
    assert torch.equal(mask, word_mask(model.embedding.weight, 0.5, len(model.embedding.weight), Noise(3)))


def test_a_mixture_predicts_as_it_is_scored() -> None:
    torch.manual_seed(0)
    model = LanguageModel(40, "lstm", 6, 8, mixtures=3, tied=True).double().eval()
    tokens = torch.randint(40, (9, 4))
    output, _ = model.read(tokens[:-1])
    log_p = model.logits(output)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(8, 4, dtype=torch.float64))
    expected = F.nll_loss(log_p.flatten(0, 1), tokens[1:].flatten(), reduction="none").view(8, 4)
    torch.testing.assert_close(model.losses(output, tokens[1:]), expected.detach())
    torch.testing.assert_close(model.loss(output, tokens[1:]), expected.mean())
    next_logits: Any = model.stream()
    stepped: list[Tensor] = [next_logits(int(token)) for token in tokens[:-1, 0]]
    torch.testing.assert_close(torch.stack(stepped), log_p[:, 0].detach())


WRONG = [
    (["--mixtures", "2", "--softmax", "adaptive"], "--mixtures is for --softmax full, got adaptive"),
    (["--hidden-sizes", "8,9", "--num-layers", "3"], "--hidden-sizes has 2 layers, --num-layers says 3"),
    (["--hidden-sizes", "8,x"], "--hidden-sizes must be a whole number, got 'x'"),
    (["--hidden-sizes", "8,0"], "--hidden-sizes must be at least 1, got 0"),
    (["--hidden-sizes", ""], "--hidden-sizes must be a whole number, got ''"),
    (["--hidden-sizes", "8,9", "--tied", "--embedding-size", "8"], "the last of --hidden-sizes = 9, got 8"),
    (["--locked-dropout", "0.1,0.2", "--num-layers", "2"], "must be one share, or 3: of the token vectors and each"),
    (["--locked-dropout", "0.1,1"], "--locked-dropout must be less than 1, got 1"),
    (["--locked-dropout", "0.1", "--dropout", "0.1"], "--dropout and --locked-dropout exclude each other"),
    (["--mogrify-rank", "4"], "--mogrify-rank needs --mogrify"),
    (["--weight-dropout", "0.5", "--cell", "sru"], "--cell sru: weight_dropout: SRU"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_options(
    tmp_path: Path, text: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "lm", "--data", str(text), "--run", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()
