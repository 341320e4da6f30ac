"""What a layer asks of an engine, and what it gets back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from elman.cells.contract import Cell
from elman.cells.layout import Layout
from elman.engine.packing import Packing


@dataclass(slots=True)
class Direction:
    """One direction of a layer.

    Attributes:
        parameters: tensors by the names of `Layout.parameters`.
        state: one [B, width] tensor for each state entry, in packed order; None for the default.
        reverse: whether time runs backwards, each row from its own last step.
        below: sequences of the states of the layer below in this direction, [N, width] each; empty where unread.
        draws: for each of the cell's random choices, the table that `draws.rows` gives.
        default: the state at resets, one [width] tensor for each state entry; None for what the entries declare.
    """

    parameters: Mapping[str, Tensor]
    state: tuple[Tensor, ...] | None
    reverse: bool
    below: Mapping[str, Tensor]
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    default: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class LayerCall:
    """One layer over whole sequences.

    Attributes:
        input: [N, I], packed.
        reset: [N] bool, true where a row starts afresh *before* the step, or None.
        extras: the cell's further inputs, [N, width] each.
        directions: one, or two that share the input: forward, then reverse.
        every_state: whether the sequences of all states are wanted; else only those of the first.
    """

    cell: Cell
    layout: Layout
    packing: Packing
    input: Tensor
    reset: Tensor | None
    extras: Mapping[str, Tensor]
    directions: tuple[Direction, ...]
    every_state: bool


@dataclass(slots=True)
class DirectionResult:
    """What one direction computed.

    Attributes:
        sequences: [N, width] for the first state, or for every state where the call wants them.
        state: [B, width] for each state entry: after each row's last step in its own direction, in packed order.
    """

    sequences: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
