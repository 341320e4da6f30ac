"""Elman's layers against torch.nn, ONNX Runtime, torchrecurrent and an eager loop: both sides interleaved, one run.

    python benchmarks/layers.py [--seconds 1.0] [--only layers,streaming] > table.md

The peers come with `pip install -e '.[bench]'`. Ratios are medians of the peer's times over medians of Elman's: above 1
Elman is faster. Run it alone on the machine.
"""

import argparse
import datetime
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import elman
import machine
import script
from elman.cells.clockwork import Clockwork
from elman.cells.math import tanh
from elman.compiler import build
from elman.engine.sharing import SPLIT_FROM
from options import bench_options

SHAPES = (
    (1, 128, 64, 128),
    (1, 128, 256, 256),
    (1, 128, 512, 512),
    (1, 64, 1024, 1024),
    (16, 64, 128, 128),
    (32, 64, 256, 256),
    (64, 128, 128, 128),
    (64, 96, 8, 64),
    (64, 64, 512, 512),
    (20, 70, 400, 1150),
    (128, 64, 1024, 1024),
    (33, 50, 100, 100),
)
PAIRS: dict[str, tuple[Any, Any, int]] = {
    "RNN": (elman.RNN, nn.RNN, 1),
    "GRU": (elman.GRU, nn.GRU, 3),
    "LSTM": (elman.LSTM, nn.LSTM, 4),
}


