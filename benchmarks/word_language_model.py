"""Training a word language model against the same in torch.nn: tokens per second and peak memory.

The peer is the loop of pytorch/examples/word_language_model, written anew with torch.nn: an LSTM of two layers and 650
units, tied, 20 lanes of 35 words, dropout 0.5, plain SGD with clipping, and a vocabulary of WikiText-2's size.
Steps alternate between the two, so that both see the same machine; memory is measured in a process each.

    python benchmarks/word_language_model.py [--seconds 30] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import script
from elman.tasks.language_model.model import LanguageModel

VOCABULARY, UNITS, LAYERS, LANES, WINDOW = 33_278, 650, 2, 20, 35
LEARNING_RATE, CLIP, DROPOUT = 20.0, 0.25, 0.5


class Peer(nn.Module):
    """The example's model."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(DROPOUT)
        self.encoder = nn.Embedding(VOCABULARY, UNITS)
        self.rnn = nn.LSTM(UNITS, UNITS, LAYERS, dropout=DROPOUT)
        self.decoder = nn.Linear(UNITS, VOCABULARY)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, state = self.rnn(self.drop(self.encoder(tokens)), state)
        decoded = self.decoder(self.drop(output)).view(-1, VOCABULARY)
        return F.log_softmax(decoded, dim=1), state


def torch_steps() -> Callable[[], float]:
    """A training step of the example, as a function that returns its loss."""
    torch.manual_seed(0)
    model, state, text = Peer(), None, _text()

    def step() -> float:
        nonlocal state
        tokens = next(text)
        model.zero_grad()
        state = tuple(entry.detach() for entry in state) if state is not None else None
        output, state = model(tokens[:-1], state)
        loss = F.nll_loss(output, tokens[1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-LEARNING_RATE)
        return loss.item()

    return step


def elman_steps() -> Callable[[], float]:
    """A training step of Elman's language model, as its trainer does it."""
    torch.manual_seed(0)
    model, state, text = LanguageModel(VOCABULARY, "lstm", UNITS, UNITS, LAYERS, DROPOUT, tied=True), None, _text()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        nonlocal state
        tokens = next(text)
        state = type(state)(*(entry.detach() for entry in state)) if state is not None else None
        optimizer.zero_grad(set_to_none=True)  # before the loss, which makes new gradients
        tied = model.tied_weight()
        output, state = model.read(tokens[:-1], state)
        loss = model.loss(model.dropout(output), tokens[1:], tied)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def _text() -> Any:
    """Windows of random words, as frequent as Zipf's law says."""
    generator = torch.Generator().manual_seed(0)
    frequency = 1 / torch.arange(1, VOCABULARY + 1).double()
    while True:
        words = torch.multinomial(frequency, (WINDOW + 1) * LANES, replacement=True, generator=generator)
        yield words.view(WINDOW + 1, LANES)


WAYS = {"elman": elman_steps, "torch": torch_steps}


def memory(way: str, threads: int) -> tuple[float, float]:
    """Peak of the resident memory in MB: in all, and above what the process had before it made a model."""
    command = [sys.executable, __file__, "--memory-of", way, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak = map(float, done.stdout.split())
    return peak, peak - before


def measure_memory(way: str) -> None:
    """Print what :func:`memory` reads."""
    torch.ones(256, 256) @ torch.ones(256, 256)  # torch's own libraries
    if way == "elman":
        torch.optim.SGD([torch.zeros(1)], lr=1.0)  # imports 70 MB of Python, which the example does without
    before = _peak()
    step = WAYS[way]()
    for _ in range(4):
        step()
    print(before, _peak())


def _peak() -> float:
    """This process's own peak in MB; what getrusage gives begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Print both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring speed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        measure_memory(options.memory_of)
        return
    steps = {name: make() for name, make in WAYS.items()}
    losses = {name: step() for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name] = step()
            times[name].append(time.perf_counter() - began)
    del steps
    seconds = {name: statistics.median(some) for name, some in times.items()}
    peaks = {name: memory(name, options.threads) for name in WAYS}
    print(f"{len(times['elman'])} steps each on {options.threads} threads, torch {torch.__version__}")
    print("| | tokens/s | peak memory, MB | above the empty process, MB |")
    print("|---|---|---|---|")
    for name in WAYS:
        print(f"| {name} | {LANES * WINDOW / seconds[name]:.0f} | {peaks[name][0]:.0f} | {peaks[name][1]:.0f} |")
    ratios = seconds["torch"] / seconds["elman"], *(peaks["elman"][k] / peaks["torch"][k] for k in (0, 1))
    print("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    script.run(main)
