"""A call of a stack of layers: what each layer is given, in order, and what becomes of its results."""

from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elman.cells.contract import Cell
from elman.engine import draws
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.draws import Noise
from elman.engine.packing import Packing
from elman.nn.frame import Frame
from elman.nn.initialise import initial_name
from elman.nn.stack import Stack
from elman.nn.wiring import merged, weight_mask

Run = Callable[[LayerCall], list[DirectionResult]]


@dataclass(frozen=True, slots=True)
class Unrolling:
    """One call.

    Args:
        module: that has the parameters.
        stack: its layers.
        frame: the caller's input.
        run: runs a layer.
        noise: where masks come from; None where there are none.
        named: whether `dropout` draws from the noise too; else as torch.nn does.
        recompute: whether a layer's inner values are computed again for the backward pass.
    """

    module: nn.Module
    stack: Stack
    frame: Frame
    run: Run
    noise: Noise | None = None
    named: bool = True
    recompute: bool = False

    def forward(
        self, state: Any, reset: Tensor | None, extras: Mapping[str, Tensor] | None, every_state: bool
    ) -> tuple[tuple[Tensor, ...], list[DirectionResult], Any]:
        """The output, [N, width] and packed, the last layer's results, and the state in the caller's form.

        The output is one tensor, or several that are to be set side by side.

        Args:
            state, reset, extras: as the caller gave them.
            every_state: whether the last layer's results have the sequences of all states, and not the first alone.
        """
        stack, frame, noise = self.stack, self.frame, self.noise
        packing, packed_reset = frame.packing, frame.reset(reset)
        chained = packing.chains is not None
        if chained:
            packed_reset = packing.cuts[0].bool()
        layers, wiring = stack.layers if noise is None else stack.trained, stack.wiring
        last = len(layers) - 1
        given = None if state is None else self._given(state)
        x = frame.input if noise is None else wiring.enter(frame.input, packing, noise)
        results: list[DirectionResult] = []
        finals: list[tuple[Tensor, ...]] = []
        for level, (cell, parts) in enumerate(layers):
            below = {name: _place(layers[level - 1][0], name) for name in cell.below}
            call = LayerCall(
                cell=cell,
                layout=parts,
                packing=packing,
                input=x,
                reset=packed_reset,
                extras=frame.extras(parts, extras),
                directions=tuple(
                    self._direction(
                        level,
                        index,
                        None if given is None else tuple(v[index] for v in given[level]),
                        {name: results[index].sequences[place] for name, place in below.items()},
                    )
                    for index in range(stack.directions)
                ),
                every_state=chained or (every_state if level == last else bool(layers[level + 1][0].below)),
            )
            if self.recompute:
                # Again on the engine that is chosen now, whatever `use_engine` says by then.
                run = copy_context().run
                results = checkpoint(run, self.run, call, use_reentrant=False, preserve_rng_state=False)
            else:
                results = self.run(call)
            if chained:  # where sequences end within packed rows
                finals += [
                    tuple(packing.ends(v, index == 1) for v in result.sequences) for index, result in enumerate(results)
                ]
            else:
                finals += [result.state for result in results]
            outputs = tuple(result.sequences[0] for result in results)
            if level == last and wiring.trivial and stack.options.merge == "concatenate":
                return outputs, results, self._leave(finals)
            output = merged(outputs, stack.options.merge)
            x = output if wiring.trivial else wiring.leave(level, x, output, packing, noise, self.named)
        return (x,), results, self._leave(finals)

    def _direction(
        self, level: int, index: int, state: tuple[Tensor, ...] | None, below: dict[str, Tensor]
    ) -> Direction:
        """One direction of a layer: its parameters, where it starts from, and what it draws."""
        stack, noise, packing = self.stack, self.noise, self.frame.packing
        parameters = parameters_of(self.module, stack, level, index)
        direction = Direction(parameters, state, index == 1, below)
        if stack.options.learn_state:
            direction.default = learned_state(self.module, stack, level, index)
            if state is None:
                direction.state = tuple(v.expand(packing.batch, -1) for v in direction.default)
        if noise is not None:
            direction.draws = drawn(stack, level, index, noise, packing)
            if stack.options.weight_dropout:
                parameters["weight_hh"] = thinned(stack, level, index, noise, parameters["weight_hh"])
        return direction

    def _given(self, state: Any) -> list[tuple[Tensor, ...]]:
        """The caller's state, for each layer one [directions, B, width] tensor for each entry, in packed order."""
        frame, layers, directions = self.frame, self.stack.layers, self.stack.directions
        if not self.stack.layered:
            whole = frame.state(state, layers[0][1], len(layers) * directions)
            return list(zip(*(v.unflatten(0, (len(layers), -1)) for v in whole), strict=True))
        if not isinstance(state, (tuple, list)) or len(state) != len(layers):
            got = f"{len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
            raise ValueError(f"state must have an entry for each of {len(layers)} layers, got {got}")
        return [frame.state(value, parts, directions) for value, (_, parts) in zip(state, layers, strict=True)]

    def _leave(self, finals: list[tuple[Tensor, ...]]) -> Any:
        """The state after the last step, in the caller's form."""
        layers, count = self.stack.layers, self.stack.directions
        if not self.stack.layered:
            return self._stacked(layers[-1][0], finals)
        by_layer = (finals[level * count : (level + 1) * count] for level in range(len(layers)))
        return tuple(self._stacked(cell, given) for (cell, _), given in zip(layers, by_layer, strict=True))

    def _stacked(self, cell: Cell, finals: list[tuple[Tensor, ...]]) -> Any:
        """Final states of directions, [B, width] for each entry, as one tensor or named tuple in the caller's form."""
        state = form(cell)(*(self.frame.leave_state(_stack(entry)) for entry in zip(*finals, strict=True)))
        return state if len(state) > 1 else state[0]