class Way:
    """A call to be timed, and under what it is made: that is chosen before the time begins, and left after it ends."""

    def __init__(self, call: Callable[[], object], engine: str = "cpu", gradients: bool = True) -> None:
        self._call, self._engine, self._gradients = call, engine, gradients

    def __call__(self) -> float:
        """Seconds of the call."""
        with torch.set_grad_enabled(self._gradients), elman.use_engine(self._engine):
            return _seconds(self._call)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(ways: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each way, run in turns for so long together, three rounds at least."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for kept, way in zip(times, ways, strict=True):
            kept.append(way() if isinstance(way, Way) else _seconds(way))
    return [statistics.median(t) for t in times]


def forward(module: Any, x: Any) -> Way:
    """A whole call without gradients."""
    return Way(lambda: module(x), gradients=False)


def training(module: Any, x: Tensor, engine: str = "cpu", wrap: Any = None, **arguments: Any) -> Way:
    """A whole call and the gradients of the input and all parameters."""
    given: list[Tensor] = []

    def run() -> None:
        output = module(x if wrap is None else wrap(x), **arguments)[0]
        data = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
        if not given:
            given.append(torch.randn(data.shape))
        torch.autograd.grad(data, [x, *module.parameters()], given[0])

    return Way(run, engine)


def flops(gates: int, batch: int, steps: int, inputs: int, hidden: int, trained: bool) -> float:
    """Of the products alone; training does them three times."""
    return 2.0 * gates * hidden * (inputs + hidden) * batch * steps * (3 if trained else 1)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    print("\n| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |", flush=True)


def bench_layers(seconds: float, workers: int) -> None:
    """Each shape against torch.nn."""
    print("\n## Against torch.nn")
    print("\nShares are of the multiply-add peak as it was in turns with the layers.")
    multiply_adds, work = machine.multiply_adds(workers)
    summary, peaks = [], []
    for kind, (ours, theirs, gates) in PAIRS.items():
        rows = []
        for batch, steps, inputs, hidden in SHAPES:
            a, b = ours(inputs, hidden), theirs(inputs, hidden)
            b.load_state_dict(a.state_dict())
            x = torch.randn(steps, batch, inputs, requires_grad=True)
            row: list[object] = [f"{batch}, {steps}, {inputs}, {hidden}"]
            for trained, way in ((False, forward), (True, training)):
                mine, peer, spent = medians([way(a, x), way(b, x), multiply_adds], seconds)
                rate = flops(gates, batch, steps, inputs, hidden, trained) / mine / 1e9
                peaks.append(work / spent)
                row += [peer / mine, f"{rate:.0f}", f"{100 * rate / peaks[-1]:.0f} %"]
            rows.append(row)
        print(f"\n### {kind}")
        head = ["B, T, I, H", "forward ×", "GFLOP/s", "of peak", "training ×", "GFLOP/s", "of peak"]
        table(head, rows)
        for name, column in (("forward", 1), ("training", 4)):
            ratios = [float(str(row[column])) for row in rows]
            summary.append([kind, name, geometric_mean(ratios), min(ratios)])
    table(["layer", "", "geometric mean ×", "worst ×"], summary)
    quartiles = ", ".join(f"{q:.0f}" for q in statistics.quantiles(peaks, n=4))
    print(f"\nThe peak was {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s, quartiles {quartiles}.")


class Minimal(elman.Cell):
    """A cell that no library has, for the benchmark."""

    gates = ("f", "g")

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        f = elman.cells.math.sigmoid(x.f + u.f(s.h))
        return self.State(h=f * s.h + (1 - f) * tanh(x.g + u.g(s.h)))


def bench_recurrence(seconds: float, workers: int) -> None:
    """The recurrence alone at B = 1, where every step reads all recurrent weights: against reads of as many bytes."""
    print("\n## The recurrence alone, B = 1, T = 1024 (GB/s of recurrent weights read)")
    print("\nAt most: what as many threads as the loop uses read of as many bytes, over and over in one direction. The")
    print("loop goes to and fro, so that a part stays in nearer caches: hence more than 100 %.")
    rows = []
    for kind in PAIRS:
        for hidden in (128, 256, 512):
            layer = PAIRS[kind][0](1, hidden)  # of one input, so that the product with it is nothing
            x, short = torch.randn(1025, 1, 1), torch.randn(1, 1, 1)
            whole, start = medians([forward(layer, x), forward(layer, short)], seconds)
            size = layer.weight_hh_l0.numel() * 4
            rate = size * 1024 / (whole - start) / 1e9
            used = workers if size >= SPLIT_FROM else 1
            limit = machine.read_bandwidth(size // used, used)
            share = f"{100 * rate / limit:.0f} %"
            rows.append([kind, hidden, f"{size >> 10}", used, f"{rate:.0f}", f"{limit:.0f}", share])
    table(["layer", "H", "kB", "threads", "GB/s", "GB/s at most", "of it"], rows)


def bench_elementwise(seconds: float) -> None:
    """The loop of cells without recurrent products against a copy: what it reads and writes of each step, once."""
    from elman.cells.layout import layout
    from elman.compiler.plan import Plan

    batch, steps, inputs, hidden = 32, 256, 64, 512
    print(f"\n## Cells without recurrent products, B = {batch}, T = {steps}, H = {hidden}: the loop alone")
    print("\nGB/s: forward, of the projected inputs that are read and the states that are written; in training, with")
    print("backward, also of what is saved and of gradients, read and written both where a kernel writes over what it")
    print("read. The copy is one of 256 MB, just before and after. What")
    print("its functions alone allow is how fast sigmoids, tanhs and the like are computed, of numbers in the cache,")
    print("just before. Medians of five passes over all cells.")
    copied, source = torch.empty(1 << 26), torch.ones(1 << 26)
    # name, what to run, the numbers that it moves for each unit, and the functions that it computes
    cases: list[tuple[str, Callable[[], object], float, list[str]]] = []
    for name in elman.cells.names():
        cell = elman.cells.get(name)()
        plan = Plan(cell, layout(cell, inputs, hidden), dict.fromkeys(cell.below, hidden))
        if plan.products:
            continue
        layer, x = elman.Recurrent(name, inputs, hidden), torch.randn(steps, batch, inputs, requires_grad=True)
        for way, kernels in (
            (forward(layer, x), (plan.inference,)),
            (training(layer, x), (plan.training, plan.gradients)),
        ):
            functions = [name for kernel in kernels for name in _functions(kernel)]
            cases.append((name, way, sum(map(_moved, kernels)) / hidden, functions))
    rates: list[list[float]] = [[] for _ in cases]
    shares: list[list[float]] = [[] for _ in cases]
    allowed: list[list[float]] = [[] for _ in cases]
    limits, handovers = [], []
    for _ in range(5):
        for (_, call, moved, functions), rate, share, allow in zip(cases, rates, shares, allowed, strict=True):
            most = machine.function_rate(functions, torch.get_num_threads()) * moved * 4 if functions else math.inf
            copies = medians([lambda: copied.copy_(source)], 0)
            spent = _loops(call, seconds / 2)
            handovers.append(machine.handover_ns() if torch.get_num_threads() > 1 else math.nan)
            copies += medians([lambda: copied.copy_(source)], 0)
            limits.append(2 * 4 * source.numel() / statistics.mean(copies) / 1e9)
            rate.append(4 * moved * batch * steps * hidden / spent / 1e9)
            share.append(100 * rate[-1] / limits[-1])
            allow.append(100 * most / 1e9 / limits[-1])
    shown = [[f"{statistics.median(r):.1f}" for r in rates]]
    shown += [[f"{statistics.median(s):.0f} %" if s[0] < math.inf else "-" for s in each] for each in (shares, allowed)]
    rows = [[f"`{cases[i][0]}`", *(column[j] for j in (i, i + 1) for column in shown)] for i in range(0, len(cases), 2)]
    head = [n for way in ("forward", "training") for n in (f"{way} GB/s", "of a copy's", "its functions alone")]
    table(["cell", *head], rows)
    print(
        f"\nThe copies ran at {min(limits):.0f} to {max(limits):.0f} GB/s. A line went from one thread to the other in"
    )
    quartiles = statistics.quantiles(handovers, n=4)
    print(f"{min(handovers):.0f} to {max(handovers):.0f} ns, quartiles {', '.join(f'{q:.0f}' for q in quartiles)}.")


def _moved(kernel: Any) -> int:
    """Numbers that a kernel reads or writes for each row of a step, each once however often it is used."""
    kinds = ("x", "raw", "next", "saved", "d", "state", "sequence")
    chosen = {n: w for n, w in kernel.buffers.items() if n.partition(".")[0] in kinds}
    if any(n.startswith("next.") for n in chosen):  # the state before a step is the one after the step before
        chosen = {n: w for n, w in chosen.items() if not (n.startswith("state.") and f"next.{n[6:]}" in chosen)}
    given = [n for n in chosen if n.startswith("sequence.")]  # of these gradients the output's alone is there
    return sum(w for n, w in chosen.items() if n not in given[1:])


def _functions(kernel: Any) -> list[str]:
    """The functions that a kernel computes for each unit at every step, each as often as it does."""
    parts = kernel.source.partition("struct Part")[2]
    return re.findall(r"= (sigmoid|tanh|exp|expm1|log|log1p|sqrt|rsqrt|sin|cos)\(", parts)


def _loops(way: Callable[[], object], seconds: float) -> float:
    """Median seconds of all the loops in a call together."""
    from elman.engine import runs

    spent: list[float] = []

    def once() -> None:
        runs.spent = {}
        way()
        spent.append(runs.spent["kernel"] / 1e9)

    try:
        medians([once], seconds)
    finally:
        runs.spent = None
    return statistics.median(spent[1:])


def bench_cells(seconds: float, workers: int) -> None:
    """Other cells at LSTM's rate, and against torchrecurrent and an eager loop."""
    print("\n## Any cell (training)")
    multiply_adds, work = machine.multiply_adds(workers)
    rows = []
    for batch, steps, inputs, hidden in ((32, 64, 256, 256), (64, 64, 512, 512)):
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        chosen: list[tuple[Any, int]] = [("lstm", 4), ("peephole_lstm", 4), ("gru_reset_before", 3), (Minimal, 2)]
        ways = [training(elman.Recurrent(cell, inputs, hidden), x) for cell, _ in chosen]
        *times, spent = medians([*ways, multiply_adds], seconds * 2)
        rates = [
            flops(g, batch, steps, inputs, hidden, True) / t / 1e9 for (_, g), t in zip(chosen, times, strict=True)
        ]
        for (cell, _), rate in zip(chosen, rates, strict=True):
            name = cell if isinstance(cell, str) else cell.__name__
            rows.append(
                [name, f"{batch}, {steps}, {inputs}, {hidden}", f"{rate:.0f}", rate / rates[0], rate * spent / work]
            )
    table(["cell", "B, T, I, H", "GFLOP/s", "of Elman's LSTM", "of peak"], rows)

    import torchrecurrent

    rows = []
    for batch, steps, inputs, hidden in ((32, 64, 256, 256), (1, 128, 256, 256)):
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        ours = elman.Recurrent("peephole_lstm", inputs, hidden)
        ways = [training(ours, x), training(torchrecurrent.PeepholeLSTM(inputs, hidden), x)]
        ways.append(training(ours, x, engine="reference"))
        mine, peer, eager = medians(ways, seconds * 2)
        rows.append([f"{batch}, {steps}, {inputs}, {hidden}", peer / mine, eager / mine])
    print("\nPeephole LSTM, training:")
    table(["B, T, I, H", "torchrecurrent ×", "eager loop ×"], rows)


def bench_clock(seconds: float) -> None:
    """Clockwork against a dense layer of the same size."""
    print("\n## Clockwork, 8 blocks, periods 1 to 128, against a vanilla layer (B = 32, T = 256, I = H = 512)")
    x = torch.randn(256, 32, 512, requires_grad=True)
    clockwork = elman.Recurrent(Clockwork(tuple(1 << k for k in range(8))), 512, 512)
    layers = (clockwork, elman.Recurrent("elman", 512, 512))
    rows = []
    for what, way in (("forward", forward), ("training", training)):
        mine, whole = medians([way(layer, x) for layer in layers], seconds * 4)
        rows.append([what, mine / whole])
    table(["", "time ÷ dense time"], rows)


TWO_DIRECTIONS = ((1, 128, 128, 128), (8, 64, 256, 256), (16, 64, 128, 128), (32, 60, 100, 200), (64, 64, 512, 512))


def bench_directions(seconds: float) -> None:
    """Layers of two directions."""
    print("\n## Two directions")
    rows = []
    for kind, (ours, theirs, _) in PAIRS.items():
        for batch, steps, inputs, hidden in TWO_DIRECTIONS:
            a, b = ours(inputs, hidden, bidirectional=True), theirs(inputs, hidden, bidirectional=True)
            one = ours(inputs, hidden)
            x = torch.randn(steps, batch, inputs, requires_grad=True)
            row: list[object] = [kind, f"{batch}, {steps}, {inputs}, {hidden}"]
            for way in (forward, training):
                mine, peer, single = medians([way(a, x), way(b, x), way(one, x)], seconds)
                row += [peer / mine, mine / single / 2]
            rows.append(row)
    head = [
        "layer",
        "B, T, I, H",
        "forward ×",
        "÷ 2 layers of one direction",
        "training ×",
        "÷ 2 layers of one direction",
    ]
    table(head, rows)


def bench_lengths(seconds: float) -> None:
    """Batches of unequal lengths."""
    print("\n## Variable lengths (bidirectional, training, B = 32, T = 60, I = 100, H = 200)")
    torch.manual_seed(0)
    lengths = torch.randint(5, 61, (32,))
    lengths[0] = 60
    fill = float(lengths.float().mean() / 60)
    x = torch.randn(60, 32, 100, requires_grad=True)
    rows = []
    for kind in ("GRU", "LSTM"):
        ours, theirs, _ = PAIRS[kind]
        a, b = ours(100, 200, bidirectional=True), theirs(100, 200, bidirectional=True)

        def pack(v: Tensor) -> Any:
            return pack_padded_sequence(v, lengths, enforce_sorted=False)

        ways = [training(a, x, lengths=lengths), training(b, x, wrap=pack), training(a, x), training(b, x)]
        mine, packed, dense, padded = medians(ways, seconds * 4)
        alone, dense_alone = medians([ways[0], ways[2]], seconds * 2)
        rows.append([kind, packed / mine, padded / mine, mine / dense / fill, alone / dense_alone / fill])
    print(
        f"\nFill: {fill:.2f}. The cost of lengths where torch's layers run in between, and where the two run in turns."
    )
    table(["layer", "torch packed ×", "torch padded ×", "time ÷ (fill · dense time)", "in turns"], rows)


def bench_streaming() -> None:
    """One step of one row, from a torch tensor to a torch tensor."""
    print("\n## Streaming (LSTM, B = 1, I = H, microseconds a step)")
    rows = []
    for hidden in (128, 256, 512, 1024):
        module = elman.LSTM(hidden, hidden)
        cell = nn.LSTMCell(hidden, hidden)
        stepper, x = module.stepper(), torch.randn(1, hidden)
        states: dict[str, Any] = {"cell": None, "step": None}

        def by_cell() -> None:
            states["cell"] = cell(x, states["cell"])  # noqa: B023

        def by_step() -> None:
            states["step"] = module.step(x, states["step"])[1]  # noqa: B023

        calls: list[Callable[[], object]] = [lambda: stepper(x), by_step, by_cell, _onnx_step(module, x)]  # noqa: B023
        ways = [Way(call, gradients=False) for call in calls]
        # Each way in a run of its own length: in turns, each would find its matrices pushed out of the cache.
        mine, step, torch_cell, onnx = (statistics.median(medians([w], 0.5)[0] for _ in range(3)) * 1e6 for w in ways)
        rows.append([hidden, mine, step, torch_cell / mine, torch_cell / step, onnx / mine])
    table(["H", "stepper µs", "step µs", "LSTMCell ÷ stepper", "LSTMCell ÷ step", "ONNX Runtime ÷ stepper"], rows)


def _onnx_step(module: Any, x: Tensor) -> Callable[[], object]:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    hidden = module.hidden_size

    def reordered(name: str) -> Any:  # ONNX stores the gates as i o f c
        i, f, g, o = np.split(getattr(module, name).detach().numpy(), 4)
        return np.concatenate([i, o, f, g])

    bias = np.concatenate([reordered("bias_ih_l0"), reordered("bias_hh_l0")])
    arrays = {"W": reordered("weight_ih_l0"), "R": reordered("weight_hh_l0"), "B": bias}
    weights = [numpy_helper.from_array(v[None], n) for n, v in arrays.items()]

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h0", "c0"], ["Y", "h", "c"], hidden_size=hidden)
    states = [(1, 1, hidden)] * 2
    graph = helper.make_graph(
        [node],
        "step",
        [value("X", 1, 1, hidden), value("h0", *states[0]), value("c0", *states[1])],
        [value("Y", 1, 1, 1, hidden), value("h", *states[0]), value("c", *states[1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    carried = {"h": np.zeros((1, 1, hidden), np.float32), "c": np.zeros((1, 1, hidden), np.float32)}

    def run() -> Tensor:
        inputs = {"X": x.numpy()[None], "h0": carried["h"], "c0": carried["c"]}
        y, carried["h"], carried["c"] = session.run(None, inputs)
        return torch.from_numpy(y)

    return run


def bench_language_model(seconds: float) -> None:
    """Training steps of the language model: 32 lanes of 64 characters, 512 units, against the same in torch.nn.

    Both with the optimiser of `elman train`.
    """
    from elman.tasks.language_model.model import LanguageModel
    from elman.train import optim
    from elman.train.config import TrainConfig

    print("\n## Training a language model (32 lanes × 64 characters, 512 units; clipping and Adam included)")
    tokens = torch.randint(65, (65, 32))
    rows = []
    for kind in ("LSTM", "GRU"):
        ways = []
        for engine in ("cpu", "auto", None):
            torch.manual_seed(0)
            model = LanguageModel(65, kind.lower(), 128, 512)
            if engine is None:
                model.recurrent = PAIRS[kind][1](128, 512)
            optimizer = optim.optimizer(model.parameters(), TrainConfig(learning_rate=2e-3))
            ways.append(_language_step(model, optimizer, tokens, engine or "auto"))
        mine, auto, peer = medians(ways, seconds * 4)
        count = tokens[1:].numel()
        rows.append([kind, f"{count / mine:.0f}", f"{count / peer:.0f}", peer / mine, peer / auto])
    table(["cell", "tokens/s", "torch.nn tokens/s", "`cpu` ×", "`auto` ×"], rows)


def _language_step(model: Any, optimizer: Any, tokens: Tensor, engine: str) -> Way:
    def run() -> None:
        output, _ = model.recurrent(model.embedding(tokens[:-1]))
        logits = model.logits(output)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return Way(run, engine)


def bench_memory() -> None:
    """Peak memory of a training step, in processes of its own."""
    print("\n## Peak memory of a training step (MB above the process before it, medians of three processes)")
    code = """
import sys, torch, elman
kind, library, batch, steps, inputs, hidden = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
def memory(what):
    return int(next(n for n in open("/proc/self/status") if n.startswith(what)).split()[1]) / 1024
def step(layer, x):
    with elman.use_engine("cpu"):
        layer(x)[0].sum().backward()
make = getattr(elman if library == "elman" else torch.nn, kind)
step(make(8, 16), torch.randn(3, 2, 8, requires_grad=True))
layer, x = make(inputs, hidden), torch.randn(steps, batch, inputs, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = memory("VmRSS")
step(layer, x)
print(memory("VmHWM") - before)
"""
    rows = []
    for kind in PAIRS:
        for shape in ((64, 64, 512, 512), (32, 256, 256, 256)):
            sizes = list(map(str, shape))
            used = []
            for library in ("elman", "torch"):
                command = [sys.executable, "-c", code, kind, library, *sizes]
                runs = [float(subprocess.run(command, stdout=-1, check=True).stdout) for _ in range(3)]
                used.append(statistics.median(runs))
            rows.append([kind, ", ".join(sizes), f"{used[0]:.0f}", f"{used[1]:.0f}", used[0] / used[1]])
    table(["layer", "B, T, I, H", "Elman", "torch.nn", "ratio"], rows)


def bench_compile() -> None:
    """First use of a cell, and its load from the cache."""
    print("\n## First use of a cell (seconds, forward and backward kernels of one dtype)")
    code = """
import gc, sys, time, torch, elman
class Other(elman.Cell):
    gates = ("h",)
    def step(self, x, u, s, p):
        return self.State(h=x.h + u.h(s.h))
layer, x = elman.Recurrent(sys.argv[1], 16, 64), torch.randn(4, 20, 16)
with elman.use_engine("cpu"):
    elman.Recurrent(Other, 16, 64)(x)[0].sum().backward()  # what all cells share is not counted
    gc.collect()  # nor is Python's pass over all that torch has loaded, 0.1 s in the middle of whichever cell is next
    start = time.perf_counter()
    layer(x)[0].sum().backward()
print(time.perf_counter() - start)
"""
    rows = []
    for name in ("lstm", "gru_reset_before", "peephole_lstm", "layer_norm_lstm", "clockwork", "slstm", "lmu", "cfc"):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "ELMAN_CACHE": folder}
            times = [
                float(subprocess.run([sys.executable, "-c", code, name], env=environment, stdout=-1, check=True).stdout)
                for _ in range(2)
            ]
        rows.append([name, times[0], times[1]])
    table(["cell", "compiled", "from the cache"], rows)


def main() -> None:
    """Run what is asked for and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each comparison")
    parser.add_argument("--only", help="sections, with commas between them; default: all")
    options = parser.parse_args()
    seconds = options.seconds
    torch.manual_seed(0)
    workers = torch.get_num_threads()
    sections: dict[str, Callable[[], None]] = {
        "layers": lambda: bench_layers(seconds, workers),
        "recurrence": lambda: bench_recurrence(seconds, workers),
        "elementwise": lambda: bench_elementwise(seconds),
        "cells": lambda: bench_cells(seconds, workers),
        "options": lambda: bench_options(seconds),
        "clock": lambda: bench_clock(seconds),
        "directions": lambda: bench_directions(seconds),
        "lengths": lambda: bench_lengths(seconds),
        "streaming": bench_streaming,
        "language_model": lambda: bench_language_model(seconds),
        "memory": bench_memory,
        "compile": bench_compile,
    }
    only = options.only.split(",") if options.only else list(sections)
    if unknown := [name for name in only if name not in sections]:
        parser.error(f"--only: no section {', '.join(unknown)}; there are {', '.join(sections)}")
    model = next((n for n in Path("/proc/cpuinfo").read_text().splitlines() if n.startswith("model name")), "")
    print("# Benchmarks\n\nMade by `benchmarks/layers.py`, on the `cpu` engine throughout.")
    print("Ratios above 1 mean that Elman is faster; losses are included.")
    print(
        f"\n{datetime.date.today()}, {model.partition(':')[2].strip()}, {workers} threads, {build.instruction_set()}, "
    )
    print(f"torch {torch.__version__}. Multiply-add peak {machine.peak_gflops(workers):.0f} GFLOP/s, in registers;")
    print(f"the engine's tiles alone, of numbers from the second-level cache, {machine.tiles_gflops(workers):.0f}.")
    if by_matrix_tiles := machine.matrix_tiles_gflops(workers):
        print(f"Matrix tiles alone, float32 products of six products of terms: {by_matrix_tiles:.0f} GFLOP/s.")
    print(f"Reads by {workers} threads together: ", end="")
    print(", ".join(f"{kb} kB each {machine.read_bandwidth(kb * 1024, workers):.0f} GB/s" for kb in (512, 4096)) + ".")
    if workers > 1:
        print(f"One thread sees what another wrote after {machine.handover_ns():.0f} ns.")
    for name in only:
        sections[name]()
    if workers > 1:
        print(f"\nAt the end one thread saw what another wrote after {machine.handover_ns():.0f} ns.")


if __name__ == "__main__":
    script.run(main)
