"""``elman sweep``: many runs over a space of options, chosen by Optuna, on one machine or several.

Each trial is ``elman train`` in a process of its own, so that none can harm the others; its run folder stays. What is
known lies in an Optuna storage, by default SQLite in the sweep's folder: a sweep that was stopped goes on, and
processes and machines that name the same storage share the work.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial, TrialState

from elman.errors import UsageError, UserError, did_you_mean
from elman.train.config import TrainConfig
from elman.train.options import Options, convert, dashed, option
from elman.train.run import RunFolder

HEARTBEAT = 60  # seconds: a trial silent for five of them is taken up again, from its checkpoint
NOT_SEARCHED = ("run", "resume", "device", "devices", "nodes")


@dataclass(frozen=True)
class SweepOptions(Options):
    """Options of ``elman sweep``, which come before the ``--``."""

    space: str | None = option(
        None, "YAML file of the options to search: each a list, or low and high, and log or step", path=True
    )
    trials: int = option(20, "finished trials that the study shall have in all", low=1)
    folder: str | None = option(None, "where the runs and the study are kept; by default sweeps/TASK", path=True)
    storage: str | None = option(None, "URL of an Optuna storage; by default study.db in the folder")
    study: str | None = option(None, "the study's name in the storage; by default the task's")
    sampler_seed: int = option(0, "of what is tried", low=0)
    pruner: Literal["none", "median", "halving"] = option(
        "none",
        "stop bad trials early: those worse than the median at an evaluation, or all but the best of four at the "
        "first, fourth, sixteenth …",
    )
    startup_trials: int = option(5, "finished trials before median stops any", low=1)
    startup_evaluations: int = option(1, "of a trial, before median may stop it", low=0)

    def check(self) -> None:
        if self.space is None:
            raise UsageError("--space FILE is missing: the options to search, and where")


@dataclass(frozen=True)
class Choice:
    """One searched option: given values, or a range."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def suggest(self, trial: Trial) -> Any:
        """A value for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, log=self.log, step=step)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)


def read_space(path: str, kind: type[TrainConfig]) -> list[Choice]:
    """The searched options in a YAML file. Raises UsageError where one is unknown, or its range makes no sense."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UsageError(f"{path} is not valid YAML") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} must hold options as `name: {{low: 1, high: 9}}` or `name: [1, 2]` lines")
    hints = typing.get_type_hints(kind)
    space = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in hints or name in NOT_SEARCHED:
            raise UsageError(f"{path}: unknown option {key!r}{did_you_mean(name, set(hints) - set(NOT_SEARCHED))}")
        known = {"choices", "low", "high", "log", "step"}
        parts = {"choices": value} if isinstance(value, list) else value
        if not isinstance(parts, dict) or not parts.keys() <= known:
            raise UsageError(f"{path}: {key} must be a list of values, or have low and high, and log or step")
        if "choices" in parts:
            for single in parts["choices"] if isinstance(parts["choices"], list) else [None]:
                convert(name, hints[name], single)
            parts = {**parts, "choices": tuple(parts["choices"])}
        elif not all(isinstance(parts.get(end), (int, float)) for end in ("low", "high")):
            raise UsageError(f"{path}: {key} must have low and high, as numbers")
        elif parts["low"] > parts["high"] or (parts.get("log") and (parts["low"] <= 0 or parts.get("step"))):
            raise UsageError(f"{path}: {key} must have low <= high, and with log a positive low and no step")
        else:
            for end in ("low", "high"):
                convert(name, hints[name], parts[end])
        space.append(Choice(name, **parts))
    return space


