"""`Recurrent`: any cell as a layer, with the arguments and the parameters of torch.nn's recurrent layers."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from elman import cells
from elman.cells.contract import Cell
from elman.cells.initial import Uniform
from elman.cells.layout import Layout, Parameter, layout
from elman.cells.wrapped import Projected, Unbiased
from elman.engine import dispatch, memory
from elman.engine.call import Direction, DirectionResult, LayerCall
from elman.engine.reference import default_state
from elman.nn.frame import Frame

Run = Callable[[LayerCall], list[DirectionResult]]


class Recurrent(nn.Module):
    """A stack of recurrent layers of one cell.

    Args:
        cell: a registered name (`elman.cells.names()`), a Cell class, or an instance with options.
        input_size: I, features of each step.
        hidden_size: H, units of each layer.
        num_layers: layers, each of which reads the outputs of the one below.
        bias: whether there are biases, where the cell has any.
        batch_first: whether batched tensors are [B, T, *]; states are [L·directions, B, width] regardless.
        dropout: probability of zeroing an element of the outputs of each layer but the last, in training.
        bidirectional: whether each layer also runs backwards, from each row's own end; the outputs are concatenated.
        proj_size: where positive, the output is a learned projection to this width (see `cells.wrapped.Projected`).
        recompute: whether a layer keeps only its inputs for the backward pass and runs forward again there: for deep
            stacks and long sequences, a third more time for the memory of one layer instead of all.
        device, dtype: of the parameters.

    Parameters have torch's names, shapes and gate order: `weight_ih_l{k}` [G·H, I], `weight_hh_l{k}` [G·H, H],
    `bias_ih_l{k}`, `bias_hh_l{k}`, and those that the cell names; the backward direction's end in `_reverse`.

    Raises:
        ValueError: an argument is out of its range, or a name is unknown.
    """

    def __init__(
        self,
        cell: str | type[Cell] | Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        proj_size: int = 0,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability from 0 to 1, got {dropout!r}")
        if not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size must be from 0 (no projection) to hidden_size - 1, got {proj_size!r}")
        if dropout and num_layers == 1:
            warnings.warn("dropout acts between layers, so with num_layers=1 it has no effect", stacklevel=2)
        self.cell = as_cell(cell)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.recompute = recompute
        self.layers = self._lay_out()
        for level, (_, parts) in enumerate(self.layers):
            for suffix in self._suffixes(level):
                for parameter in parts.parameters:
                    empty = torch.empty(parameter.shape, device=device, dtype=dtype)
                    trained = nn.Parameter(empty, requires_grad=not parameter.frozen)
                    self.register_parameter(parameter.name + suffix, trained)
        self._slots = [
            [[(p.name, p.name + suffix) for p in parts.parameters] for suffix in self._suffixes(level)]
            for level, (_, parts) in enumerate(self.layers)
        ]
        self.reset_parameters()

    def _lay_out(self) -> list[tuple[Cell, Layout]]:
        layers: list[tuple[Cell, Layout]] = []
        width = self.input_size
        for level in range(self.num_layers):
            cell = self.cell.at_layer(level)
            cell = Unbiased(cell) if cell.biases and not self.bias else cell
            cell = Projected(cell, self.proj_size) if self.proj_size else cell
            parts = layout(cell, width, self.hidden_size, self.bias)
            if cell.below and not layers:
                raise ValueError(f"{cell!r} reads the layer below, so it cannot be the lowest; see Cell.at_layer")
            if layers and parts.states != layers[0][1].states:
                raise ValueError(f"{self.cell!r} must have the same states in every layer, of the same widths")
            layers.append((cell, parts))
            width = parts.output_size * self.num_directions
        return layers

    @property
    def num_directions(self) -> int:
        """2 where bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Width of the output: H, or the projection's, times the directions."""
        return self.layers[-1][1].output_size * self.num_directions

    def _suffixes(self, level: int) -> list[str]:
        return [f"_l{level}", f"_l{level}_reverse"][: self.num_directions]

    def reset_parameters(self) -> None:
        """Draw all parameters afresh: U(-1/√H, 1/√H) as torch.nn does, then what the cell's `initial` says."""
        with torch.no_grad():
            for tensor in self.parameters():
                Uniform().fill(tensor, self.hidden_size)
            for level, (cell, parts) in enumerate(self.layers):
                for suffix in self._suffixes(level):
                    for parameter in parts.parameters:
                        self._fill(cell, parameter, getattr(self, parameter.name + suffix))

    def _fill(self, cell: Cell, parameter: Parameter, tensor: Tensor) -> None:
        whole = cell.initial.get(parameter.name)
        if whole is not None and not parameter.blocks:
            whole.fill(tensor, self.hidden_size)
        for gate, rows in parameter.blocks.items():
            initial = cell.initial.get(f"{parameter.name}.{gate}", whole)
            if initial is not None:
                initial.fill(tensor[rows], self.hidden_size)

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, Any]:
        """Run whole sequences.

        Args:
            input: [T, B, I] ([B, T, I] where `batch_first`), [T, I] unbatched, or a PackedSequence.
            state: the state before the first step: a tensor for a cell with one state, else a tuple, of
                [L·directions, B, width] ([L·directions, width] unbatched). Default: the cell's, usually zeros.
            lengths: [B] valid steps of each row, 1 to T, in any order. Default: T for all.
            reset: [T, B] bool, in the layout of the input: true where a row starts afresh, with the cell's default
                state, before the step. Both directions are cut there.
            extras: the cell's further inputs by name, [T, B] or [T, B, width] in the layout of the input.

        Returns:
            The output, in the form of the input with the width H·directions, zero past each row's length; and the
            state after each row's last step (for the backward direction, its first), in the form of `state`.

        Raises:
            ValueError: a shape, length or dtype does not fit.
        """
        frame = self._frame(input, lengths)
        sequences, final = self._unroll(frame, state, reset, extras, dispatch.run, every_state=False)
        return frame.leave(sequences[0]), final

    def unroll(
        self,
        input: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, Any]:
        """As `forward`, but the first result has, at every step, all states of the last layer: a named tuple."""
        frame = self._frame(input, lengths)
        sequences, final = self._unroll(frame, state, reset, extras, dispatch.run, every_state=True)
        return self.cell.State(*(frame.leave(v) for v in sequences)), final

    def step(self, input: Tensor, state: Any = None, *, extras: Mapping[str, Tensor] | None = None) -> tuple[Any, Any]:
        """Run one time step.

        Args:
            input: [B, I], or [I] unbatched.
            state: as for `forward`.
            extras: the cell's further inputs by name, [B] or [B, width].

        Returns:
            The output, [B, H] or [H], and the state.

        Raises:
            ValueError: the layer is bidirectional, or a shape does not fit.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer has no step: its backward direction starts at the end")
        if input.dim() not in (1, 2):
            raise ValueError(f"input must be [B, I], or [I] unbatched, got {tuple(input.shape)}")
        if not torch.is_grad_enabled() and not extras and input.dim() == 2:
            from elman.nn.stepper import prepared

            kernels = prepared(self, input.shape[0])
            if kernels is not None:
                kernels.enter(state)
                output = kernels.step(input)
                return output, kernels.state()
        time = 1 if self.batch_first and input.dim() == 2 else 0
        lifted = None if extras is None else {name: value.unsqueeze(time) for name, value in extras.items()}
        output, state = self(input.unsqueeze(time), state, extras=lifted)
        return output.squeeze(time), state

    def stepper(self, batch_size: int = 1) -> Any:
        """Prepared inference steps that carry their own state; see `elman.Stepper`."""
        from elman.nn.stepper import Stepper

        return Stepper(self, batch_size)

    def plan(
        self, input: Tensor | PackedSequence | None, found: list[tuple[str, dict[str, str]]], **arguments: Any
    ) -> None:
        """Append, for each layer, the engine that `forward` would run it on, and why not another; runs nothing."""
        weight = next(self.parameters())
        given = weight.new_zeros(2, 1, self.input_size) if input is None else input
        frame = self._frame(given, arguments.pop("lengths", None))

        def record(call: LayerCall) -> list[DirectionResult]:
            found.append(dispatch.choose(call))
            sequences = tuple(call.input.new_zeros(call.input.shape[0], width) for _, width in call.layout.states)
            state = default_state(call.layout, call.packing.batch, call.input)
            return [DirectionResult(sequences, state) for _ in call.directions]

        self._unroll(frame, None, arguments.pop("reset", None), arguments.pop("extras", None), record, False)
        if arguments:
            raise TypeError(f"unknown arguments: {', '.join(arguments)}")

    def _frame(self, input: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None) -> Frame:
        frame = Frame(input, self.input_size, lengths, self.batch_first)
        weight = next(self.parameters())
        if frame.input.device != weight.device:
            raise ValueError(f"input is on {frame.input.device}, the parameters on {weight.device}")
        if frame.input.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(f"input must be {weight.dtype} like the parameters, got {frame.input.dtype}")
        return frame

    def _unroll(
        self,
        frame: Frame,
        state: Any,
        reset: Tensor | None,
        extras: Mapping[str, Tensor] | None,
        run: Run,
        every_state: bool,
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The last layer's sequences, [N, width·directions] each and packed, and the state as the caller sees it."""
        packing, packed_reset = frame.packing, frame.reset(reset)
        directions = self.num_directions
        given = None
        if state is not None:
            given = frame.state(state, self.layers[0][1], self.num_layers * directions)
        x = frame.input
        results: list[DirectionResult] = []
        finals: list[tuple[Tensor, ...]] = []
        for level, (cell, parts) in enumerate(self.layers):
            above = self.layers[level + 1][0].below if level + 1 < self.num_layers else ()
            call = LayerCall(
                cell=cell,
                layout=parts,
                packing=packing,
                input=x,
                reset=packed_reset,
                extras=frame.extras(parts, extras),
                directions=tuple(
                    Direction(
                        parameters={name: getattr(self, full) for name, full in self._slots[level][index]},
                        state=None if given is None else tuple(v[level * directions + index] for v in given),
                        reverse=index == 1,
                        below={name: _sequence(results[index], cell, name) for name in cell.below},
                    )
                    for index in range(directions)
                ),
                every_state=bool(above) or (every_state and level == self.num_layers - 1),
            )
            if self.recompute and torch.is_grad_enabled() and run is dispatch.run:
                results = checkpoint(run, call, use_reentrant=False, preserve_rng_state=False)
            else:
                results = run(call)
            finals += [result.state for result in results]
            x = _concatenate([result.sequences[0] for result in results])
            if self.dropout and level < self.num_layers - 1 and run is dispatch.run:
                x = F.dropout(x, self.dropout, self.training)
        sequences = [_concatenate(list(parts)) for parts in zip(*(r.sequences for r in results), strict=True)]
        state = _form(self.cell)(*(frame.leave_state(_stack(entry)) for entry in zip(*finals, strict=True)))
        return tuple(sequences), state if len(state) > 1 else state[0]

    def flatten_parameters(self) -> None:
        """Nothing to do: kept so that code written for torch.nn runs as it is."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, in order, as torch.nn's layers give them."""
        return [
            [getattr(self, p.name + suffix) for p in parts.parameters]
            for level, (_, parts) in enumerate(self.layers)
            for suffix in self._suffixes(level)
        ]

    def extra_repr(self) -> str:
        shown = [repr(self.cell), str(self.input_size), str(self.hidden_size)]
        for name, parameter in inspect.signature(Recurrent.__init__).parameters.items():
            value = getattr(self, name, parameter.default)
            if name not in ("cell", "device", "dtype") and parameter.default not in (inspect.Parameter.empty, value):
                shown.append(f"{name}={value}")
        return ", ".join(shown)


