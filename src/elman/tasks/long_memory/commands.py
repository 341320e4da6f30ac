"""What ``elman train`` and ``evaluate`` do for a problem of long memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from elman.tasks.long_memory import EvaluateOptions, LongMemoryConfig
from elman.tasks.long_memory.job import ProblemJob, score
from elman.tasks.long_memory.model import build_model
from elman.tasks.long_memory.problem import Problem
from elman.tasks.models import engines_of, load_best
from elman.tasks.task import Task
from elman.train.device import choose_device
from elman.train.run import RunFolder
from elman.train.session import session

Pose = Callable[[Any], Problem]  # makes the problem that a configuration describes


def train(task: Task, pose: Pose, given: Mapping[str, Any]) -> None:
    """Train with the ``given`` options, and write the run folder."""
    with session(_config(task), given, task.name) as now:
        config = now.config
        problem = pose(config)
        now.seed()
        model, opened = build_model(config, problem)
        model = now.place(model)
        trainer = now.trainer(ProblemJob(model, problem, now.world))
        with trainer.updater.autocast():
            engines = engines_of(model.recurrent, config.batch_size)
        now.reporter.say(
            f"run {now.run.path}: {task.name}, {problem.steps} steps a sequence; {config.cell} with "
            f"{sum(p.numel() for p in model.parameters()):,} parameters on {now.world.device}, engine {engines}"
            + (f"; chrono initialisation of {', '.join(opened)}" if opened else "; the cell's own initial values")
            + now.going_on(trainer.at)
        )
        end = trainer.fit()
        now.reporter.say(
            f"done: {end.step} steps in {end.seconds:.0f} s; {problem.cost_name} {end.best_cost:.6f} in validation "
            f"at step {end.best_step}; kept in {now.run.model}"
        )


def evaluate(task: Task, pose: Pose, options: EvaluateOptions) -> None:
    """Print the best model's metrics on standard output."""
    run = RunFolder(options.run)
    config = run.load_config(_config(task))
    problem = pose(config)
    model, _ = build_model(config, problem)
    about = load_best(run, model)
    metrics = score(model.to(choose_device(options.device)), problem, problem.part(options.part))
    if options.format == "json":
        print(json.dumps({**metrics, "data": options.part, "step": about["step"]}))
    else:
        print(f"{options.part}: {problem.describe(metrics)} (model of step {about['step']})")


def _config(task: Task) -> type[LongMemoryConfig]:
    assert issubclass(task.config, LongMemoryConfig)
    return task.config
