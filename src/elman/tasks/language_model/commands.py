"""What ``elman train lm``, ``evaluate`` and ``generate`` do."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from elman.data.corpus import Corpus
from elman.data.files import named_parts
from elman.data.prepare import Say, prepare
from elman.data.recipe import Recipe, part_to_score
from elman.data.tokenizers import Tokenizer
from elman.errors import UsageError, UserError
from elman.tasks.language_model import TASK, EvaluateOptions, GenerateOptions, LanguageModelConfig
from elman.tasks.language_model.adapt import Cache, Dynamic
from elman.tasks.language_model.generate import generate as generate_text
from elman.tasks.language_model.generate import until
from elman.tasks.language_model.job import SCORING_LANES, LanguageModelJob, describe, score
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
        # every process opens the text: on one machine the first to come prepares it, and the others wait
        corpus = _corpus(config, run, now.reporter.say, Tokenizer.load(run.tokenizer) if now.resuming else None)
        tokenizer = corpus.tokenizer
        now.seed()
        model = build_model(config, tokenizer)
        parameters = sum(p.numel() for p in model.parameters())
        model = now.place(model)
        job = LanguageModelJob(model, tokenizer, corpus.parts["train"], corpus.parts["validation"], config, now.world)
        trainer = now.trainer(job)
        if not now.resuming:
            now.world.first(lambda: write_atomically(run.tokenizer, tokenizer.to_json().encode()))
        with trainer.updater.autocast():
            engines = engines_of(model.recurrent, config.batch_size)
        now.reporter.say(
            f"run {run.path}: {len(job.train.tokens):,} training and {len(job.validation.tokens):,} validation tokens, "
            f"{tokenizer.size:,} types; {config.cell} with {parameters:,} parameters "
            f"on {now.world.device}, engine {engines}; tokens in {corpus.folder}{now.going_on(trainer.at)}"
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
    cache = Cache(options.cache_size, options.cache_theta, options.cache_share) if options.cache_size else None
    dynamic = Dynamic(options.dynamic_rate, options.dynamic_decay) if options.dynamic_rate else None
    with contextlib.ExitStack() as stack:
        if options.data is not None:
            name = _name_of_whole(options.data)
            # other people's texts leave no tokens behind
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="elman-"))
            recipe = Recipe(
                options.data, options.pattern, data_format=options.data_format, field=options.field, whole=True
            )
            text = prepare(recipe, folder, _to_stderr, tokenizer=tokenizer, processes=options.processes).parts["train"]
        else:
            parts = _corpus(config, run, _to_stderr, tokenizer).parts
            name = options.part or ("test" if "test" in parts else "validation")
            if name not in parts:
                raise UsageError(f"--part {name}: the run {run.path} has no {name} part")
            text = parts[name]
        try:
            metrics = score(
                model,
                text,
                options.window or config.window,
                options.batch_size or (1 if cache or dynamic else SCORING_LANES),
                cache,
                dynamic,
            )
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


def _corpus(config: LanguageModelConfig, run: RunFolder, say: Say, tokenizer: Tokenizer | None) -> Corpus:
    """The run's own data; ``tokenizer`` is the run's, once it has one."""
    cache = config.cache or run.path.absolute().parent / "tokens"
    return prepare(Recipe.of(config), cache, say, tokenizer=tokenizer, processes=config.processes)


def _name_of_whole(data: str) -> str:
    """What is scored of a text: all, or of a folder that has parts one of them, with a word."""
    named = named_parts(data)
    if not named:
        return data
    files = part_to_score(named)
    print(f"{data} has parts: scoring {', '.join(file.name for file in files[:3])}", file=sys.stderr)
    return str(files[0])


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
