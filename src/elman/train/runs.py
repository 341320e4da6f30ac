"""``elman runs``: the runs of a folder side by side, as a table and as curves. Needs no torch."""

from __future__ import annotations

import html
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from elman.errors import UsageError, UserError
from elman.train.options import Options, option

SHOWN = ("task", "cell", "hidden_size", "num_layers", "learning_rate", "batch_size", "seed")


@dataclass(frozen=True)
class RunsOptions(Options):
    """Options of ``elman runs``."""

    folder: str = option("runs", "a folder of run folders, at any depth", positional=True)
    metric: str = option("loss", "what the table and the curves show, as metrics.jsonl names it")
    order: Literal["best", "name"] = option("best", "of the rows")
    plot: str | None = option(None, "also draw the curves, to a .png or .html file")
    format: Literal["text", "json"] = option("text", "how to print the table on standard output")

    def check(self) -> None:
        if self.plot is not None and Path(self.plot).suffix not in (".png", ".html"):
            raise UsageError(f"--plot must end in .png or .html, got {self.plot}")


@dataclass
class Run:
    """A run folder as `elman runs` sees it.

    Attributes:
        name: its path below the folder.
        config: its options.
        curves: by kind (``train``, ``validation``), the steps and the metric's values there.
        last: the last line of metrics.
        best, best_step: the lowest value in validation; for accuracies and the like the highest.
    """

    name: str
    config: dict[str, Any]
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None

    def row(self) -> dict[str, Any]:
        """The cells of the table."""
        return {
            "run": self.name,
            **{name: self.config.get(name) for name in SHOWN},
            "best": self.best,
            "at step": self.best_step,
            "steps": self.last.get("step", 0),
            "minutes": round(self.last.get("seconds", 0) / 60, 1),
            "tokens/s": self.last.get("tokens_per_second"),
        }


def read(folder: Path, name: str, metric: str) -> Run:
    """A run folder. Raises UserError where its files are damaged."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        run = Run(name, dict(config))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise UserError(f"{folder / 'config.yaml'} is damaged") from None
    file = folder / "metrics.jsonl"
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], start=1):
        try:
            found = json.loads(line)
            kind, step = found["kind"], found["step"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged in line {number}") from None
        run.last = found
        if isinstance(found.get(metric), (int, float)):
            steps, values = run.curves.setdefault(kind, ([], []))
            steps.append(step)
            values.append(float(found[metric]))
    steps, values = run.curves.get("validation", ([], []))
    if values:
        run.best = (max if metric in RISING else min)(values)
        run.best_step = steps[values.index(run.best)]
    return run


RISING = ("accuracy", "f1", "bleu")  # the metrics of which more is better


def find(folder: str, metric: str) -> list[Run]:
    """All runs below a folder, those that are damaged left out with a word. Raises UserError where there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no such folder: {folder}")
    runs = []
    for config in sorted(root.rglob("config.yaml")):
        try:
            runs.append(read(config.parent, str(config.parent.relative_to(root)), metric))
        except UserError as error:
            print(f"{error}; left out", file=sys.stderr)
    if not runs:
        raise UserError(f"{folder} has no run folders")
    if not any(run.curves for run in runs):
        raise UserError(f"no run in {folder} has the metric {metric!r}")
    return runs


def command(options: RunsOptions) -> None:
    """Print the table, and draw the curves."""
    runs = find(options.folder, options.metric)
    if options.order == "best":
        sign = -1 if options.metric in RISING else 1
        runs.sort(key=lambda run: (run.best is None, sign * (run.best or 0.0)))
    rows = [run.row() for run in runs]
    if options.format == "json":
        print(json.dumps(rows))
    else:
        print(table(rows))
    if options.plot is not None:
        draw(runs, options.metric, Path(options.plot))
        print(f"curves in {options.plot}", file=sys.stderr)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text in columns; numbers to the right. A column that is the same in all of several rows is left out."""
    names = [
        name for name in rows[0] if name not in SHOWN or len(rows) == 1 or len({repr(row[name]) for row in rows}) > 1
    ]
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    right = [not isinstance(rows[0][name], str) for name in names]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def draw(runs: Sequence[Run], metric: str, path: Path) -> None:
    """The curves of all runs: validation with points, training thin. Raises UserError where the file cannot be made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        if "train" in run.curves:
            axes.plot(*run.curves["train"], color=colour, linewidth=0.6, alpha=0.6)
        if "validation" in run.curves:
            axes.plot(*run.curves["validation"], color=colour, marker=".", label=run.name)
    axes.set(xlabel="step", ylabel=metric)
    axes.grid(alpha=0.3)
    if len(runs) <= 20:
        axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png" if path.suffix == ".png" else "svg", dpi=120)
    pyplot.close(figure)
    data = content.getvalue() if path.suffix == ".png" else page(runs, metric, content.getvalue().decode()).encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def page(runs: Sequence[Run], metric: str, picture: str) -> str:
    """The curves and the table as one HTML file that needs no other."""
    rows = [run.row() for run in runs]

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line([_text(value) for value in row.values()], "td") for row in rows)
    return f"""<!doctype html>
<meta charset="utf-8">
<title>Runs by {html.escape(metric)}</title>
<style>body {{ font: 15px sans-serif; margin: 2em }} td, th {{ padding: .2em .8em; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} tr:nth-child(even) {{ background: #f2f2f2 }}</style>
{picture[picture.index("<svg") :]}
<table>
{line(list(rows[0]), "th")}
{body}
</table>
"""
