"""docs/your-own-cell.md does what it says: its blocks are run as they stand, in their order."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elman import cells

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/your-own-cell.md").read_text(encoding="utf-8"), re.M | re.S)


def test_every_kind_of_block_is_known() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "text", "sh", "diff"}


def test_the_blocks_run_and_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cells, "_registry", dict(cells._registry))
    names: dict[str, Any] = {}
    printed = ""
    outputs: list[str] = []
    try:
        for kind, block in BLOCKS:
            file = re.match(r"# (\w+\.py)\n", block)
            if kind == "python" and file:
                Path(file[1]).write_text(block.removeprefix(file[0]))
            elif kind == "python":
                with contextlib.redirect_stdout(io.StringIO()) as shown:
                    exec(block, names)
                printed = shown.getvalue()
            elif kind == "text":
                assert printed == block
            elif kind == "sh":
                for line in block.splitlines():
                    program, *arguments = shlex.split(line)
                    assert program == "elman"
                    run = subprocess.run([sys.executable, "-m", "elman", *arguments], capture_output=True, text=True)
                    assert run.returncode == 0, run.stderr
                    outputs.append(run.stdout)
        assert "h_t = (1 - g) ∘ h_{t-1} + g ∘ n" in outputs[0]
        assert outputs[-1].startswith("def ")
        assert names["layer"].cell == names["TwoSpeed"]()
    finally:
        sys.modules.pop("two_speed", None)


def test_the_change_to_the_registry_applies() -> None:
    (diff,) = [block for kind, block in BLOCKS if kind == "diff"]
    header, lines = diff.split("@@\n")
    path = re.findall(r"^\+\+\+ b/(.*)$", header, re.M)[0]
    before = "".join(line[1:] for line in lines.splitlines(keepends=True) if not line.startswith("+"))
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count(before) == 1
    assert [line[1:].strip() for line in lines.splitlines() if line.startswith("+")] == [
        '"two_speed": "two_speed.TwoSpeed",'
    ]


def test_one_file_and_that_line_are_all_it_takes(tmp_path: Path) -> None:
    """In a copy of Elman: the name is known, has its equations and its place in the document, and runs compiled."""
    copy = tmp_path / "elman"
    shutil.copytree(ROOT / "src/elman", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (file,) = [block for kind, block in BLOCKS if kind == "python" and block.startswith("# two_speed.py")]
    (copy / "cells/two_speed.py").write_text(file, encoding="utf-8")
    (diff,) = [block for kind, block in BLOCKS if kind == "diff"]
    lines = diff.split("@@\n")[1].splitlines(keepends=True)
    registry = copy / "cells/__init__.py"
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    after = "".join(line[1:] for line in lines)
    registry.write_text(registry.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    code = """
import torch, elman
from elman.catalogue.markdown import document
layer = elman.Recurrent("two_speed", 3, 8, num_layers=2, bidirectional=True)
with elman.use_engine("cpu"):
    layer(torch.randn(5, 2, 3), lengths=[5, 3])[0].sum().backward()
assert "### `two_speed`" in document()
print(elman.cells.names()[-1], elman.__file__)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["two_speed", str(copy / "__init__.py")]
