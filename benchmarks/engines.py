"""Versions of the engine's C++ against each other, in one process, on the same memory, in turns.

    git worktree add ../before HEAD~1
    python benchmarks/engines.py ../before/src/elman/engine src/elman/engine --cells lstm,brc --shapes 32,64,256,256

Two processes cannot be compared within some ten per cent on a noisy machine: each has other pages of memory, at other
times. Here kernels, their tiles and the products are compiled from the headers of each folder, and a layer's jobs go
through a switch. Python's part is the checkout's that runs, so folders in which tiles are called otherwise (`tiles.h`),
or products ask otherwise for their memory (`elman_workspace`), cannot be compared.

What the caches keep counts: with `--pause 0.03` each run finds them as if other layers had run in between.

Shown are, forward and in training, medians of the milliseconds that kernels, products and the whole call take, and of
their ratios to the first folder's in the same round: below 1 is faster.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import elman
import script
from elman.compiler import build
from elman.engine import kernel, products, runs, sinks

VERSIONS = 8
_SWITCH = (
    f"enum {{ VERSIONS = {VERSIONS} }};"
    + """
#include "vectors.h"
#include "tiles.h"
enum { FUNCTIONS = 512 };
typedef int (*Job)(void *);
static int version;
static Job jobs[FUNCTIONS][VERSIONS];
template <int N> static int job(void *argument) { return jobs[N][version](argument); }
template <int... N> static void *find(int number, Indices<N...>) {
    static const Job found[] = {job<N>...};
    return (void *)found[number];
}
EXPORT void *switched(int number) { return find(number, Counted<FUNCTIONS>::Type{}); }
EXPORT void set(int number, int which, Job function) { jobs[number][which] = function; }
EXPORT void choose(int which) { version = which; }
EXPORT int tiles() { return TILES; }
"""
)


class Versions:
    """All libraries in the versions of several folders, of which one is chosen at a time."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._load, self._address_of = build.load, sinks.address_of
        self._switch = self._load(_SWITCH, "float")
        self._switch.switched.restype = ctypes.c_void_p
        self._switch.set.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        self._libraries: list[list[ctypes.CDLL]] = []
        self._known: dict[int, int] = {}
        self._tables: list[tuple[Any, list[int]]] = []  # of tiles: the one that kernels read, and all versions'
        for module, name, function in (
            (build, "load", self._all),
            (kernel, "address_of", self._switched),
            (products, "address_of", self._switched),
        ):
            setattr(module, name, function)

    def choose(self, which: int) -> None:
        """Run this version from now on."""
        self._switch.choose(which)
        for table, versions in self._tables:
            ctypes.memmove(table, versions[which], len(table) * 8)

    def _all(self, source: str, real: str) -> ctypes.CDLL:
        own = build._ENGINE
        builds = []
        for folder in self._folders:
            build._ENGINE = folder
            build._header.cache_clear()
            builds.append(build.start(source, real))
        build._ENGINE = own
        build._header.cache_clear()
        libraries = [one.result() for one in builds]
        self._libraries.append(libraries)
        if hasattr(libraries[0], "elman_tiles"):
            sizes = (("elman_workspace", 3), ("elman_packed_size", 2))
            common = {name: _most([getattr(library, name) for library in libraries], n) for name, n in sizes}
            common["elman_tiles"] = self._table([library.elman_tiles for library in libraries])
            for name, function in common.items():
                setattr(libraries[0], name, function)
        return libraries[0]

    def _table(self, functions: list[Any]) -> Callable[..., int]:
        for function in functions:
            function.restype = ctypes.c_void_p
        versions = [function() for function in functions]
        tiles = self._switch.tiles()
        table = (ctypes.c_void_p * tiles).from_buffer_copy(ctypes.string_at(versions[0], tiles * 8))
        self._tables.append((table, versions))
        return lambda: ctypes.addressof(table)

    def _switched(self, function: Any) -> int:
        address = self._address_of(function)
        for versions in self._libraries if address not in self._known else ():
            found = [getattr(library, function.__name__, None) for library in versions]
            if found[0] is not None and self._address_of(found[0]) == address:
                number = len(self._known)
                for which, one in enumerate(found):
                    self._switch.set(number, which, self._address_of(one))
                self._known[address] = int(self._switch.switched(number))
        return self._known[address]


