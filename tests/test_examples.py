"""Each example runs as a user would run it."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_hello_is_learnt_and_sampled_back() -> None:
    path = EXAMPLES / "hello.py"
    assert len(path.read_text().splitlines()) < 40
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in run.stdout.splitlines() if line[:1] in "hell" and line[1:2] == " "]
    best = ["helo"[max(range(4), key=lambda k: float(row[1 + k]))] for row in rows]
    assert "".join(best) == "ello"
    assert all(abs(sum(map(float, row[1:])) - 1) < 0.01 for row in rows)
    assert run.stdout.strip().endswith("sampled: hello")


def test_words_are_written_backwards() -> None:
    run = subprocess.run([sys.executable, str(EXAMPLES / "reverse.py")], capture_output=True, text=True, check=True)
    pairs = [line.split(" -> ") for line in run.stdout.splitlines() if " -> " in line]
    assert len(pairs) == 3
    right = sum(a == b for word, written in pairs for a, b in zip(word[::-1], written, strict=True))
    assert right >= 14