def as_cell(cell: str | type[Cell] | Cell) -> Cell:
    """The cell instance that a name, a class or an instance means.

    Raises:
        ValueError: the name is unknown, or it is none of the three.
    """
    if isinstance(cell, str):
        return cells.get(cell)()
    if isinstance(cell, Cell):
        return cell
    if inspect.isclass(cell) and issubclass(cell, Cell):
        return cell()
    raise ValueError(f"cell must be a registered name, a Cell class or an instance, got {cell!r}")


@lru_cache(maxsize=1024)
def _form(cell: Cell) -> Any:
    return cell.State


def _stack(rows: tuple[Tensor, ...]) -> Tensor:
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


def _concatenate(directions: list[Tensor]) -> Tensor:
    return directions[0] if len(directions) == 1 else _Beside.apply(*directions)  # type: ignore[no-untyped-call]


class _Beside(torch.autograd.Function):
    """`torch.cat(parts, -1)` of matrices, in memory from the pool."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        whole = memory.empty_like(parts[0], parts[0].shape[0], sum(ctx.widths))
        return torch.cat(parts, dim=-1, out=whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].split(ctx.widths, dim=-1)


def _sequence(result: DirectionResult, cell: Cell, name: str) -> Tensor:
    names = cell.State._fields
    if name not in names:
        raise ValueError(f"{cell!r} reads the state {name!r} of the layer below, which has {', '.join(names)}")
    sequence: Tensor = result.sequences[names.index(name)]
    return sequence
