"""The contract of a cell as checks that any cell can be put to, a user's own included.

`check_cell(MyCell)` runs them all on every engine; `CHECKS` names each, and `SUITES` says which are run where. Every
check compares values and gradients: of the outputs and the final state with respect to the input, the initial state and
all parameters, under random weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from elman.cells.contract import Cell
from elman.cells.structure import LowRank
from elman.engine.dispatch import explain, use_engine
from elman.engine.draws import Noise
from elman.nn.recurrent import Recurrent, as_cell

# Allowed difference of two ways to compute the same numbers, relative to the largest of them. Nearly all cells stay
# within a few epsilons. LRU with the Mogrifier needs it all: gates multiplied five times by each other's results lose
# digits, and the reference's own gradients in float32 are up to 1,300 epsilons from those in float64.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2.5e-4}


@dataclass(frozen=True)
class Case:
    """A cell with the sizes, the engine, the dtype and the options of `Recurrent` that a check runs it at.

    Of a cell with `equal_sizes`, the input has `hidden_size` values whatever `input_size` says, and bidirectional
    layers, whose outputs are twice as wide, are not stacked.
    """

    cell: Cell
    engine: str = "reference"
    dtype: torch.dtype = torch.float64
    input_size: int = 3
    hidden_size: int = 8
    num_layers: int = 2
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def noise(self, step: int = 0, row: int = 0) -> Noise:
        """The same masks for the same row and step in all calls of a check; without random options it says nothing."""
        return Noise(self.seed, step, row)

    @property
    def inputs(self) -> int:
        """The width of the input."""
        return self.hidden_size if self.cell.equal_sizes else self.input_size

    def module(self, **arguments: Any) -> Recurrent:
        """Layers of the cell with every parameter random, those that start constant included."""
        torch.manual_seed(self.seed)
        sizes: dict[str, Any] = {"cell": self.cell, "hidden_size": self.hidden_size, "num_layers": self.num_layers}
        sizes |= {**self.options, **arguments}
        if self.cell.equal_sizes and sizes.get("bidirectional"):
            sizes["num_layers"] = 1
        module = Recurrent(input_size=self.inputs, dtype=self.dtype, **sizes)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def input(self, steps: int, batch: int) -> Tensor:
        """Random input, [T, B, I]."""
        return torch.randn(steps, batch, self.inputs, dtype=self.dtype)

    def extras(self, steps: int, batch: int) -> dict[str, Tensor]:
        """Random positive extra inputs, as many as the cell has, [T, B, width]."""
        layout = self.module().layers[0][1]
        return {e.name: torch.rand(steps, batch, e.width, dtype=self.dtype) + 0.5 for e in layout.extras}

    def state(self, module: Recurrent, batch: int) -> tuple[Tensor, ...]:
        """A state that the cell itself has reached, which any cell accepts; one leaf tensor for each entry."""
        with torch.no_grad():
            _, state = module(self.input(3, batch), extras=self.extras(3, batch), noise=self.noise())
        values = _flat(*state) if module.layered else state if isinstance(state, tuple) else (state,)
        return tuple(v.detach().clone().requires_grad_(v.is_floating_point()) for v in values)

    def pass_in(self, state: Iterable[Tensor]) -> Any:
        """State entries in the form that a module takes."""
        values = tuple(state)
        module = self.module()
        if not module.layered:
            return values if len(values) > 1 else values[0]
        left = iter(values)
        layers = [tuple(next(left) for _ in parts.states) for _, parts in module.layers]
        return tuple(v if len(v) > 1 else v[0] for v in layers)


def compare(
    module: Recurrent,
    leaves: Iterable[Tensor],
    ways: Iterable[Callable[[], list[Tensor]]],
    what: str,
) -> None:
    """Assert that two ways of computing the same tensors agree, and so do the gradients of their weighted sum.

    Args:
        module: whose parameters are differentiated.
        leaves: further tensors to differentiate with respect to; integers are passed over.
        ways: two functions that give the same list of tensors.
        what: named by a failure.
    """
    named: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    named |= {f"leaf {i}": leaf for i, leaf in enumerate(leaves) if leaf.is_floating_point()}
    results = []
    for way in ways:
        tensors = way()
        generator = torch.Generator("cpu").manual_seed(1)
        weighted = [
            (v * torch.randn(v.shape, generator=generator, dtype=v.dtype, device="cpu").to(v.device)).sum()
            for v in tensors
            if v.is_floating_point()
        ]
        total = torch.stack(weighted).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
        results.append(([v.detach() for v in tensors], gradients))
    (values_a, gradients_a), (values_b, gradients_b) = results
    for index, (a, b) in enumerate(zip(values_a, values_b, strict=True)):
        assert_near(a, b, f"{what}: value {index}")
    for name, a, b in zip(named, gradients_a, gradients_b, strict=True):
        assert_near(a, b, f"{what}: gradient of {name}")


def assert_near(a: Tensor, b: Tensor, what: str) -> None:
    """Assert equal shape and dtype, finite values, and a difference within TOLERANCES of the largest value."""
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{what}: dtypes {a.dtype} and {b.dtype}"
    if not a.is_floating_point():
        assert torch.equal(a, b), f"{what}: integers differ"
        return
    assert a.isfinite().all(), f"{what}: not finite in the first"
    assert b.isfinite().all(), f"{what}: not finite in the second"
    if a.numel():
        difference = (a - b).abs().max().item() / max(b.abs().max().item(), 1.0)
        allowed = TOLERANCES[a.dtype]
        assert difference <= allowed, f"{what}: relative difference {difference:.3g}, allowed {allowed:.3g}"


def _flat(*values: Any) -> list[Tensor]:
    """The tensors in an output and a state, in order."""
    return [v for value in values for v in (_flat(*value) if isinstance(value, tuple) else [value])]


def check_derivatives(case: Case) -> None:
    """First and second derivatives equal numerical ones, with lengths, resets, and from any state."""
    module = case.module(num_layers=min(case.num_layers, 2))
    extras, reset = case.extras(3, 2), torch.tensor([[False, False], [True, False], [False, False]])
    state = case.state(module, 2)
    floats = [v for v in state if v.is_floating_point()]
    names = [n for n, _ in module.named_parameters()]

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = iter(tensors)
        entered = case.pass_in(next(values) if v.is_floating_point() else v for v in state)
        arguments = {"lengths": [2, 3], "reset": reset, "extras": extras, "noise": case.noise()}
        parameters = dict(zip(names, values, strict=True))
        result = torch.func.functional_call(module, parameters, (x, entered), arguments)
        return tuple(v for v in _flat(*result) if v.is_floating_point())

    x = case.input(3, 2).requires_grad_()
    tensors = (x, *floats, *(p.detach().requires_grad_() for p in module.parameters()))
    torch.autograd.gradcheck(run, tensors, fast_mode=True)
    torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def check_chunks(case: Case) -> None:
    """A sequence in two chunks with the state carried over equals the whole."""
    module = case.module()
    x, extras, state = case.input(7, 3).requires_grad_(), case.extras(7, 3), case.state(module, 3)

    def whole() -> list[Tensor]:
        return _flat(*module(x, case.pass_in(state), extras=extras, noise=case.noise()))

    def chunks() -> list[Tensor]:
        start, rest = ({k: v[part] for k, v in extras.items()} for part in (slice(3), slice(3, None)))
        first, carried = module(x[:3], case.pass_in(state), extras=start, noise=case.noise())
        second, final = module(x[3:], carried, extras=rest, noise=case.noise(3))
        return _flat(torch.cat([first, second]), final)

    compare(module, [x, *state], (chunks, whole), "two chunks against the whole")


def check_step(case: Case) -> None:
    """T calls of `step`, and of a stepper, equal one run of T steps."""
    module = case.module()
    x, extras = case.input(5, 3).requires_grad_(), case.extras(5, 3)

    def whole() -> list[Tensor]:
        return _flat(*module(x, extras=extras, noise=case.noise()))

    def steps() -> list[Tensor]:
        outputs, state = [], None
        for t in range(5):
            taken = {k: v[t] for k, v in extras.items()}
            output, state = module.step(x[t], state, extras=taken, noise=case.noise(t))
            outputs.append(output)
        return _flat(torch.stack(outputs), state)

    compare(module, [x], (steps, whole), "steps against the whole")
    module.eval()
    with torch.no_grad():  # as `step` does where kernels are prepared
        for a, b in zip(steps(), whole(), strict=True):
            assert_near(a, b, "steps without gradients against the whole")
    stepper = module.stepper(3)
    outputs = torch.stack([stepper(x[t].detach(), extras={k: v[t] for k, v in extras.items()}) for t in range(5)])
    for a, b in zip(_flat(outputs, stepper.state), whole(), strict=True):
        assert_near(a, b.detach(), "stepper against the whole")


def check_lengths(case: Case, bidirectional: bool = False) -> None:
    """A padded batch, rows in any order, equals each sequence alone."""
    module = case.module(bidirectional=bidirectional)
    lengths = [3, 6, 1, 4, 6]
    x, extras, state = case.input(7, 5).requires_grad_(), case.extras(7, 5), case.state(module, 5)

    def batch() -> list[Tensor]:
        return _flat(*module(x, case.pass_in(state), lengths=lengths, extras=extras, noise=case.noise()))

    def alone() -> list[Tensor]:
        rows = []
        for row, n in enumerate(lengths):
            one = slice(row, row + 1)
            taken = {k: v[:n, one] for k, v in extras.items()}
            given = case.pass_in(v[:, one] for v in state)
            output, final = module(x[:n, one], given, extras=taken, noise=case.noise(row=row))
            rows.append(_flat(_pad(output, 7), final))
        return [torch.cat(entry, 1) for entry in zip(*rows, strict=True)]

    compare(module, [x, *state], (batch, alone), "padded batch against single rows")


def check_lengths_bidirectional(case: Case) -> None:
    """As `check_lengths`, with both directions."""
    check_lengths(case, bidirectional=True)


def check_reverse(case: Case) -> None:
    """Layers whose directions are exchanged give, on reversed sequences, reversed results; without masks."""
    module, mirror = (case.module(bidirectional=True).eval() for _ in range(2))
    lengths, concatenates = [4, 6, 2], module.options.merge == "concatenate"
    x, extras = case.input(6, 3).requires_grad_(), case.extras(6, 3)

    def reversed_rows(v: Tensor) -> Tensor:
        return torch.stack([torch.cat([v[:n, b].flip(0), v[n:, b]]) for b, n in enumerate(lengths)], 1)

    def exchanged(v: Tensor, dim: int) -> Tensor:
        return torch.cat(v.chunk(2, dim)[::-1], dim)

    def exchanged_parameters() -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            value: Tensor = parameter
            other = name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"
            stored, _, place = name.removesuffix("_reverse").rpartition("_l")
            for dim in _of_input(module.layers[int(place)][0], stored) if concatenates and place != "0" else ():
                value = exchanged(value, dim)
            parameters[other] = value
        return parameters

    def plain() -> list[Tensor]:
        return _flat(*module(x, lengths=lengths, extras=extras))

    def mirrored() -> list[Tensor]:
        arguments = {"lengths": lengths, "extras": {k: reversed_rows(v) for k, v in extras.items()}}
        result = torch.func.functional_call(mirror, exchanged_parameters(), (reversed_rows(x),), arguments)
        output, *final = _flat(*result)
        output = reversed_rows(output)
        return [
            exchanged(output, 2) if concatenates else output,
            *(v.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for v in final),
        ]

    compare(module, [x], (mirrored, plain), "exchanged directions")


def _of_input(cell: Cell, parameter: str) -> list[int]:
    """The dimensions of a parameter that are as wide as the layer's input."""
    if parameter == "weight_ih":
        return [1]
    found = []
    for product in cell.products:
        inner = "_in" if isinstance(product.structure, LowRank) else ""
        found += [0] if product.output == "I" and parameter == f"weight_{product.name}" else []
        found += [1] if product.input == "I" and parameter == f"weight_{product.name}{inner}" else []
    return found