def _pass_time(seconds: float) -> None:
    """Without memory of one's own, but with all threads: those that sleep might wake on one core."""
    until, numbers = time.perf_counter() + seconds, torch.ones(256, 256)
    while time.perf_counter() < until:
        numbers @ numbers


def _tiles(folder: Path) -> str:
    return (folder / "tiles.h").read_text()


def _most(sizes: list[Any], arguments: int) -> Callable[..., int]:
    for size in sizes:
        size.argtypes, size.restype = [ctypes.c_int64] * arguments, ctypes.c_int64
    return lambda *given: max(size(*given) for size in sizes)


def measure(
    versions: Versions, count: int, way: Callable[[], object], rounds: int, pause: float
) -> list[list[dict[str, float]]]:
    """Milliseconds by kind of job, and of the `call`: for each version those of each round.

    Args:
        pause: seconds before each run.
    """
    found: list[list[dict[str, float]]] = [[] for _ in range(count)]
    for number in range(rounds):
        for turn in range(count):
            which = (turn + number) % count
            versions.choose(which)
            way()
            taken = []
            for _ in range(3):
                _pass_time(pause)
                runs.spent, start = {}, time.perf_counter()
                way()
                taken.append(
                    {"call": (time.perf_counter() - start) * 1e3} | {k: v / 1e6 for k, v in runs.spent.items()}
                )
                runs.spent = None
            found[which].append({k: statistics.median(run.get(k, 0.0) for run in taken) for k in taken[0]})
    return found


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="with the engine's headers; the first is compared with")
    parser.add_argument("--cells", default="lstm,gru,elman", help="names, with commas")
    parser.add_argument("--shapes", default="32,64,256,256", help="B,T,I,H of each, with spaces")
    parser.add_argument("--rounds", type=int, default=15, help="of three runs of each version")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds before each run, in which others fill the shared cache"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    elman.use_engine("cpu")
    folders = [folder.resolve() for folder in options.folders]
    if missing := [str(folder) for folder in folders if not (folder / "recurrence.h").is_file()]:
        parser.error(f"no recurrence.h in {', '.join(missing)}")
    if len(folders) > VERSIONS:
        parser.error(f"{len(folders)} folders; {VERSIONS} are the most")
    if other := [str(folder) for folder in folders if _tiles(folder) != _tiles(folders[0])]:
        parser.error(f"tiles.h of {', '.join(other)} differs from the first folder's, whose tiles all would call")
    if unknown := [name for name in options.cells.split(",") if name not in elman.cells.names()]:
        parser.error(f"--cells: no cell is called {', '.join(map(repr, unknown))}; `elman cells` lists them")
    shapes = [shape.split(",") for shape in options.shapes.split()]
    if not all(len(shape) == 4 and all(n.isdecimal() and int(n) for n in shape) for shape in shapes) or not shapes:
        parser.error(f"--shapes: expected B,T,I,H of each, with spaces, got {options.shapes!r}")
    versions = Versions(folders)
    print("| cell | B, T, I, H | way | folder | kernels | ratio | packing | ratio | products | ratio | call | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for shape in shapes:
        batch, steps, inputs, hidden = map(int, shape)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        for cell in options.cells.split(","):
            layer = elman.Recurrent(cell, inputs, hidden)

            def forward(layer: elman.Recurrent = layer, x: torch.Tensor = x) -> None:
                with torch.no_grad():
                    layer(x)

            def training(layer: elman.Recurrent = layer, x: torch.Tensor = x) -> None:
                output = layer(x)[0]
                output.backward(torch.ones_like(output))

            for way in (forward, training):
                found = measure(versions, len(folders), way, options.rounds, options.pause)
                for number, rounds in enumerate(found):
                    shown = [cell, ", ".join(shape), way.__name__, str(options.folders[number])]
                    for kind in ("kernel", "pack", "multiply", "call"):
                        shown.append(f"{statistics.median(run.get(kind, 0.0) for run in rounds):.2f}")
                        pairs = [(a.get(kind, 0.0), b.get(kind, 0.0)) for a, b in zip(rounds, found[0], strict=True)]
                        ratios = [a / b for a, b in pairs if b]
                        shown.append(f"{statistics.median(ratios):.3f}" if ratios else "-")
                    print("| " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    script.run(main)