def open_study(options: SweepOptions, task: str, folder: Path) -> optuna.Study:
    """The study in its storage. Raises UserError where that cannot be opened."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
            storage = RDBStorage(
                options.storage or f"sqlite:///{folder / 'study.db'}",
                heartbeat_interval=HEARTBEAT,
                grace_period=5 * HEARTBEAT,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        pruner = {
            "none": optuna.pruners.NopPruner(),
            "median": optuna.pruners.MedianPruner(options.startup_trials, options.startup_evaluations),
            "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
        }[options.pruner]
        sampler = optuna.samplers.TPESampler(seed=options.sampler_seed)
        return optuna.create_study(
            storage=storage, study_name=options.study or task, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    except Exception as error:  # databases differ in what they raise
        raise UserError(f"cannot open the storage: {str(error).splitlines()[0]}") from None


def sweep(task: str, kind: type[TrainConfig], options: SweepOptions, given: Mapping[str, Any]) -> None:
    """Run trials until the study has as many as it shall have; say which was best.

    Raises:
        UsageError: the space does not fit the task, or the first trial's options contradict.
    """
    space = read_space(str(options.space), kind)
    if both := [dashed(choice.name) for choice in space if choice.name in given]:
        raise UsageError(f"{both[0]} is both searched and given")
    folder = Path(options.folder or f"sweeps/{task}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(options, task, folder)
    fixed = [word for name, value in given.items() for word in _words(name, value)]

    def finished() -> int:
        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def objective(trial: Trial) -> float:
        values = {choice.name: choice.suggest(trial) for choice in space}
        # a trial that is taken up again has the folder, and so the checkpoint, of its first attempt
        name = str(trial.user_attrs.get("folder", f"trial-{trial.number:05d}"))
        trial.set_user_attr("folder", name)
        searched = [word for key, value in values.items() for word in _words(key, value)]
        scores: list[float] = []

        def hear(run: Path) -> bool:
            for cost in costs(run)[len(scores) :]:
                trial.report(cost, len(scores))  # by evaluations: steps need not mean the same in all trials
                scores.append(cost)
            return bool(scores) and trial.should_prune()

        status, last, stopped = run_trial(task, [*fixed, *searched], folder / name, hear)
        shown = ", ".join(f"{key} {value}" for key, value in values.items())
        if stopped and status == 143:
            print(f"{name}: {shown}: pruned at {scores[-1]:.6g}, evaluation {len(scores)}", file=sys.stderr)
            raise optuna.TrialPruned
        if status in (130, 143):
            study.enqueue_trial(values, user_attrs={"folder": name})
            raise KeyboardInterrupt
        if status:
            print(f"{name}: {shown}: failed: {last}", file=sys.stderr)
            trial.set_user_attr("failure", last)
            raise optuna.TrialPruned
        cost = float(RunFolder(folder / name).load_model()[1]["cost"])
        print(f"{name}: {shown}: {cost:.6g}", file=sys.stderr)
        return cost

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while finished() < options.trials:
        study.optimize(objective, n_trials=1)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"none of the {finished()} trials succeeded: {study.trials[-1].user_attrs.get('failure', '')}")
    best = study.best_trial
    options_of_best = " ".join(word for key, value in best.params.items() for word in _words(key, value))
    print(f"{best.value:.6g}\t{folder / best.user_attrs['folder']}\t{options_of_best}")


def costs(run: Path) -> list[float]:
    """What each evaluation of a run found, so far."""
    file = RunFolder(run).metrics
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be on its way
    return [float(entry["cost"]) for entry in entries if entry["kind"] == "validation"]


def run_trial(task: str, words: Sequence[str], run: Path, hear: Callable[[Path], bool]) -> tuple[int, str, bool]:
    """Train in a process of its own, going on where there is something.

    ``hear`` is called when the run has said something, and stops it by a true answer. Returns the status, its last
    words, and whether it was told to stop.
    """
    resume = ["--resume"] if run.exists() else []
    command = [sys.executable, "-m", "elman", "train", task, *words, "--run", str(run), *resume]
    last, stopped = "", False
    # in a session of its own, out of reach of Ctrl-C, which would be a second signal after ours
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        while True:
            try:
                for line in process.stderr:
                    last = line.strip() or last
                    if not stopped and hear(run):
                        stopped = True
                        process.terminate()  # it saves and leaves
                return process.wait(), last.removeprefix("elman: "), stopped
            except KeyboardInterrupt:
                process.terminate()  # it saves and leaves


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [dashed(name) if value else "--no-" + name.replace("_", "-")]
    return [] if value is None else [f"{dashed(name)}={value}"]
