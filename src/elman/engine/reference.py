"""The reference engine: a cell's `step` in a Python loop over packed time steps.

It is the truth that every other engine is tested against: any device, any floating dtype, any order of derivatives.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elman.cells.contract import Cell
from elman.cells.layout import Layout, MatrixProduct
from elman.cells.named import Named
from elman.cells.structure import Antisymmetric, BlockDiagonal, BlockTriangular, Dense, LowRank
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.draws import mask

name = "reference"


def why_not(call: LayerCall) -> str | None:
    """The reason why this engine cannot run the call; this one runs every call."""
    return None


def rather_not(call: LayerCall) -> str | None:
    """The reference is what is left where nothing faster runs."""
    return None


def run(call: LayerCall) -> list[DirectionResult]:
    """Run a layer; see `LayerCall` for shapes."""
    return [_run_direction(call, direction) for direction in call.directions]


def _run_direction(call: LayerCall, direction: Direction) -> DirectionResult:
    cell, packing = call.cell, call.packing
    sources = {
        "raw": call.input,
        **call.extras,
        **random_choices(call, direction),
        **{f"below.{k}": v for k, v in direction.below.items()},
    }
    reset = call.reset
    if direction.reverse:
        sources = {k: v.index_select(0, packing.reversal) for k, v in sources.items()}
        reset = None if reset is None else reset_in_reverse(call, reset).index_select(0, packing.reversal)

    sources |= input_gates(call.layout, direction.parameters, sources["raw"])
    products = Products(call.layout, direction.parameters, constants(cell, call.layout.hidden_size, call.input))
    values = Named(
        **{v: direction.parameters[v] for v in call.layout.vectors},
        **constants(cell, call.layout.hidden_size, call.input),
    )
    if direction.default is None:
        default = default_state(call.layout, packing.batch, call.input)
    else:
        default = tuple(v.expand(packing.batch, -1) for v in direction.default)

    state = default if direction.state is None else direction.state
    outputs: list[tuple[Tensor, ...]] = []
    ended: list[tuple[Tensor, ...]] = []  # final states of the rows that end, the shortest rows first
    start = 0
    for active in packing.batch_sizes:
        if active < state[0].shape[0]:
            ended.append(tuple(v[active:] for v in state))
            state = tuple(v[:active] for v in state)
        if reset is not None:
            fresh = reset[start : start + active, None]
            state = tuple(torch.where(fresh, d[:active], v) for d, v in zip(default, state, strict=True))
        x = step_inputs({k: v[start : start + active] for k, v in sources.items()})
        before = [0 if v.is_inference() else v._version for v in state]
        result = cell.step(x, products, cell.State(*(_counted(v, call.input) for v in state)), values)
        if not outputs:
            check_result(cell, call.layout, result, active)
            changed = [
                v for v, version in zip(state, before, strict=True) if not v.is_inference() and v._version != version
            ]
            if changed:
                raise ValueError(f"{cell!r}: step changes its state in place; write h = s.h + a, not h = s.h; h += a")
        state = tuple(
            value.to(torch.int64) if entry.dtype == "int64" else value
            for value, (entry, _) in zip(result, call.layout.states, strict=True)
        )
        outputs.append(state)
        start += active
    ended.append(state)

    wanted = len(state) if call.every_state else 1
    sequences = tuple(torch.cat([output[k] for output in outputs]) for k in range(wanted))
    if direction.reverse:
        sequences = tuple(v.index_select(0, packing.reversal) for v in sequences)
    final = tuple(torch.cat([rows[k] for rows in reversed(ended)]) for k in range(len(state)))
    return DirectionResult(sequences, final)


def _counted(value: Tensor, like: Tensor) -> Tensor:
    """A state as the step is given it. Numbers that count are of the network's dtype where that holds them all: with
    integers torch would compute in its default dtype."""
    return value.to(like.dtype) if like.dtype == torch.float64 and value.dtype == torch.int64 else value


def check_result(cell: Cell, layout: Layout, result: object, rows: int) -> None:
    """Raise a ValueError unless a step gave every state at its shape."""
    names = [entry.name for entry, _ in layout.states]
    if not isinstance(result, tuple) or len(result) != len(names):
        raise ValueError(f"{cell!r}: step must return self.State({', '.join(names)}), got {result!r:.80}")
    for value, (entry, width) in zip(result, layout.states, strict=True):
        if not isinstance(value, Tensor) or tuple(value.shape) != (rows, width):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{cell!r}: step must return {entry.name} as [B, width] = ({rows}, {width}), got {got}")
        if value.dtype == torch.bool:
            raise ValueError(
                f"{cell!r}: step must return {entry.name} as numbers, got truth values; see where(a, b, c)"
            )


def reset_in_reverse(call: LayerCall, reset: Tensor) -> Tensor:
    """A cut before step t lies, for time run backwards, before step t - 1."""
    earlier, later = call.packing.successors
    return torch.zeros_like(reset).index_copy(0, earlier, reset.index_select(0, later))


def input_gates(layout: Layout, parameters: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """`x.<gate>` of every input gate: [N, I] to [N, width] each."""
    if not layout.input_gates:
        return {}
    rows = F.linear(x, parameters["weight_ih"], parameters["bias_ih"] if layout.input_bias else None)
    return {gate: rows[:, block] for gate, block in layout.input_gates.items()}


def random_choices(call: LayerCall, direction: Direction) -> dict[str, Tensor]:
    """The cell's random choices, [N, width] bool each."""
    found = {}
    for declared, width in call.layout.draws:
        table, chance = direction.draws[declared.name], declared.probability
        chosen = mask(table, not declared.locked, chance, call.packing, width, (1.0, 0.0), torch.float32)
        found[declared.name] = chosen.bool()
    return found