def check_reset(case: Case, bidirectional: bool = False) -> None:
    """`reset` equals separate sequences; the state passed in never crosses it."""
    cuts = [[0, 2, 5], [3], [], [0, 1, 2]]  # where each row starts afresh
    lengths = [6, 6, 4, 3]
    reset = torch.zeros(6, 4, dtype=torch.bool)
    for row, starts in enumerate(cuts):
        reset[starts, row] = True
    module = case.module(bidirectional=bidirectional)
    x, extras, state = case.input(6, 4).requires_grad_(), case.extras(6, 4), case.state(module, 4)
    # The backward direction's state would enter at the last part, so it starts from the default here.
    entered = () if bidirectional else state

    def together() -> list[Tensor]:
        given = case.pass_in(entered) if entered else None
        return _flat(*module(x, given, lengths=lengths, reset=reset, extras=extras, noise=case.noise()))

    def apart() -> list[Tensor]:
        rows = []
        for row, n in enumerate(lengths):
            one = slice(row, row + 1)
            parts = []
            bounds = sorted({0, *cuts[row], n})
            for start, stop in pairwise(bounds):
                given = case.pass_in(v[:, one] for v in entered) if entered and start not in cuts[row] else None
                taken = {k: v[start:stop, one] for k, v in extras.items()}
                parts.append(_flat(*module(x[start:stop, one], given, extras=taken, noise=case.noise(start, row))))
            output = _pad(torch.cat([part[0] for part in parts]), 6)
            # Forward directions end in the last part, backward ones in the first.
            ends = (parts[-1], parts[0] if bidirectional else parts[-1])
            final = [torch.stack([ends[k % 2][i][k] for k in range(len(v))]) for i, v in enumerate(parts[0]) if i]
            rows.append([output, *final])
        return [torch.cat(entry, 1) for entry in zip(*rows, strict=True)]

    compare(module, [x, *entered], (together, apart), "reset against separate sequences")