def parameters_of(module: nn.Module, stack: Stack, level: int, index: int) -> dict[str, Tensor]:
    """The parameters of a layer's direction, by the names of its layout.

    Raises:
        ValueError: one has another shape than it was made with, beyond which kernels would read, or is not where the
            others are.
    """
    found = {}
    device = next(module.parameters()).device
    parts = stack.layers[level][1]
    for (name, full), declared in zip(stack.slots[level][index], parts.parameters, strict=True):
        found[name] = value = getattr(module, full)
        if tuple(value.shape) != declared.shape:
            raise ValueError(f"{full} must be {declared.shape}, got {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"{full} is on {value.device}, other parameters on {device}")
    return found


def learned_state(module: nn.Module, stack: Stack, level: int, index: int) -> tuple[Tensor, ...]:
    """The learned state of a layer's direction at the start of a sequence, [width] for each entry.

    Raises:
        ValueError: a parameter has another shape.
    """
    suffix, device = stack.suffixes[level][index], next(module.parameters()).device
    found = []
    for entry, width in stack.layers[level][1].states:
        name = initial_name(entry.name, suffix)
        value = (
            getattr(module, name) if entry.dtype == "float" else torch.full((width,), int(entry.initial), device=device)
        )
        if tuple(value.shape) != (width,):
            raise ValueError(f"{name} must be ({width},), got {tuple(value.shape)}")
        found.append(value)
    return tuple(found)


def drawn(stack: Stack, level: int, index: int, noise: Noise, packing: Packing) -> dict[str, Tensor]:
    """For each random choice of a layer's direction, the table that `draws.rows` gives."""
    chosen = stack.trained[level][1].draws
    return {d.name: draws.rows(noise, d.name, 2 * level + index, packing) for d, _ in chosen}


def thinned(stack: Stack, level: int, index: int, noise: Noise, weight: Tensor) -> Tensor:
    """The recurrent matrix of a layer's direction with some weights dropped."""
    return weight * weight_mask(weight, stack.options.weight_dropout, 2 * level + index, noise)


@lru_cache(maxsize=1024)
def form(cell: Cell) -> Any:
    """The named tuple of a cell's states."""
    return cell.State


def _place(cell: Cell, name: str) -> int:
    names: tuple[str, ...] = form(cell)._fields
    if name not in names:
        raise ValueError(f"the layer above reads the state {name!r} of {cell!r}, which has {', '.join(names)}")
    return names.index(name)


def _stack(rows: tuple[Tensor, ...]) -> Tensor:
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
