"""Cells on the problems of long memory, each run with the same budget; writes a table from the runs' own files.

    python benchmarks/long_memory.py [--cells gru,lstm] [--tasks adding,copy,mnist1d] [--seeds 0] [--max-steps N]
                                     [--max-minutes X] [--runs runs/long-memory] [--output docs/results.md]

Without a limit each run has the task's own number of steps; --max-steps adding=3000,copy=12000 gives some tasks others.
A run that is finished is not made again, one that was stopped goes on, so the same command can be stopped and started
at will; the table is written again after each run. --no-runs writes it from the runs that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import elman
import script
from elman.train.checkpoint import write_atomically

CELLS = "elman,lstm,gru,indrnn,janet,lem,min_gru,sru,antisymmetric_rnn,ugrnn"
TASKS = "adding,copy,mnist1d"
SOLVED = 1e-3  # mean squared error of the adding problem
RESULT = "result.json"  # in the folder of a finished run
COLUMNS = {
    "adding": ("adding: squared error", f"below {SOLVED:g} after", "of steps"),
    "copy": ("copying: symbols right", "cross-entropy", "after steps"),
    "mnist1d": ("MNIST-1D: right", "after steps"),
}


@dataclass(frozen=True)
class Run:
    """One training run of the table, in a folder of its own."""

    folder: Path
    task: str
    cell: str
    seed: int
    options: tuple[str, ...]  # limits, the same for all runs of the task

    def make(self) -> None:
        """Train and score, unless that is done. Exits where the run was stopped or made with other options."""
        if (self.folder / RESULT).exists():
            if self.result()["options"] != list(self.options):
                sys.exit(f"{self.folder} was made with {self.result()['options']}: choose another --runs")
            return
        choice = ("--cell", self.cell, "--seed", str(self.seed), "--run", str(self.folder))
        resume = ("--resume",) if self.folder.exists() else ()
        status, _, said = _elman("train", self.task, *choice, *self.options, *resume)
        if status not in (0, 1):  # a wrong option, or a signal
            sys.exit(status)
        found: dict[str, Any] = {"options": list(self.options), "made": str(datetime.date.today())}
        if status:
            found["failure"] = said
        else:
            status, shown, said = _elman("evaluate", str(self.folder), "--format", "json")
            if status:
                sys.exit(said)
            found["test"] = json.loads(shown)
        write_atomically(self.folder / RESULT, json.dumps(found).encode())

    def result(self) -> Any:
        """What a finished run came to."""
        return json.loads((self.folder / RESULT).read_text())

    def values(self) -> list[float | int | str]:
        """The run's part of a row: COLUMNS of its task."""
        result = self.result()
        if "failure" in result:
            return ["failed", *[""] * (len(COLUMNS[self.task]) - 1)]
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        made = f"{lines[-1]['step']:,}"
        test = result["test"]
        if self.task == "adding":
            steps = [e["step"] for e in lines if e["kind"] == "validation" and e["loss"] < SOLVED]
            return [test["loss"], steps[0] if steps else "never", made]
        if self.task == "copy":
            return [test["accuracy"], test["loss"], made]
        return [test["accuracy"], made]


