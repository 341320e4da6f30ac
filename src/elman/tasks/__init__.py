"""The tasks, by name. Importing them needs no torch."""

from __future__ import annotations

from elman.errors import UsageError, did_you_mean
from elman.tasks.language_model import TASK as LANGUAGE_MODEL
from elman.tasks.long_memory import TASKS as LONG_MEMORY
from elman.tasks.task import Task

TASKS: tuple[Task, ...] = (LANGUAGE_MODEL, *LONG_MEMORY)


def get(name: str) -> Task:
    """The task with a name or alias. Raises UsageError with the nearest name."""
    for task in TASKS:
        if name == task.name or name in task.aliases:
            return task
    known = [known for task in TASKS for known in (task.name, *task.aliases)]
    raise UsageError(f"unknown task {name!r}{did_you_mean(name, known)}")


__all__ = ["TASKS", "Task", "get"]
