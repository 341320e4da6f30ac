"""The curve of a run of configs/wikitext2-650.yaml beside a published one, as a table and a picture.

    python benchmarks/wikitext2.py runs/wikitext2 [--plot docs/wikitext2.svg]

A log of the 650-unit model was not to be found. The published one is of pytorch/examples' word_language_model with its
default of 200 units, untied and with dropout 0.2, on the same text, lanes, windows and learning rate: means of the
training loss over 200 batches, as in the guide of github.com/miguelaeh/innosoft-examples (2021). Of the 650-unit model
the end is published: validation 91.70 and test 86.68 after 40 epochs (pytorch/examples, issue 281).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import script

BATCH = 700  # tokens of a step on both sides
EACH = 200  # steps of a mean
PUBLISHED = (7.64, 6.86, 6.49, 6.30, 6.15, 6.06, 5.95, 5.95, 5.80, 5.77, 5.66, 5.67, 5.66, 5.54)
PUBLISHED_VALIDATION = (2983, 5.56)  # steps, loss; the end of the first epoch


def curves(run: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Steps and losses of a run: means of the training loss over EACH steps, and validation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    means = []
    for end in range(EACH, training[-1][0] + 1, EACH):
        means.append((end, statistics.fmean(loss for step, loss in training if end - EACH < step <= end)))
    return means, [(line["step"], line["loss"]) for line in lines if line["kind"] == "validation"]


def draw(
    training: list[tuple[int, float]],
    validation: list[tuple[int, float]],
    published: list[tuple[int, float]],
    path: Path,
) -> None:
    """Perplexity against tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")

    def plot(points: list[tuple[int, float]], style: str, label: str) -> None:
        axes.plot([s * BATCH / 1e6 for s, _ in points], [math.exp(v) for _, v in points], style, label=label)

    plot(training, "C0o-", "training, 650 tied (this run)")
    plot(validation, "C0s", "validation, 650 tied (this run)")
    plot(published, "C1o-", "training, 200 untied (published)")
    plot([PUBLISHED_VALIDATION], "C1s", "validation, 200 untied (published)")
    axes.set(xlabel="million tokens seen", ylabel="perplexity", yscale="log", xlim=(0, None))
    axes.set_yticks([200, 300, 500, 1000, 2000], ["200", "300", "500", "1000", "2000"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    training, validation = curves(options.run)
    published = [(EACH * (k + 1), loss) for k, loss in enumerate(PUBLISHED)]
    print("| tokens | training loss | published, 200 units |")
    print("|---|---|---|")
    theirs = dict(published)
    for step, loss in training:
        print(f"| {step * BATCH:,} | {loss:.2f} | {theirs.get(step, math.nan):.2f} |")
    for step, loss in validation:
        print(f"\nvalidation after {step * BATCH:,} tokens: perplexity {math.exp(loss):.1f}")
    if options.plot:
        draw(training, validation, published, options.plot)


if __name__ == "__main__":
    script.run(main)
