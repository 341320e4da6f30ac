"""Checkpoints: a tree of tensors and plain values in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from elman.errors import UserError


def save(path: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, tuples (named too), tensors, numbers, texts and None."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(tree, tensors))
    metadata = {"tree": text, "crc32": _checksum(text, tensors)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load(path: Path) -> Any:
    """The tree that :func:`save` wrote, with tensors on the CPU. Raises UserError where the file is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        text = metadata["tree"]
        if metadata["crc32"] != _checksum(text, tensors):
            raise ValueError("its checksum does not match")
        return _decode(json.loads(text), tensors)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def partial_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk other files need the room
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


class Checkpoints:
    """The numbered checkpoints of a run: ``step-000000123.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, tree: Any, keep: int, best: int) -> None:
        """Write one and delete all but the last ``keep`` and that of the step ``best``."""
        save(self.folder / f"step-{step:09d}.safetensors", tree)
        for old in self.files()[:-keep]:
            if old.name != f"step-{best:09d}.safetensors":
                old.unlink()

    def give_up(self, step: int) -> None:
        """Delete the checkpoint of a step where it is the newest of several."""
        files = self.files()
        if len(files) > 1 and files[-1].name == f"step-{step:09d}.safetensors":
            files[-1].unlink()

    def load_latest(self, say: Callable[[str], None]) -> Any:
        """The newest readable tree, or None where there is no checkpoint; ``say`` hears of damaged ones.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        files, damage = self.files(), []
        for file in reversed(files):
            try:
                tree = load(file)
            except UserError as error:
                damage.append(f"{error}; taking the checkpoint before it")
                continue
            for line in damage:
                say(line)
            # later ones would outlive the new steps that replace them
            for later in files[files.index(file) + 1 :]:
                later.unlink()
            return tree
        if files:
            raise UserError(f"every checkpoint in {self.folder} is damaged; start again in another run folder")
        return None


def _encode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for a tree. Containers and tensors become one-key objects, so that nothing else can look like them."""
    if isinstance(tree, Tensor):
        name = f"{len(tensors):05d}"
        # a copy: safetensors refuses tensors that share memory
        tensors[name] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, _encode(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"named": list(tree._fields), "values": [_encode(value, tensors) for value in tree]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [_encode(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint cannot hold a {type(tree).__name__}")


def _decode(code: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(code, dict):
        return code
    if "tensor" in code:
        return tensors[code["tensor"]]
    if "dict" in code:
        return {key: _decode(value, tensors) for key, value in code["dict"]}
    if "named" in code:
        return named(code["named"], [_decode(value, tensors) for value in code["values"]])
    if "tuple" in code:
        return tuple(_decode(value, tensors) for value in code["tuple"])
    return [_decode(value, tensors) for value in code["list"]]


def named(names: list[str], values: list[Any]) -> Any:
    """A named tuple, which can be pickled though its class has no name that could be imported."""
    kind = namedtuple("State", names)  # type: ignore[misc]

    def reduce(state: Any) -> tuple[Any, ...]:
        return named, (list(state._fields), list(state))

    setattr(kind, "__reduce__", reduce)  # noqa: B010  (mypy would not have the assignment)
    return kind(*values)


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """safetensors checks sizes only; this finds changed bytes."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
