"""Two gigabytes of text: flat memory, fast enough, and nothing done twice after a kill."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elman.data.standard_library import standard_library_files

pytestmark = pytest.mark.slow

SIZE = 2_000_000_000
FILES = 3
MEMORY = 1_000_000_000
SPEED = 20e6  # bytes a second of processor time

PREPARE = """
import json, resource, sys, time
from elman.data.prepare import prepare
from elman.data.recipe import Recipe

if __name__ == "__main__":
    began = time.monotonic()
    corpus = prepare(Recipe(sys.argv[1], validation=sys.argv[2]), sys.argv[3], sys.stderr.write)
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({
        "tokens": len(corpus.parts["train"].tokens),
        "seconds": time.monotonic() - began,
        "processor": sum(use.ru_utime + use.ru_stime for use in (own, children)),
        "memory": own.ru_maxrss * 1024,
        "memory_of_a_child": children.ru_maxrss * 1024,
    }))
"""
READ = """
import pathlib, re, sys
from elman.data.lanes import Lanes, RandomWindows
from elman.data.prepare import prepare
from elman.data.recipe import Recipe

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

if __name__ == "__main__":
    corpus = prepare(Recipe(sys.argv[1], validation=sys.argv[2]), sys.argv[3], print)
    tokens = corpus.parts["train"].tokens
    before = peak()
    for start in range(0, len(tokens), 1 << 20):
        tokens[start : start + (1 << 20)]
    lanes, windows = Lanes(tokens, 64, 64), RandomWindows(tokens, 64, 64, seed=0)
    for index in range(2000):
        lanes.window(0, 0, index * 200, index * 200 + 64)
        windows.window(0, index, 0, 64)
    print((peak() - before) * 1024)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of text files, 2 GB in all, made by repetition of Python's library."""
    folder = tmp_path_factory.mktemp("big")
    if shutil.disk_usage(folder).free < 3 * SIZE:
        pytest.skip("not enough room on the disk")
    once = b"".join(file.read_bytes() for file in standard_library_files())
    (folder / "text").mkdir()
    for number in range(FILES):
        with open(folder / "text" / f"{number}.txt", "wb") as file:
            while file.tell() < SIZE // FILES:
                file.write(once)
    (folder / "validation.txt").write_bytes(once[:100_000])
    yield folder
    shutil.rmtree(folder)


def start(folder: Path, script: str) -> "subprocess.Popen[str]":
    (folder / "script.py").write_text(script)
    command = [sys.executable, "script.py", "text", "validation.txt", "tokens"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def shards(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob("tokens/*/shards/*.json")}


def test_two_gigabytes(text: Path) -> None:
    size = sum(file.stat().st_size for file in (text / "text").iterdir())
    assert size >= SIZE
    first = start(text, PREPARE)
    deadline = time.monotonic() + 600
    while len(shards(text)) < 10:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    time.sleep(0.5)
    done = shards(text)
    assert 10 <= len(done) < 30

    second = start(text, PREPARE)
    measured = json.loads(second.communicate(timeout=600)[0])
    assert second.returncode == 0
    once = "".join(file.read_text(encoding="utf-8") for file in standard_library_files())
    assert measured["tokens"] == size // len(once.encode()) * len(once)
    now = shards(text)
    assert all(now[file] == when for file, when in done.items())

    shutil.rmtree(text / "tokens")
    whole = start(text, PREPARE)
    measured = json.loads(whole.communicate(timeout=600)[0])
    memory = measured["memory"] + len(os.sched_getaffinity(0)) * measured["memory_of_a_child"]
    speed = size / measured["processor"]
    print(
        f"{size / 1e9:.2f} GB in {measured['seconds']:.1f} s: {speed / 1e6:.0f} MB/s a core; "
        f"{memory / 1e6:.0f} MB of memory, of which {measured['memory'] / 1e6:.0f} in the first process"
    )
    assert memory < MEMORY
    assert speed > SPEED

    reading = start(text, READ)
    grown = int(reading.communicate(timeout=600)[0])
    print(f"reading all of it and 4,000 batches: {grown / 1e6:.0f} MB more")
    assert grown < MEMORY / 4
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY
