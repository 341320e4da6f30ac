"""`Recurrent`: any cell as a layer, with the arguments and the parameters of torch.nn's recurrent layers."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elman import cells
from elman.cells.contract import Cell
from elman.cells.initial import Initial
from elman.engine import dispatch, draws
from elman.engine.call import DirectionResult, LayerCall
from elman.engine.draws import Noise
from elman.engine.reference import default_state
from elman.nn.chains import rows_of_chains
from elman.nn.frame import Frame
from elman.nn.initialise import fill, initial_name
from elman.nn.options import Merge, Options, RecurrentInit, per_layer
from elman.nn.shortcut import Shortcuts
from elman.nn.stack import Stack
from elman.nn.stepper import Stepper, prepared
from elman.nn.unrolling import Run, Unrolling, form, learned_state
from elman.nn.wiring import merged


class Recurrent(nn.Module):
    """A stack of recurrent layers of one cell.

    Args:
        cell: a registered name (`elman.cells.names()`), a Cell class, an instance with options, or a sequence of these,
            one for each layer.
        input_size: I, features of each step.
        hidden_size: H, units of each layer, or a sequence with a number for each.
        num_layers: layers, each of which reads the outputs of the one below; where `cell` or `hidden_size` is a
            sequence, its length says.
        bias: whether there are biases, where the cell has any.
        batch_first: whether batched tensors are [B, T, *]; states are [L·directions, B, width] regardless.
        dropout: probability of zeroing an element of the outputs of each layer but the last, in training.
        bidirectional: whether each layer also runs backwards, from each row's own end.

    Further options, keyword-only; docs/options.md has each one's formula and source. Those that draw masks act in
    training alone:
        locked_dropout: probability of dropping a unit of the input, and of each layer's output, at all steps alike; or
            a sequence of num_layers + 1 such, for the input and each layer's output.
        recurrent_dropout: probability of dropping a unit of the state where the recurrent products read it, at all
            steps alike, or with `recurrent_dropout_per_step` afresh at each.
        zoneout: probability that a unit keeps its previous state, for all state entries, or by their names.
        weight_dropout: probability of dropping a recurrent weight (of `weight_hh`) for a whole call.
        layer_norm: whether gates are normalised over their units, inside the recurrence.
        residual: whether a layer's input is added to its output where both are equally wide.
        dense: whether a layer reads, side by side, the input and the outputs of all layers below.
        merge: how the directions' outputs become one: "concatenate", "sum" or "mean".
        learn_state: whether the state at the start of a sequence and after a reset is learned, `initial_<entry>_l{k}`
            [width], instead of the cell's default.
        proj_size: where positive, the output is a learned projection to this width (see `cells.wrapped.Projected`).
        forget_bias: what the forget gate's bias starts at.
        chrono: the longest dependency in steps that gates are to bridge from the start; see `nn.initialise.set_chrono`.
        recurrent_init: "orthogonal" or "identity", or an `Initial`, for each gate's part of `weight_hh`.
        mogrify: rounds in which input and previous output gate each other before the cell reads them.
        mogrify_rank: where positive, the rank of the matrices that do so.
        recompute: whether a layer keeps only its inputs for the backward pass and runs forward again there: for deep
            stacks and long sequences, a third more time for the memory of one layer instead of all.
        device, dtype: of the parameters.

    Parameters have torch's names, shapes and gate order: `weight_ih_l{k}` [G·H, I], `weight_hh_l{k}` [G·H, H],
    `bias_ih_l{k}`, `bias_hh_l{k}`, and those that the cell names; the backward direction's end in `_reverse`.

    Where `cell` or `hidden_size` is a sequence, states may differ from layer to layer: `state` is then a tuple that
    has, for each layer, what a single layer takes and gives.

    Raises:
        ValueError: an argument is out of its range, or a name is unknown.
    """

    dropout_as_torch = False  # whether `dropout` draws from torch's generator element by element, as torch.nn does

    def __init__(
        self,
        cell: str | type[Cell] | Cell | Sequence[str | type[Cell] | Cell],
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        locked_dropout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_per_step: bool = False,
        zoneout: float | Mapping[str, float] = 0.0,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
        residual: bool = False,
        dense: bool = False,
        merge: Merge = "concatenate",
        learn_state: bool = False,
        proj_size: int = 0,
        forget_bias: float | None = None,
        chrono: float | None = None,
        recurrent_init: RecurrentInit | Initial | None = None,
        mogrify: int = 0,
        mogrify_rank: int = 0,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive("num_layers", num_layers)
        _positive("input_size", input_size)
        self.layered = isinstance(cell, (list, tuple)) or isinstance(hidden_size, (list, tuple))
        num_layers, given = per_layer(num_layers, cell=cell, hidden_size=hidden_size)
        for size in given["hidden_size"]:
            _positive("hidden_size", size)
        smallest = min(given["hidden_size"])
        if not isinstance(proj_size, int) or not 0 <= proj_size < smallest:
            raise ValueError(f"proj_size must be from 0 (no projection) to hidden_size - 1, got {proj_size!r}")
        self.options = Options(
            dropout=dropout,
            locked_dropout=tuple(locked_dropout) if isinstance(locked_dropout, Sequence) else locked_dropout,
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_per_step=recurrent_dropout_per_step,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            layer_norm=layer_norm,
            residual=residual,
            dense=dense,
            merge=merge,
            learn_state=learn_state,
            proj_size=proj_size,
            forget_bias=forget_bias,
            chrono=chrono,
            recurrent_init=recurrent_init,
            mogrify=mogrify,
            mogrify_rank=mogrify_rank,
        )
        if dropout and num_layers == 1:
            warnings.warn("dropout acts between layers, so with num_layers=1 it has no effect", stacklevel=2)
        stacked = [as_cell(c) for c in given["cell"]]
        self.cell = stacked[-1]
        self.input_size = input_size
        self.hidden_size = tuple(given["hidden_size"]) if isinstance(hidden_size, (list, tuple)) else hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.recompute = recompute
        self._stack = Stack(
            stacked, given["hidden_size"], input_size, bias, self.num_directions, self.options, self.layered
        )
        self.layers = self._stack.layers
        self._random = self.options.acts_at_random or any(parts.draws for _, parts in self._stack.trained)
        self._shortcuts = Shortcuts()
        # Whether all that a call does is to run its layers one after the other.
        self._brief = not (learn_state or self.layered or recompute)
        self._seeded = self._random and not (self.dropout_as_torch and self.options == Options(dropout=dropout))
        for (_, parts), suffixes in zip(self.layers, self._stack.suffixes, strict=True):
            for suffix in suffixes:
                for parameter in parts.parameters:
                    empty = torch.empty(parameter.shape, device=device, dtype=dtype)
                    trained = nn.Parameter(empty, requires_grad=not parameter.frozen)
                    self.register_parameter(parameter.name + suffix, trained)
                for entry, width in parts.states if learn_state else ():
                    if entry.dtype == "float":
                        learned = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
                        name = initial_name(entry.name, suffix)
                        if name in self._parameters:
                            raise ValueError(f"learn_state: {name} is the name of a parameter of the cell's own")
                        self.register_parameter(name, learned)
        self.reset_parameters()
        if proj_size and not any(parts.extras for _, parts in self.layers):
            self._check_projection()

    def _check_projection(self) -> None:
        """Raise a ValueError where a step reads the projected output as if it had all units."""
        try:
            with torch.no_grad(), dispatch.use_engine("reference"):
                self(next(self.parameters()).new_zeros(1, 1, self.input_size), noise=draws.SILENT)
        except RuntimeError as error:
            if "must match" in str(error):
                problem = "reads its output beyond its recurrent products, so it cannot be projected"
                raise ValueError(f"proj_size: {self.cell!r} {problem}") from error

    @property
    def num_directions(self) -> int:
        """2 where bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Width of the output: H, or the projection's, times the directions where they are concatenated."""
        return self._stack.output_size

    @property
    def plain_stack(self) -> bool:
        """Whether each layer reads just the output of the one below, dropout apart."""
        return self._stack.wiring.plain

    def default_state(self, level: int, direction: int = 0) -> tuple[Tensor, ...]:
        """The state of a layer at the start of a sequence, learned or the cell's own: [width] for each entry."""
        if self.options.learn_state:
            return tuple(v.detach().clone() for v in learned_state(self, self._stack, level, direction))
        parts = self.layers[level][1]
        return tuple(v[0] for v in default_state(parts, 1, next(self.parameters())))

    def reset_parameters(self) -> None:
        """Draw all parameters afresh: U(-1/√H, 1/√H) as torch.nn, then what the cell and the options say."""
        fill(self, self.layers, self._stack.suffixes, self.options)

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        noise: Noise | None = None,
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
            noise: where masks come from in training; by default from a seed that torch's global generator draws for
                each call. With `Noise(seed, step, row)` chunks and single rows have the masks of the whole.

        Returns:
            The output, in the form of the input with the width `output_size`, zero past each row's length; and the
            state after each row's last step (for the backward direction, its first), in the form of `state`. In
            training the output may be what the backward pass reads: do not change it in place.

        Raises:
            ValueError: a shape, length or dtype does not fit.
        """
        shortcuts, known = self._shortcuts, None
        chain = 0
        if lengths is not None and state is None and reset is None and extras is None and noise is None:
            chain = rows_of_chains(self, input, lengths)
        brief = type(input) is Tensor or (type(input) is PackedSequence and lengths is None)
        ragged = lengths is not None or type(input) is PackedSequence
        if brief and reset is None and extras is None and noise is None and self._brief:
            known = shortcuts.form(self, input, state, ragged, chain)
            found = None if known is None else shortcuts.run(known, self, input, state, lengths)
            if found is not None:
                return found
        run = shortcuts.recorder(known, dispatch.run)
        frame = self._frame(input, lengths, chain)
        outputs, _, final = self._unrolling(frame, noise, run).forward(state, reset, extras, every_state=False)
        shortcuts.learn(known, self, input, run, ragged)
        return frame.leave(*outputs), final

    def unroll(
        self,
        input: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        noise: Noise | None = None,
    ) -> tuple[Any, Any]:
        """As `forward`, but the first result has, at every step, all states of the last layer: a named tuple.

        They are the states as the cell made them, merged as outputs are, without skips and dropout of the output.
        """
        frame = self._frame(input, lengths)
        _, results, final = self._unrolling(frame, noise).forward(state, reset, extras, every_state=True)
        sequences = [merged(parts, self.options.merge) for parts in zip(*(r.sequences for r in results), strict=True)]
        return form(self.cell)(*(frame.leave(v) for v in sequences)), final

    def step(
        self,
        input: Tensor,
        state: Any = None,
        *,
        extras: Mapping[str, Tensor] | None = None,
        noise: Noise | None = None,
    ) -> tuple[Any, Any]:
        """Run one time step.

        Without gradients the layers' matrices are prepared at the first step, and again where a parameter has changed.
        torch counts changes but those through `.data`; for these, 16 numbers of each parameter, evenly spread, are
        compared, so that a change of fewer than a sixteenth of its rows may go unseen.

        Args:
            input: [B, I], or [I] unbatched.
            state: as for `forward`.
            extras: the cell's further inputs by name, [B] or [B, width].
            noise: as for `forward`; `Noise(seed, step=t)` for step t.

        Returns:
            The output, [B, H] or [H], and the state.

        Raises:
            ValueError: the layer is bidirectional, or a shape does not fit.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer has no step: its backward direction starts at the end")
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
        if input.dim() not in (1, 2):
            raise ValueError(f"input must be [B, I], or [I] unbatched, got {tuple(input.shape)}")
        silent = not (self.training and self._random) or noise is draws.SILENT
        if silent and not torch.is_grad_enabled() and extras is None and input.dim() == 2:
            kernels = prepared(self, input)
            if kernels is not None:
                return kernels.advance(input, state)
        time = 1 if self.batch_first and input.dim() == 2 else 0
        lifted = None if extras is None else {name: value.unsqueeze(time) for name, value in extras.items()}
        output, state = self(input.unsqueeze(time), state, extras=lifted, noise=noise)
        return output.squeeze(time), state

    def stepper(self, batch_size: int = 1) -> Stepper:
        """Prepared inference steps, as in evaluation, that carry their own state; see `elman.Stepper`."""
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

        noise = Noise(0) if self.training and self._random else None
        unrolling = Unrolling(self, self._stack, frame, record, noise)
        unrolling.forward(None, arguments.pop("reset", None), arguments.pop("extras", None), every_state=False)
        if arguments:
            raise TypeError(f"unknown arguments: {', '.join(arguments)}")

    def _frame(self, input: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None, chain: int = 0) -> Frame:
        frame = Frame(input, self.input_size, lengths, self.batch_first, chain)
        x, weight = frame.input, getattr(self, self._stack.slots[0][0][0][1])
        if x.device != weight.device:
            raise ValueError(f"input is on {x.device}, the parameters on {weight.device}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(f"input must be {weight.dtype} like the parameters, got {x.dtype}")
        return frame

    def _unrolling(self, frame: Frame, noise: Noise | None, run: Run = dispatch.run) -> Unrolling:
        """A call, with the masks that `noise` or a fresh seed gives where there are any; `run` runs a layer."""
        named = noise is not None or not self.dropout_as_torch
        recompute = self.recompute and torch.is_grad_enabled()
        return Unrolling(self, self._stack, frame, run, self._source(noise), named, recompute)

    def _source(self, noise: Noise | None) -> Noise | None:
        """Where a call's masks come from, given what the caller says; None where there are none."""
        if not self.training or not self._random or noise is draws.SILENT:
            return None
        if noise is None:
            return draws.fresh() if self._seeded else Noise(0)
        if not isinstance(noise, Noise):
            raise TypeError(f"noise must be an elman.Noise, got {type(noise).__name__}")
        return noise

    def flatten_parameters(self) -> None:
        """Nothing to do: kept so that code written for torch.nn runs as it is."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, in order, as torch.nn's layers give them."""
        return [
            [getattr(self, p.name + suffix) for p in parts.parameters]
            for (_, parts), suffixes in zip(self.layers, self._stack.suffixes, strict=True)
            for suffix in suffixes
        ]

    def extra_repr(self) -> str:
        shown = [repr(self.cell), str(self.input_size), str(self.hidden_size)]
        for name, parameter in inspect.signature(Recurrent.__init__).parameters.items():
            value = getattr(self.options, name, getattr(self, name, parameter.default))
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


def _positive(name: str, size: object) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