def _elman(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output and the last line of standard error of a command, which is shown as it comes."""
    print("elman", *arguments, flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "elman", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        last = line.rstrip()
        print(f"    {last}", flush=True)
    return process.wait(), process.stdout.read(), last


def table(runs: list[Run]) -> list[str]:
    """The finished runs, a line for each cell; where there are several seeds, the median and the extremes."""
    done = [run for run in runs if (run.folder / RESULT).exists()]
    tasks = list(dict.fromkeys(run.task for run in runs))
    head = ["cell", *(column for task in tasks for column in COLUMNS[task])]
    rows = [head, ["---"] * len(head)]
    for cell in dict.fromkeys(run.cell for run in done):
        row = [f"`{cell}`"]
        for task in tasks:
            values = [run.values() for run in done if (run.cell, run.task) == (cell, task)]
            for name, column in zip(COLUMNS[task], zip(*values, strict=True), strict=False):
                row.append(_shown(name, column))
            row += [""] * (len(COLUMNS[task]) if not values else 0)
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]


def _shown(name: str, column: tuple[float | int | str, ...]) -> str:
    numbers = [value for value in column if not isinstance(value, str)]
    form = "{:,}" if isinstance(column[0], int) else "{:.1%}" if name.endswith("right") else "{:.2g}"
    if len(numbers) < len(column):
        return ", ".join(dict.fromkeys(v if isinstance(v, str) else form.format(v) for v in column))
    low, shown, high = (form.format(of(numbers)) for of in (min, statistics.median_low, max))
    return shown if low == high else f"{shown} ({low} to {high})"


def report(runs: list[Run], command: str) -> str:
    """The document."""
    done = [run for run in runs if (run.folder / RESULT).exists()]
    made = sorted({run.result()["made"] for run in done})
    seeds = {
        task: sorted({run.seed for run in done if run.task == task}) for task in dict.fromkeys(r.task for r in runs)
    }
    lines = [
        "# Cells on problems of long memory",
        "",
        f"Made by `{command}`; [long-memory.md](long-memory.md) tells what the problems are.",
        "",
        f"{' to '.join(dict.fromkeys((made[0], made[-1])))}, {_processor()}, {torch.get_num_threads()} thread(s); "
        f"Elman {elman.__version__}, torch {torch.__version__}, Python {platform.python_version()}. "
        f"Seeds: {'; '.join(f'{task} {_listed(kept)}' for task, kept in seeds.items())}. Of several runs the median,",
        "and in brackets the extremes. All have the tasks' default options, tuned for none of the cells; the steps",
        "made are each run's whole budget, unless it failed. Scores are of the test parts, by the model that was best",
        "in validation.",
        "",
        *(
            [f"The command was stopped: {len(done)} of its {len(runs)} runs are here.", ""]
            if len(done) < len(runs)
            else []
        ),
        *table(runs),
        "",
    ]
    failures = [f"- {run.folder.name}: {run.result()['failure']}" for run in done if "failure" in run.result()]
    return "\n".join([*lines, *failures, ""] if failures else lines)


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds)) or "none yet"


def _limits(given: argparse.Namespace, task: str) -> tuple[str, ...]:
    """The options that limit the runs of a task."""
    steps = given.max_steps
    if steps is not None and "=" in steps:
        steps = dict(part.split("=") for part in steps.split(",")).get(task)
    return tuple(
        o for name, v in (("--max-steps", steps), ("--max-minutes", given.max_minutes)) if v for o in (name, v)
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--cells", default=CELLS)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--max-steps", help="steps of each run, or TASK=STEPS,...")
    parser.add_argument("--max-minutes", help="minutes of each run")
    parser.add_argument("--runs", default="runs/long-memory", help="where the runs are kept")
    parser.add_argument("--output", default="docs/results.md")
    parser.add_argument("--no-runs", action="store_true", help="make no run, write the table of those that are there")
    given = parser.parse_args()
    unknown = set(given.tasks.split(",")) - set(COLUMNS)
    if unknown:
        parser.error(f"no such task: {', '.join(sorted(unknown))}; choose from {TASKS}")
    runs = [
        Run(Path(given.runs) / f"{task}-{cell}-{seed}", task, cell, int(seed), _limits(given, task))
        for seed in given.seeds.split(",")
        for cell in given.cells.split(",")
        for task in given.tasks.split(",")
    ]
    command = " ".join(["python benchmarks/long_memory.py", *(a for a in sys.argv[1:] if a != "--no-runs")])
    for run in runs if not given.no_runs else ():
        run.make()
        write_atomically(Path(given.output), report(runs, command).encode())
    write_atomically(Path(given.output), report(runs, command).encode())


if __name__ == "__main__":
    script.run(main)
