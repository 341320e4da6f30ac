"""Options as dataclasses: one definition for Python, the command line and YAML.

A field made by :func:`option` gives type, default, help and bounds. `jsonargparse` would do the parsing, but its errors
take several lines and name no nearest option; these few functions over `argparse` and PyYAML do both.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from elman.errors import Parser, UsageError, UserError, did_you_mean

Value = Union[bool, int, float, str, None, tuple[Any, ...]]  # noqa: UP007  (used at run time, also on Python 3.10)


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    positional: bool = False,
    path: bool = False,
    saved: bool = True,
    resumable: bool = False,
) -> Any:
    """A dataclass field that is also an option.

    Args:
        default: the value unless given; ``dataclasses.MISSING`` where it must be given.
        help: one line.
        group: heading in the help text.
        low, high, above, below: inclusive and exclusive bounds of a number.
        positional: an argument without a dashed name.
        path: a file or folder; made absolute, so that a saved configuration works from any folder.
        saved: part of the configuration that a run keeps.
        resumable: may change when a run is resumed.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    flags = {"positional": positional, "path": path, "saved": saved, "resumable": resumable}
    metadata = {"help": help, "group": group, **flags}
    return dataclasses.field(default=default, metadata={**metadata, **bounds})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of all options: checks types and bounds however an object was made.

    Raises:
        UsageError: a value has the wrong type or lies out of bounds.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = convert(field.name, hints[field.name], getattr(self, field.name))
            _check_bounds(field, value)
            if field.metadata["path"] and isinstance(value, str):
                value = os.path.abspath(os.path.expanduser(value))
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Checks that concern several options; raises UsageError."""


AnyOptions = TypeVar("AnyOptions", bound=Options)


def dashed(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def convert(name: str, hint: Any, value: object) -> Value:
    """A value, or its text, as the type that ``hint`` asks for. Raises UsageError."""
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        (hint,) = (choice for choice in choices if choice is not type(None))
        choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in choices:
            raise UsageError(f"unknown {dashed(name)} {value!r}{did_you_mean(str(value), map(str, choices))}")
        return typing.cast(Value, value)
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if not parts:
            raise UsageError(f"{dashed(name)} must have a value, or several between commas, got none")
        return tuple(convert(name, choices[0], part.strip() if isinstance(part, str) else part) for part in parts)
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        if hint is bool and isinstance(value, bool):
            return value
        if hint is int and isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
        if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
        if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    except ValueError:
        pass
    kind = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}[hint]
    raise UsageError(f"{dashed(name)} must be {kind}, got {value!r}")


def _check_bounds(field: dataclasses.Field[Any], value: Value) -> None:
    low, high, above, below = (field.metadata.get(name) for name in ("low", "high", "above", "below"))
    for part in value if isinstance(value, tuple) else ():
        _check_bounds(field, part)
    if value is None or not isinstance(value, (int, float)):
        return
    for broken, rule in (
        (low is not None and value < low, f"at least {low}"),
        (high is not None and value > high, f"at most {high}"),
        (above is not None and value <= above, f"more than {above}"),
        (below is not None and value >= below, f"less than {below}"),
    ):
        if broken:
            raise UsageError(f"{dashed(field.name)} must be {rule}, got {value}")


def parse(
    kind: type[AnyOptions],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    header: Mapping[str, str] | None = None,
) -> dict[str, Value]:
    """The options given on a command line and in the YAML file that its ``--config`` names; the command line wins.

    ``header`` is what a saved configuration holds beside the options: its keys may stand in the file, with its values.
    Only what was given is returned, converted to its type. ``--help`` prints and exits.

    Raises:
        UsageError: an unknown option, a wrong type, an unreadable file.
    """
    hints = typing.get_type_hints(kind)
    has_config = header is not None
    parser = build_parser(kind, program, description, has_config)
    namespace, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-"):
            known = [dashed(field.name) for field in dataclasses.fields(kind) if not field.metadata["positional"]]
            known += ["--config"] if has_config else []
            raise UsageError(f"unknown option {word.split('=')[0]}{did_you_mean(word.split('=')[0], known)}")
        raise UsageError(f"unexpected argument {word!r}")
    given: dict[str, Value] = vars(namespace)
    file = given.pop("config", None)
    from_file = read_yaml(str(file), kind, header or {}) if file is not None else {}
    return {name: convert(name, hints[name], value) for name, value in {**from_file, **given}.items()}


def build_parser(kind: type[Options], program: str, description: str, config: bool = False) -> argparse.ArgumentParser:
    """The options as `argparse` knows them; ``config`` adds ``--config FILE``. Its errors are UsageErrors."""
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    groups: dict[str, Any] = {"": parser}
    if config:
        parser.add_argument("--config", metavar="FILE", help="YAML file of options; a run's config.yaml is one")
    for field in dataclasses.fields(kind):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_argument(groups[name], field, hints[field.name])
    return parser


def read_yaml(path: str | Path, kind: type[Options], header: Mapping[str, str]) -> dict[str, Value]:
    """The options in a YAML file. Raises UsageError where it cannot be read or holds an unknown key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML{where}: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold options as `name: value` lines")
    hints = typing.get_type_hints(kind)
    found: dict[str, Value] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in header:
            if value != header[name]:
                raise UsageError(f"{path} is for {name} {value!r}, not {header[name]!r}")
        elif name in hints:
            found[name] = convert(name, hints[name], value)
        else:
            raise UsageError(f"{path}: unknown option {key!r}{did_you_mean(name, hints)}")
    return found


def to_yaml(options: Options, header: Mapping[str, str]) -> str:
    """The configuration that a run keeps, which ``--config`` reads back."""
    saved = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.metadata["saved"]
    }
    return str(yaml.safe_dump({**header, **saved}, sort_keys=False, allow_unicode=True))


def saved_task(folder: str | Path) -> str:
    """The task that a run folder's ``config.yaml`` names. Raises UserError where this is no run folder."""
    file = Path(folder) / "config.yaml"
    if not Path(folder).is_dir():
        raise UserError(f"no such run folder: {folder}")
    try:
        return str(yaml.safe_load(file.read_text(encoding="utf-8"))["task"])
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no config.yaml") from None
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise UserError(f"{file} is damaged: it does not name a task") from None


def _add_argument(parser: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    text = field.metadata["help"].replace("%", "%%")
    if field.default not in (None, dataclasses.MISSING, ""):
        text += f" (default: {field.default})"
    if field.metadata["positional"]:
        optional = {} if field.default is dataclasses.MISSING else {"nargs": "?", "default": argparse.SUPPRESS}
        parser.add_argument(field.name, help=text, metavar=field.name.upper(), **optional)
    elif hint is bool:
        parser.add_argument(
            dashed(field.name), action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS
        )
    else:
        literal, several = typing.get_origin(hint) is Literal, typing.get_origin(hint) is tuple
        inner = next((part for part in typing.get_args(hint) if part is not type(None)), hint)
        if typing.get_origin(inner) is tuple:
            inner, several = typing.get_args(inner)[0], True
        metavar = "{" + ",".join(typing.get_args(hint)) + "}" if literal else getattr(inner, "__name__", "str").upper()
        metavar = {"STR": "TEXT", "INT": "N", "FLOAT": "X"}.get(metavar, metavar)
        metavar += f"[,{metavar}…]" * several
        parser.add_argument(dashed(field.name), metavar=metavar, help=text, default=argparse.SUPPRESS)
