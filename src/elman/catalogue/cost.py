"""What a training step of a cell costs, relative to lstm: measured here, or kept from another measurement.

`elman cells --cost --json > costs.json` makes the file that is kept beside this one.
"""

import datetime
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elman.cells.contract import Cell
    from elman.nn.recurrent import Recurrent

ROUNDS = 3
KEPT = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class Costs:
    """A measurement.

    Attributes:
        date, machine, step: when, on what, and of what.
        relative: the median time of each cell over that of lstm, measured in turns; the median of three rounds.
    """

    date: str
    machine: str
    step: str
    relative: dict[str, float]

    def to_json(self) -> str:
        """As the kept file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


@cache
def kept() -> Costs:
    """The measurement that comes with the package."""
    return Costs(**json.loads(KEPT.read_text(encoding="utf-8")))


def measure(cells: Sequence[tuple[str, "Cell"]], seconds: float, say: Callable[[str], None]) -> Costs:
    """Time a training step of each cell and of lstm in turns, for so many seconds together, in three rounds.

    Where the memory of a layer happens to lie makes a difference, so each round makes layers anew, and the median of
    the rounds' ratios is kept. A cell that reads the layer below is two layers, and is compared with two of lstm.
    """
    import torch

    from elman.catalogue.sample import BATCH, SIZE, STEPS, layers_of
    from elman.cells.lstm import LSTM
    from elman.compiler import build

    ratios: dict[str, list[float]] = {name: [] for name, _ in cells}
    for turn in range(1, ROUNDS + 1):
        for name, cell in cells:
            mine, its = medians([_training(layers_of(c, 2 if cell.below else 1)) for c in (cell, LSTM())], seconds)
            ratios[name].append(mine / its)
            say(f"round {turn} of {ROUNDS}, {name}: {mine / its:.2f}")
    relative = {name: round(statistics.median(found), 2) for name, found in ratios.items()}
    machine = f"{_processor()}, {build.instruction_set()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    step = f"a training step, float32, B = {BATCH}, T = {STEPS}, I = H = {SIZE}, on the engine that auto chooses"
    return Costs(str(datetime.date.today()), machine, step, relative)


def _training(module: "Recurrent") -> Callable[[], object]:
    import torch

    from elman.catalogue.sample import BATCH, STEPS, arguments_of

    arguments = arguments_of(module)
    wanted = [arguments["input"], *(p for p in module.parameters() if p.requires_grad)]
    gradient = torch.randn(STEPS, BATCH, module.output_size)

    def run() -> object:
        return torch.autograd.grad(module(**arguments)[0], wanted, gradient, allow_unused=True)

    return run


def medians(ways: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each way, run in turns for so long together, three rounds at least."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for measured, way in zip(times, ways, strict=True):
            start = time.perf_counter()
            way()
            measured.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