def step_inputs(values: Mapping[str, Any]) -> Named:
    """The `x` of a step, from values by name; states of the layer below are named `below.<entry>`."""
    below = Named(**{k[6:]: v for k, v in values.items() if k.startswith("below.")})
    return Named(**{k: v for k, v in values.items() if not k.startswith("below.")}, below=below)


def default_state(layout: Layout, batch: int, like: Tensor) -> tuple[Tensor, ...]:
    """The state at the start of a sequence, [B, width] for each entry, in the dtype and on the device of `like`."""
    return tuple(
        torch.full(
            (batch, width),
            entry.initial,
            dtype=torch.int64 if entry.dtype == "int64" else like.dtype,
            device=like.device,
        )
        for entry, width in layout.states
    )


def constants(cell: Cell, hidden_size: int, like: Tensor) -> dict[str, Tensor]:
    """The cell's constants, floating ones in the dtype of `like`."""
    return _constants(cell, hidden_size, like.dtype, like.device)


@lru_cache(maxsize=256)
def _constants(cell: Cell, hidden_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    with torch.inference_mode(False):  # or training could not use what an evaluation was the first to ask for
        tensors = {k: torch.as_tensor(v, device=device) for k, v in cell.constants(hidden_size).items()}
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


class Products:
    """The `u` of a step: `u.<name>(v)` is the product of that name with [B, inputs], giving [B, outputs]."""

    def __init__(self, layout: Layout, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
        self._products = {
            name: _product(p, constants if p.fixed else parameters) for name, p in layout.products.items()
        }

    def __getitem__(self, name: str) -> Any:
        try:
            return self._products[name]
        except KeyError:
            known = ", ".join(self._products) or "none"
            raise AttributeError(f"the cell declares no product {name!r}; declared: {known}") from None

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _product(product: MatrixProduct, matrices: Mapping[str, Tensor]) -> Any:
    weight = matrices[product.weight][product.rows]
    bias = None if product.bias is None else matrices[product.bias][product.rows]
    match product.structure:
        case Dense():
            return lambda v: F.linear(v, weight, bias)
        case BlockTriangular(blocks):
            masked = weight * block_triangle(product.output, product.input, blocks, weight)
            return lambda v: F.linear(v, masked, bias)
        case Antisymmetric(gamma):
            matrix = antisymmetric(weight, gamma)
            return lambda v: F.linear(v, matrix, bias)
        case LowRank():
            inner = matrices[f"{product.weight}_in"]
            return lambda v: F.linear(F.linear(v, inner), weight, bias)
        case BlockDiagonal(blocks):
            cubes = weight.unflatten(0, (blocks, -1))  # [blocks, outputs of a block, inputs of a block]

            def blockwise(v: Tensor) -> Tensor:
                result = torch.einsum("nbi,boi->nbo", v.unflatten(1, (blocks, -1)), cubes).flatten(1)
                return result if bias is None else result + bias

            return blockwise


def block_triangle(outputs: int, inputs: int, blocks: int, like: Tensor) -> Tensor:
    """1 where a block-triangular matrix has weights, else 0: [outputs, inputs]."""
    row = torch.arange(outputs, device=like.device) // (outputs // blocks)
    column = torch.arange(inputs, device=like.device) // (inputs // blocks)
    return (column[None, :] >= row[:, None]).to(like.dtype)


def antisymmetric(weight: Tensor, gamma: float) -> Tensor:
    """W - Wᵀ - γ I."""
    return weight - weight.T - gamma * torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
