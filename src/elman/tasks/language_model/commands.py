"""What ``elman train lm``, ``evaluate`` and ``generate`` do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from elman.data.text import Parts, named_parts, read_parts, read_text
from elman.data.tokenizers import Tokenizer
from elman.errors import UsageError, UserError
from elman.tasks.language_model import TASK, EvaluateOptions, GenerateOptions, LanguageModelConfig
from elman.tasks.language_model.generate import generate as generate_text
from elman.tasks.language_model.generate import until
from elman.tasks.language_model.job import EncodedText, LanguageModelJob, describe, score
from elman.tasks.language_model.model import LanguageModel, build_model
from elman.tasks.models import engines_of, load_best
from elman.tasks.sampling import Sampler
from elman.train.checkpoint import write_atomically
from elman.train.device import choose_device
from elman.train.run import RunFolder
from elman.train.session import session


def train(given: Mapping[str, Any]) -> None:
    """Train a language model with the ``given`` options, and write the run folder."""
    with session(LanguageModelConfig, given, TASK.name) as now:
        config, run = now.config, now.run
        if now.resuming and not run.tokenizer.exists():
            write_atomically(run.tokenizer, now.tree["keepsakes"]["tokenizer"].encode())
        parts = _parts(config)
        tokenizer = (
            Tokenizer.load(run.tokenizer)
            if now.resuming
            else Tokenizer.build(
                config.tokenizer, parts.train, vocab_size=config.vocab_size, min_frequency=config.min_frequency
            )
        )
        now.seed()
        model = build_model(config, tokenizer).to(now.world.device)
        train_text, validation_text = (EncodedText.of(text, tokenizer) for text in (parts.train, parts.validation))
        job = LanguageModelJob(model, tokenizer, train_text, validation_text, config, now.world)
        trainer = now.trainer(job)
        if not now.resuming:
            now.world.first(lambda: write_atomically(run.tokenizer, tokenizer.to_json().encode()))
        with trainer.updater.autocast():
            engines = engines_of(model.recurrent, config.batch_size)
        now.reporter.say(
            f"run {run.path}: {len(job.train.tokens):,} training and {len(job.validation.tokens):,} validation tokens, "
            f"{tokenizer.size:,} types; {config.cell} with {sum(p.numel() for p in model.parameters()):,} parameters "
            f"on {now.world.device}, engine {engines}{now.going_on(trainer.at)}"
        )
        end = trainer.fit()
        now.reporter.say(
            f"done: {end.step} steps in {end.seconds:.0f} s; best validation loss {end.best_cost:.4f} nats per token "
            f"at step {end.best_step}; kept in {run.model}"
        )


def evaluate(options: EvaluateOptions) -> None:
    """Print the best model's metrics on standard output."""
    run = RunFolder(options.run)
    config, tokenizer, model, about = _load(run, options.device)
    if options.data is not None:
        name, text = _whole(options.data, options.pattern)
    else:
        parts = _parts(config)
        name = options.part or ("test" if parts.test is not None else "validation")
        chosen: str | None = getattr(parts, name)
        if chosen is None:
            raise UsageError(f"--part test: the run {run.path} has no test part")
        text = chosen
    try:
        metrics = score(model, EncodedText.of(text, tokenizer), config.window, options.batch_size)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if options.format == "json":
        print(json.dumps({**metrics, "data": name, "step": about["step"]}))
    else:
        print(f"{name}: {describe(metrics)} ({metrics['tokens']:,} tokens, model of step {about['step']})")


def generate(options: GenerateOptions) -> None:
    """Write the prime and its continuation to standard output, each character as it is made."""
    run = RunFolder(options.run)
    _, tokenizer, model, _ = _load(run, options.device)
    try:
        options.prime.encode()
    except UnicodeEncodeError:
        raise UsageError("--prime is not UTF-8 text") from None
    unknown = tokenizer.unknown_in(options.prime)
    if unknown:
        what = "characters" if tokenizer.kind == "char" else "words"
        listed = ", ".join(repr(word) for word in unknown[:5])
        raise UsageError(f"--prime has {what} that the run's vocabulary lacks: {listed}")
    sampler = Sampler(
        temperature=0.0 if options.greedy else options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        banned=tokenizer.unknown,
    )
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    sys.stdout.write(options.prime)
    pieces = generate_text(model, tokenizer, options.prime, options.length, sampler, generator)
    for piece in until(pieces, options.stop):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _load(run: RunFolder, device: str) -> tuple[LanguageModelConfig, Tokenizer, LanguageModel, dict[str, Any]]:
    """The best model of a run, ready to use."""
    config = run.load_config(LanguageModelConfig)
    tokenizer = Tokenizer.load(run.tokenizer)
    model = build_model(config, tokenizer)
    about = load_best(run, model)
    return config, tokenizer, model.to(choose_device(device)).eval(), about


def _parts(config: LanguageModelConfig) -> Parts:
    """The run's own data."""
    return read_parts(
        config.data,
        pattern=config.pattern,
        validation=config.validation,
        test=config.test,
        validation_share=config.validation_share,
        test_share=config.test_share,
    )


def _whole(data: str, pattern: str) -> tuple[str, str]:
    """The text to score, with its name; of a folder that has parts, the test part, else validation."""
    files = named_parts(data)
    path = files.get("test", files.get("validation", Path(data))) if "train" in files else Path(data)
    if str(path) != str(Path(data)):
        print(f"{data} has parts: scoring {path.name}", file=sys.stderr)
    return str(path), read_text(path, pattern)
