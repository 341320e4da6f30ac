"""The same work on many tasks, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from elman.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> Iterator[Result]:
    """The results, in the order of the tasks; ``function`` is one that a new process can import.

    One process or one task is no reason to start any. Processes end when this one does, however it ends.

    Raises:
        UserError: a process died; also what ``function`` raises.
    """
    if min(processes, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    before = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(processes, context, _begin) as pool:
        try:
            waiting = [pool.submit(function, task) for task in tasks]
            for future in waiting:
                yield future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a process that prepares the text was killed, perhaps for lack of memory: what is done is kept; "
                    "start again, with fewer --processes if memory is short"
                ) from None
            raise


def _begin() -> None:
    """First thing in a process: Ctrl-C is the parent's business, and nobody outlives a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