def check_reset_bidirectional(case: Case) -> None:
    """As `check_reset`, with both directions."""
    check_reset(case, bidirectional=True)


def _pad(output: Tensor, steps: int) -> Tensor:
    return torch.cat([output, output.new_zeros(steps - len(output), *output.shape[1:])])


def check_engine(case: Case, reset: bool = False) -> None:
    """The engine gives what the reference gives: in both directions, from any state, with lengths."""
    module = case.module(bidirectional=True)
    lengths = [5, 1, 6, 3, 6, 2, 4]
    x, extras, state = case.input(6, 7).requires_grad_(), case.extras(6, 7), case.state(module, 7)
    arguments: dict[str, Any] = {"lengths": lengths, "extras": extras, "noise": case.noise()}
    if reset:
        arguments["reset"] = torch.rand(6, 7) < 0.3

    def on(engine: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with use_engine(engine):
                return _flat(*module(x, case.pass_in(state), **arguments))

        return run

    ways = (on(case.engine), on("reference"))
    compare(module, [x, *state], ways, f"the engine {case.engine} against the reference")


def check_engine_reset(case: Case) -> None:
    """As `check_engine`, with resets."""
    check_engine(case, reset=True)


CHECKS: dict[str, Callable[[Case], None]] = {
    "derivatives": check_derivatives,
    "chunks": check_chunks,
    "step": check_step,
    "lengths": check_lengths,
    "lengths_bidirectional": check_lengths_bidirectional,
    "reverse": check_reverse,
    "reset": check_reset,
    "reset_bidirectional": check_reset_bidirectional,
    "engine": check_engine,
    "engine_reset": check_engine_reset,
}

_OWN = tuple(name for name in CHECKS if not name.startswith("engine"))
_COMPILED = tuple(name for name in CHECKS if name != "derivatives")  # which are the reference's, when both are equal
_TORCH = tuple(name for name in _COMPILED if "reset" not in name)  # torch's kernels take none

# What is run on each engine, in each dtype. In float32 the checks that take every path of an engine are enough.
SUITES: dict[tuple[str, torch.dtype], tuple[str, ...]] = {
    ("reference", torch.float64): _OWN,
    ("reference", torch.float32): ("lengths_bidirectional",),
    ("cpu", torch.float64): _COMPILED,
    ("cpu", torch.float32): ("chunks", "step", "engine_reset"),
    ("torch", torch.float64): _TORCH,
    ("torch", torch.float32): _TORCH,
}


def run_check(name: str, case: Case) -> None:
    """Run one of `CHECKS` on the case's engine.

    Raises:
        AssertionError: the cell breaks the contract; the message names the check and what differs.
        RuntimeError: the engine cannot run the cell.
    """
    try:
        with use_engine(case.engine):
            CHECKS[name](case)
    except (AssertionError, GradcheckError) as error:
        what = " ".join((CHECKS[name].__doc__ or "").split())
        where = f"on the engine {case.engine}, {case.dtype}"
        raise AssertionError(f"{case.cell!r} fails the check {name!r} {where}: {error}\n(the check: {what})") from error


def why_not(case: Case) -> str | None:
    """The reason why the case's engine cannot run its cell, or None."""
    with use_engine(case.engine):
        try:
            explain(case.module(), case.input(2, 1), extras=case.extras(2, 1))
        except RuntimeError as error:
            return str(error)
    return None


@dataclass(frozen=True)
class Report:
    """What `check_cell` ran.

    Attributes:
        cell: the cell.
        ran: the checks that passed, by engine and dtype.
        refused: the engines that cannot run the cell, each with its reason.
    """

    cell: Cell
    ran: Mapping[tuple[str, torch.dtype], tuple[str, ...]]
    refused: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.cell!r} keeps the contract: {sum(map(len, self.ran.values()))} checks passed"]
        for (engine, dtype), checks in self.ran.items():
            lines.append(f"  {engine}, {str(dtype).removeprefix('torch.')}: {', '.join(checks)}")
        return "\n".join(lines + [f"  not run: {reason}" for reason in self.refused.values()])


def check_cell(cell: str | type[Cell] | Cell, input_size: int = 3, hidden_size: int = 8, num_layers: int = 2) -> Report:
    """Run the whole contract on a cell, on every engine that can run it, and compare the engines: see `SUITES`.

    Args:
        cell: a registered name, a Cell class, or an instance with options.
        input_size, hidden_size, num_layers: small, since derivatives are also computed numerically.

    Returns:
        What was run; print it.

    Raises:
        AssertionError: the cell breaks the contract; the message names the check, the engine and what differs.
        ValueError: the cell's declarations do not fit together, or its step does not do what they say.
    """
    case = Case(as_cell(cell), input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
    ran: dict[tuple[str, torch.dtype], tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for (engine, dtype), checks in SUITES.items():
        here = replace(case, engine=engine, dtype=dtype)
        reason = refused.get(engine) or why_not(here)
        if reason is not None:
            refused[engine] = reason
            continue
        for name in checks:
            run_check(name, here)
        ran[engine, dtype] = checks
    return Report(case.cell, ran, refused)
