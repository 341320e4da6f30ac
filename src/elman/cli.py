"""The command line: ``elman train | evaluate | generate | predict | runs | sweep | cells | tasks``.

Results go to standard output; progress and errors to standard error. Exit status: 2 for a wrong command or option, 1
for a failure, 128 + N when signal N stopped a run. Nothing here imports torch before a command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import elman
from elman.errors import UsageError, UserError, did_you_mean

USAGE = """\
usage: elman train TASK [options]       train a model; makes a run folder
       elman evaluate RUN [options]     metrics of a run's best model
       elman generate RUN [options]     text from a run's best model
       elman predict RUN [options]      predictions, for tasks that have them
       elman runs [FOLDER] [options]    the runs of a folder, in a table and as curves
       elman sweep TASK [options] -- [options of train]
                                        many runs over a space of options
       elman cells [NAME] [options]     the recurrent cells, or one in full
       elman tasks                      the tasks
       elman --version

`elman train TASK --help`, `elman evaluate RUN --help` and so on show the options. A cell is a name that `elman cells`
lists, or MODULE:CLASS for a cell of your own in MODULE.py here, or anywhere that Python imports from.
"""
RUN_COMMANDS = {
    "evaluate": "Print the metrics of a run's best model.",
    "generate": "Continue a text with a run's best model.",
    "predict": "Print the predictions of a run's best model.",
}
COMMANDS = ("train", *RUN_COMMANDS, "runs", "sweep", "cells", "tasks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. A failure is one line on standard error."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except UserError as error:
        if str(error):  # another process may have told it
            print(f"elman: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("elman: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has left; a second error at exit would only be noise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print(f"elman: not enough memory for this model: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"elman: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments:
        raise UsageError(f"a command is missing: choose from {', '.join(COMMANDS)}; `elman --help` says more")
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
    elif command == "--version":
        print(f"elman {elman.__version__}")
    elif command == "cells":
        from elman.catalogue import command as catalogue

        _see_modules_here()
        catalogue.run(rest)
    elif command == "tasks":
        _no_arguments(command, rest)
        from elman import tasks

        print("\n".join(f"{task.name}\t{task.summary}" for task in tasks.TASKS))
    elif command == "train":
        _train(rest)
    elif command == "runs":
        _runs(rest)
    elif command == "sweep":
        _sweep(rest)
    elif command in RUN_COMMANDS:
        _use_run(command, rest)
    else:
        raise UsageError(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}")


def _train(arguments: list[str]) -> None:
    from elman import tasks
    from elman.train import options

    _see_modules_here()
    if not arguments or arguments[0].startswith("-"):
        if "-h" in arguments or "--help" in arguments:
            print("usage: elman train TASK [options]; `elman tasks` lists the tasks")
            return
        raise UsageError("a task comes first: elman train TASK [options]; `elman tasks` lists them")
    task = tasks.get(arguments[0])
    given = options.parse(
        task.config,
        arguments[1:],
        program=f"elman train {task.name}",
        description=f"Train a {task.summary}.",
        header={"task": task.name},
    )
    task.config(**given)  # type: ignore[arg-type]  # options that contradict are found before torch is imported
    task.command("train")(given)


def _runs(arguments: list[str]) -> None:
    from elman.train import options, runs

    about = "Print the runs of a folder, best first."
    given = options.parse(runs.RunsOptions, arguments, program="elman runs", description=about)
    runs.command(runs.RunsOptions(**given))  # type: ignore[arg-type]


def _sweep(arguments: list[str]) -> None:
    from elman import tasks
    from elman.train import options

    try:
        from elman.train import sweep
    except ImportError as error:
        raise UsageError(f"sweeps need Optuna ({error}): pip install 'elman[sweep]'") from None
    _see_modules_here()
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = arguments[:cut], arguments[cut + 1 :]
    if not own or own[0].startswith("-"):
        if "-h" in own or "--help" in own:
            print(
                options.build_parser(sweep.SweepOptions, "elman sweep TASK", "Search for good options.").format_help()
            )
            return
        raise UsageError("a task comes first: elman sweep TASK [options] -- [options of train]")
    task = tasks.get(own[0])
    about = f"Search for good options of a {task.summary}."
    asked = options.parse(sweep.SweepOptions, own[1:], program=f"elman sweep {task.name}", description=about)
    given = options.parse(
        task.config, rest, program=f"elman train {task.name}", description="", header={"task": task.name}
    )
    task.config(**given)  # type: ignore[arg-type]
    sweep.sweep(task.name, task.config, sweep.SweepOptions(**asked), given)  # type: ignore[arg-type]


def _use_run(command: str, arguments: list[str]) -> None:
    from elman import tasks
    from elman.train import options

    _see_modules_here()
    about = RUN_COMMANDS[command]
    words = [word for word in arguments if not word.startswith("-")]
    # a word may also be an option's value, and only the run's task knows the options
    runs = [word for word in words if os.path.isfile(os.path.join(word, "config.yaml"))] or words
    if not runs:
        if "-h" not in arguments and "--help" not in arguments:
            raise UsageError(f"the run folder is missing: elman {command} RUN [options]")
        for task in tasks.TASKS:
            if command in task.options:
                parser = options.build_parser(task.options[command], f"elman {command}", f"{about} Task {task.name}.")
                print(parser.format_help())
        return
    task = tasks.get(options.saved_task(runs[0]))
    if command not in task.options:
        raise UsageError(f"task {task.name} has no {command}; it has {', '.join(task.options)}")
    kind = task.options[command]
    given = options.parse(kind, arguments, program=f"elman {command}", description=about)
    task.command(command)(kind(**given))


def _see_modules_here() -> None:
    """Let `--cell module:Class` find a module in this folder, after all that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _no_arguments(command: str, rest: list[str]) -> None:
    if rest:
        raise UsageError(f"elman {command} takes no arguments, got {rest[0]!r}")
