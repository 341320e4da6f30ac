"""Draws docs/truncation.svg: the bias of each style of truncation, and the noise of the one that has none.

An LSTM with open gates, random weights and 96 steps, in float64; the gradient of a pass is compared with the full one,
as a share of its length. `python benchmarks/truncation.py`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import elman
import script
from elman.train.course import run
from elman.train.job import Stretch
from elman.train.truncation import Truncation

STEPS, ROWS, UNITS = 96, 4, 8
WINDOWS = (4, 8, 16, 32, 48)
SEEDS = 60


class Memory:
    """Predicts the running mean of its inputs; the part of a `Job` that gradients need."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.recurrent = elman.Recurrent("lstm", 2, UNITS, dtype=torch.float64)
        self.head = nn.Linear(UNITS, 1).double()
        with torch.no_grad():
            self.recurrent.get_parameter("bias_ih_l0")[UNITS : 2 * UNITS] = 3.0
        self.inputs = torch.randn(STEPS, ROWS, 2, dtype=torch.float64)
        self.targets = self.inputs[..., :1].cumsum(0) / STEPS**0.5

    def begin(self) -> Any:
        return None

    def loss(self, stretch: Stretch, carry: Any) -> tuple[Tensor, int, Any]:
        steps = slice(stretch.start, stretch.stop)
        output, carry = self.recurrent(self.inputs[steps], carry)
        return (self.head(output) - self.targets[steps]).square().mean(), stretch.stop - stretch.start, carry

    def read(self, stretch: Stretch, carry: Any) -> Any:
        return self.recurrent(self.inputs[stretch.start : stretch.stop], carry)[1]


def gradient(job: Any, truncation: Truncation) -> Tensor:
    """What the updates of one pass add up to, each by the steps that it scores."""
    total: Tensor = torch.zeros(())
    start, carry = 0, None
    while start < STEPS:
        update = truncation.update(0, 0, start, STEPS)
        part, carry = run(job, update, 0, 0, carry)
        share = (truncation.window if truncation.style == "randomized" else update.stop - start) / STEPS
        parts = torch.autograd.grad(part.objective, list(job.recurrent.parameters()))
        total = total + share * torch.cat([tensor.flatten() for tensor in parts])
        start = update.stop
    return total


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    job = Memory()
    full = gradient(job, Truncation("none"))

    def away(gradients: Tensor) -> float:
        return float((gradients - full).norm() / full.norm())

    fixed = [away(gradient(job, Truncation("fixed", window))) for window in WINDOWS]
    double = [away(gradient(job, Truncation("fixed", window, backward=2 * window))) for window in WINDOWS]
    means: dict[str, list[float]] = {"variable": [], "randomized": []}
    noise: list[float] = []
    for window in WINDOWS:
        for style in ("variable", "randomized"):
            truncations = [Truncation(style, window, cut_every=max(window // 8, 1), seed=seed) for seed in range(SEEDS)]
            drawn = torch.stack([gradient(job, truncation) for truncation in truncations])
            means[style].append(away(drawn.mean(0)))
            if style == "randomized":
                noise.append(sum(map(away, drawn)) / SEEDS)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(WINDOWS, fixed, "o-", label="fixed")
    axes.plot(WINDOWS, double, "o-", label="fixed, backward twice the window")
    axes.plot(WINDOWS, means["variable"], "s-", label=f"variable, mean of {SEEDS} passes")
    axes.plot(WINDOWS, means["randomized"], "^-", label=f"randomized, mean of {SEEDS} passes")
    axes.plot(WINDOWS, noise, "^:", color="C3", label="randomized, a single pass (noise)")
    axes.set(xlabel="window, steps", ylabel="distance from the full gradient", xscale="log", ylim=(0, None))
    axes.set_xticks(WINDOWS, [str(window) for window in WINDOWS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    pyplot.rcParams["svg.hashsalt"] = "elman"
    path = Path(__file__).parents[1] / "docs" / "truncation.svg"
    figure.savefig(path, metadata={"Date": None})
    for name, values in (("fixed", fixed), ("double", double), *means.items(), ("one pass", noise)):
        print(f"{name:12}", *(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    script.run(main)
