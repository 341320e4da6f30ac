"""Initial values of a stack's parameters: what torch.nn draws, what the cells say, and what the options ask for."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from elman.cells.contract import Cell
from elman.cells.initial import Chrono, Identity, Initial, Uniform
from elman.cells.layout import Layout, Parameter
from elman.cells.structure import BlockDiagonal, Dense
from elman.nn.options import Options

_LEVEL = re.compile(r"_l(\d+)")


@torch.no_grad()
def fill(module: nn.Module, layers: list[tuple[Cell, Layout]], suffixes: list[list[str]], options: Options) -> None:
    """Draw all parameters afresh.

    Args:
        module: that has them.
        layers: each layer's cell and layout.
        suffixes: of the parameters' names, for each layer and direction.
        options: `forget_bias`, `chrono` and `recurrent_init` count here.
    """
    learned = {
        initial_name(entry.name, suffix)
        for (_, parts), found in zip(layers, suffixes, strict=True)
        for entry, _ in parts.states
        for suffix in found
        if options.learn_state
    }
    for name, tensor in module.named_parameters():
        if name.split(".")[-2 if name.endswith(".original") else -1] not in learned:
            level = _LEVEL.findall(name)
            Uniform().fill(tensor, layers[int(level[-1]) if level else 0][1].hidden_size)
    for (cell, parts), found in zip(layers, suffixes, strict=True):
        for suffix in found:
            for parameter in parts.parameters:
                _declared(cell, parameter, getattr(module, parameter.name + suffix), parts.hidden_size)
            _optional(module, cell, parts, suffix, options)
            for entry, _ in parts.states if options.learn_state else ():
                if entry.dtype == "float":
                    getattr(module, initial_name(entry.name, suffix)).fill_(entry.initial)


def initial_name(entry: str, suffix: str) -> str:
    """The name of the parameter that holds the learned initial value of a state entry."""
    return f"initial_{entry}{suffix}"


def _declared(cell: Cell, parameter: Parameter, tensor: Tensor, hidden_size: int) -> None:
    whole = cell.initial.get(parameter.name)
    if whole is not None and not parameter.blocks:
        whole.fill(tensor, hidden_size)
    for gate, rows in parameter.blocks.items():
        initial = cell.initial.get(f"{parameter.name}.{gate}", whole)
        if initial is not None:
            initial.fill(tensor[rows], hidden_size)


def _optional(module: Any, cell: Cell, parts: Layout, suffix: str, options: Options) -> None:
    initial = options.initial()
    if initial is not None:
        for product in parts.products.values():
            if product.weight == "weight_hh":
                _recurrent(getattr(module, "weight_hh" + suffix)[product.rows], product.structure, initial, parts, cell)
    if options.forget_bias is not None:
        name, sign = next(iter(cell.keeping.items()))
        value = torch.full((_block(module, parts, name, suffix, cell).shape[0],), float(options.forget_bias))
        _set_bias(module, parts, name, suffix, cell, sign * value)
    if options.chrono is not None:
        set_chrono(module, cell, parts, suffix, options.chrono)


def set_chrono(module: Any, cell: Cell, parts: Layout, suffix: str, longest: float) -> None:
    """Let a layer's gates keep the state for 2 up to `longest` steps; all gates of a unit start from the same draw.

    Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018: the bias of a forget gate starts at
    b = log U(1, longest - 1), so that the unit forgets in 1 + e^b steps, and that of an input gate at -b.
    """
    start: Tensor | None = None
    for name, sign in cell.keeping.items():
        block = _block(module, parts, name, suffix, cell)
        if start is None:
            start = torch.empty(block.shape[0])
            Chrono(longest).fill(start, parts.hidden_size)
        _set_bias(module, parts, name, suffix, cell, sign * start)


def _set_bias(module: Any, parts: Layout, name: str, suffix: str, cell: Cell, value: Tensor) -> None:
    """Set a bias, and a second one of the same gate to zero."""
    _block(module, parts, name, suffix, cell).copy_(value)
    for one, other in (("bias_ih", "bias_hh"), ("bias_hh", "bias_ih")):
        if name.startswith(one):
            second = _find(module, parts, name.replace(one, other), suffix)
            if second is not None:
                second.zero_()


def _block(module: Any, parts: Layout, name: str, suffix: str, cell: Cell) -> Tensor:
    found = _find(module, parts, name, suffix)
    if found is None:
        raise ValueError(f"{cell!r} keeps its state by {name}, which this layer does not have (bias=False)")
    return found


def _find(module: Any, parts: Layout, name: str, suffix: str) -> Tensor | None:
    """A parameter, or one gate's part of it, as `Cell.initial` names it."""
    stored, _, gate = name.partition(".")
    parameter = next((p for p in parts.parameters if p.name == stored), None)
    if parameter is None or (gate and gate not in parameter.blocks):
        return None
    whole: Tensor = getattr(module, stored + suffix)
    return whole[parameter.blocks[gate]] if gate else whole


def _recurrent(block: Tensor, structure: Any, initial: Initial, parts: Layout, cell: Cell) -> None:
    """Fill one gate's part of `weight_hh`, each of its blocks apart."""
    if not isinstance(structure, (Dense, BlockDiagonal)):
        kind = type(structure).__name__
        raise ValueError(f"recurrent_init fills dense or block-diagonal matrices; that of {cell!r} is {kind}")
    count = structure.blocks if isinstance(structure, BlockDiagonal) else 1
    for part in block.chunk(count):
        if isinstance(initial, Identity) and part.shape[0] != part.shape[1]:
            raise ValueError(f"recurrent_init: the identity needs square matrices; {cell!r} has {tuple(part.shape)}")
        initial.fill(part, parts.hidden_size)
