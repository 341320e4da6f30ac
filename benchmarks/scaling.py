"""Training on one and two processes of this machine, one thread each: tokens per second, and memory.

A step is the trainer's own: losses, gradients, their sum over the processes, clipping, the optimiser. ``weak``: each
process has the lanes that one process has alone; ``strong``: they share them; ``sharded``: weak, with --shard.
Rounds alternate between the settings, so that all see the same machine; shown are the medians of tokens per second and
of each round's ratio to one process. The character model has 512 units and 65 types, the word model is the published
one of WikiText-2: 2 x 650 units, tied, 33,278 types, 35 words.

    python benchmarks/scaling.py chars|words [--seconds 50] [--lanes N]
    python benchmarks/scaling.py memory      # 100,000 types of 650, untied, with Adam
    python benchmarks/scaling.py noise TEXT  # how large a batch still pays: the gradient's noise while CHARS is trained
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import script
from elman.data.store import EncodedText
from elman.data.tokenizers import Tokenizer
from elman.nn.divided import divide
from elman.tasks.language_model import LanguageModelConfig
from elman.tasks.language_model.job import LanguageModelJob
from elman.tasks.language_model.model import LanguageModel
from elman.train.job import Stretch
from elman.train.parallel import Together
from elman.train.progress import Reporter
from elman.train.run import RunFolder
from elman.train.trainer import Trainer
from elman.train.world import World

TEXT = 400_000  # tokens


@dataclass(frozen=True)
class Setting:
    """A model, and how it is trained: ``lanes`` are those of all processes."""

    name: str
    types: int
    units: int
    layers: int
    embedding: int
    tied: bool
    dropout: float
    window: int
    lanes: int
    optimizer: Any = "adam"
    processes: int = 1
    sharded: bool = False


CHARS = Setting("chars", 65, 512, 1, 128, False, 0.0, 64, 16)
WORDS = Setting("words", 33_278, 650, 2, 650, True, 0.5, 35, 20, "sgd")
BIG = Setting("memory", 100_000, 650, 1, 650, False, 0.0, 35, 20)


def trainer(setting: Setting, world: World) -> Trainer:
    """A trainer on random tokens, as frequent as Zipf's law says."""
    torch.manual_seed(0)
    model = LanguageModel(
        setting.types, "lstm", setting.embedding, setting.units, setting.layers, setting.dropout, setting.tied
    )
    if setting.sharded:
        divide(model, world)
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, setting.types + 1)
    tokens = random.choice(setting.types, TEXT, p=frequency / frequency.sum()).astype(np.int32)
    text = EncodedText(tokens, TEXT, "random")
    config = LanguageModelConfig(
        hidden_size=setting.units,
        num_layers=setting.layers,
        window=setting.window,
        batch_size=setting.lanes,
        optimizer=setting.optimizer,
        learning_rate=1.0 if setting.optimizer == "sgd" else 0.001,
        clip=0.25,
        max_steps=1,
    )
    job = LanguageModelJob(model, Tokenizer.build("char", "ab"), text, text, config, world)
    folder = RunFolder(Path(tempfile.gettempdir()) / "elman-scaling-writes-nothing")
    return Trainer(job, config, folder, Reporter(), world)


def work(setting: Setting, rank: int, port: int, commands: Connection) -> None:
    """One process: for each number of steps that comes, send the seconds they took; for 0, the memory, and end.

    A negative number asks for so many sums of the gradients alone.
    """
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.ones(256, 256) @ torch.ones(256, 256)  # torch's own libraries
    world = World(torch.device("cpu"))
    if setting.processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=setting.processes)
        world = Together(torch.device("cpu"), rank, setting.processes)
        world.agree(0, 0.0)
    before = peak()
    training = trainer(setting, world)
    while steps := commands.recv():
        began = time.perf_counter()
        for _ in range(abs(steps)):
            if steps > 0:
                training.update(0.5)
            else:
                world.mean_gradients(training.updater.shared, 1)
        commands.send(time.perf_counter() - began)
    updater = training.updater
    parameters = [p.numel() * p.element_size() for p in updater.parameters]
    states = [
        value.numel() * value.element_size()
        for state in updater.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    commands.send(
        (2 * sum(parameters) + sum(states), (peak() - before) * 2**20)
    )  # a gradient is as large as its weight
    if world.size > 1:
        dist.destroy_process_group()


def peak() -> float:
    """This process's own peak of resident memory in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Team:
    """The processes of a setting; between its turns they wait."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in range(setting.processes)]
        self.ours = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=work, args=(setting, rank, port, theirs)) for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def ask(self, steps: int) -> list[Any]:
        """What all processes answer."""
        for pipe in self.ours:
            pipe.send(steps)
        return [pipe.recv() for pipe in self.ours]

    def speed(self, steps: int) -> float:
        """Tokens per second of all processes."""
        seconds: float = max(self.ask(steps))
        return steps * self.setting.lanes * self.setting.window / seconds


def settings_of(one: Setting) -> dict[str, Setting]:
    """What is compared: one process first."""
    two = replace(one, processes=2)
    weak = replace(two, lanes=2 * one.lanes)
    ways = {"1 process": one, "2, weak": weak, "2, strong": two}
    return {**ways, "2, sharded": replace(weak, sharded=True)} if one.tied else ways


def speeds(one: Setting, seconds: float) -> None:
    """Print a table of tokens per second."""
    teams = {name: Team(setting) for name, setting in settings_of(one).items()}
    for team in teams.values():
        team.speed(2)
    steps = max(1, round(2 * teams["1 process"].speed(2) / (one.lanes * one.window)))  # two seconds
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        rounds.append({name: team.speed(steps) for name, team in teams.items()})
    teams["2, strong"].ask(-1)
    seconds = max(teams["2, strong"].ask(-5)) / 5
    for team in teams.values():
        team.ask(0)
    parameters = LanguageModel(one.types, "lstm", one.embedding, one.units, one.layers, tied=one.tied)
    count = sum(p.numel() for p in parameters.parameters())
    print(f"{one.name}: {count / 1e6:.1f} million parameters, {len(rounds)} rounds of {steps} steps each")
    # each of two processes sends and receives all gradients once
    size = 4 * count / 1e9
    print(f"gradients of {1000 * size:.0f} MB are summed in {1000 * seconds:.0f} ms, {size / seconds:.2f} GB/s")
    print("| | tokens a step | tokens/s | x one process | efficiency |")
    print("|---|---|---|---|---|")
    for name, team in teams.items():
        ratio = statistics.median(some[name] / some["1 process"] for some in rounds)
        print(
            f"| {name} | {team.setting.lanes * team.setting.window} | "
            f"{statistics.median(some[name] for some in rounds):.0f} | {ratio:.2f} | "
            f"{ratio / team.setting.processes:.0%} |"
        )


def memory(one: Setting) -> None:
    """Print a table of the memory of a process."""
    print("| | weights, gradients and optimiser, MB | peak above the empty process, MB |")
    print("|---|---|---|")
    ways = {"1 process": one, "2": replace(one, processes=2), "2, sharded": replace(one, processes=2, sharded=True)}
    for name, setting in ways.items():
        team = Team(setting)
        team.ask(2)
        held, most = max(team.ask(0))
        print(f"| {name} | {held / 1e6:.0f} | {most / 1e6:.0f} |")


def noise(file: str, windows: int = 64) -> None:
    """Print the simple noise scale tr Σ / |G|² of McCandlish et al. 2018, in tokens, as a text is learned.

    From the gradients g of M windows of B tokens: E |g|² = |G|² + tr Σ / B, and that of their mean has M B tokens.
    """
    text = Path(file).read_text(encoding="utf-8")
    tokenizer = Tokenizer.build("char", text)
    encoded = EncodedText.of(text, tokenizer)
    torch.manual_seed(0)
    model = LanguageModel(tokenizer.size, "lstm", CHARS.embedding, CHARS.units)
    config = LanguageModelConfig(hidden_size=CHARS.units, max_steps=1)
    job = LanguageModelJob(model, tokenizer, encoded, encoded, config, World(torch.device("cpu")))
    training = Trainer(job, config, RunFolder(tempfile.gettempdir()), Reporter(), job.world)
    parameters = training.updater.parameters
    print("| step | loss, nats | noise scale, tokens |")
    print("|---|---|---|")
    for step in (10, 100, 300, 1000):
        while training.at.step < step:
            training.update(0.5)
        squares, total, tokens = [], torch.zeros(sum(p.numel() for p in parameters)), 0
        random = torch.Generator().manual_seed(step)
        for start in torch.randint(job.lengths(0)[0] - 2 * config.window, (windows,), generator=random).tolist():
            # a window to warm the state, and the next one
            carry = job.read(Stretch(0, 0, start, start + config.window), None)
            carry = type(carry)(*(entry.detach() for entry in carry))
            loss, tokens, _ = job.loss(Stretch(0, 0, start + config.window, start + 2 * config.window), carry)
            flat = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
            squares.append(flat.square().sum().item())
            total += flat / windows
        one, mean = statistics.mean(squares), total.square().sum().item()
        scatter = (one - mean) / (1 / tokens - 1 / (windows * tokens))
        square = (windows * mean - one) / (windows - 1)
        print(f"| {step} | {training.at.loss_mean:.2f} | {scatter / square:,.0f} |")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["chars", "words", "memory", "noise"])
    parser.add_argument("text", nargs="?", help="of noise")
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--lanes", type=int, help="of one process; by default 16 of characters, 20 of words")
    options = parser.parse_args()
    if options.what == "memory":
        memory(BIG)
        return
    if options.what == "noise":
        if options.text is None:
            parser.error("noise needs a TEXT")
        noise(options.text)
        return
    one = CHARS if options.what == "chars" else WORDS
    speeds(replace(one, lanes=options.lanes) if options.lanes else one, options.seconds)


if __name__ == "__main__":
    script.run(main)
