"""The ways in which inputs and outputs of a recurrent network stand to each other in time, as small modules.

| module | reads | gives |
|---|---|---|
| `OneToOne` | one vector | one vector, after one step |
| `OneToMany` | one vector | an output at each step, each fed back as the next input |
| `ManyToOne` | a sequence | one vector, at its end |
| `ManyToMany` | a sequence | an output at each step, at once or `delay` steps later |
| `EncoderDecoder` (in `transduction.py`) | a sequence | another sequence, when all of the first is read |

Each takes a `Recurrent` and a head, any module that maps its outputs [*, output_size] to [*, O]. Time comes first; the
recurrent layers' `batch_first` must be False.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elman.nn.recurrent import Recurrent


def _time_first(recurrent: Recurrent) -> Recurrent:
    if recurrent.batch_first:
        raise ValueError("recurrent must have batch_first=False: time comes first in input and output")
    return recurrent


class _Pattern(nn.Module):
    """Recurrent layers and a head."""

    def __init__(self, recurrent: Recurrent, head: nn.Module) -> None:
        super().__init__()
        self.recurrent = _time_first(recurrent)
        self.head = head


class OneToOne(_Pattern):
    """One step of the recurrent layers from the default state: a feed-forward network with the same parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, I] to [B, O]."""
        output, _ = self.recurrent(input.unsqueeze(0))
        answer: Tensor = self.head(output[0])
        return answer


class ManyToOne(_Pattern):
    """One answer for a sequence, from the output at its end: of each direction at the end of its own time."""

    def forward(self, input: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """[T, B, I] and lengths [B] to [B, O]."""
        output, _ = self.recurrent(input, lengths=lengths)
        answer: Tensor = self.head(last_output(output, lengths, self.recurrent))
        return answer


def last_output(output: Tensor, lengths: Tensor | Sequence[int] | None, recurrent: Recurrent) -> Tensor:
    """[T, B, output_size] to [B, output_size]: the last step of the forward direction, the first of the backward one.

    Where the directions are added up (`merge`), all of it is taken at the last step.
    """
    if lengths is None:
        last = output[-1]
    else:
        ends = torch.as_tensor(lengths, device=output.device) - 1
        last = output[ends, torch.arange(output.shape[1], device=output.device)]
    if not recurrent.bidirectional or recurrent.options.merge != "concatenate":
        return last
    half = output.shape[-1] // 2
    return torch.cat([last[:, :half], output[0, :, half:]], -1)


class ManyToMany(_Pattern):
    """An answer at each step: at once, or with a delay, so that each answer has seen `delay` more inputs.

    With a delay the sequence is followed by as many steps of zeros, and the first outputs are dropped (Graves, Jaitly &
    Mohamed 2013 and Turek et al. 2020 compare it with a backward direction).

    Args:
        recurrent, head: see the module.
        delay: steps.
    """

    def __init__(self, recurrent: Recurrent, head: nn.Module, delay: int = 0) -> None:
        super().__init__(recurrent, head)
        if not isinstance(delay, int) or delay < 0:
            raise ValueError(f"delay must be a number of steps, at least 0, got {delay!r}")
        self.delay = delay

    def forward(
        self, input: Tensor, state: Any = None, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Any]:
        """[T, B, I] to [T, B, O] and the state; with `lengths` [B], rows are delayed past their own ends."""
        if not self.delay:
            output, state = self.recurrent(input, state, lengths=lengths)
            return self.head(output), state
        later = torch.cat([input, input.new_zeros(self.delay, *input.shape[1:])])
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            valid = torch.arange(len(later), device=lengths.device)[:, None] < lengths
            later = later * valid.to(later)[:, :, None]
            lengths = lengths + self.delay
        output, state = self.recurrent(later, state, lengths=lengths)
        return self.head(output[self.delay :]), state


class OneToMany(_Pattern):
    """A sequence from one vector: each output, through `feed`, is the next step's input.

    Args:
        recurrent, head: see the module.
        feed: maps an answer [B, O] to an input [B, I]; by default it is taken as it is.
    """

    def __init__(self, recurrent: Recurrent, head: nn.Module, feed: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(recurrent, head)
        self.feed = feed

    def forward(self, first: Tensor, steps: int, state: Any = None) -> tuple[Tensor, Any]:
        """The first input [B, I] to [steps, B, O] and the state."""
        answers, previous = [], first
        for _ in range(steps):
            output, state = self.recurrent.step(previous, state)
            answers.append(self.head(output))
            previous = answers[-1] if self.feed is None else self.feed(answers[-1])
        return torch.stack(answers), state


class DeepOutput(nn.Module):
    """Recurrent layers with a feed-forward network on top of each step: a recurrence that is deep in its output.

    y_t = V_n φ(… φ(V_1 h_t + b_1) …) + b_n, with the same weights at each step. Pascanu, Gulcehre, Cho & Bengio, "How
    to construct deep recurrent neural networks", ICLR 2014, section 3.3.3. Depth by stacked recurrences is
    `num_layers`, depth in the transition the cell `recurrent_highway`.

    Args:
        recurrent: the layers below.
        sizes: widths of the hidden layers, then of the answer.
        activation: φ, a module or function.
    """

    def __init__(
        self, recurrent: Recurrent, sizes: Sequence[int], activation: Callable[[Tensor], Tensor] = torch.relu
    ) -> None:
        super().__init__()
        if not sizes:
            raise ValueError("sizes must have one width at least, that of the answer")
        self.recurrent = recurrent
        widths = [recurrent.output_size, *sizes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, sizes, strict=False))
        self.activation = activation

    def on_top(self, output: Tensor) -> Tensor:
        """[*, output_size] to [*, sizes[-1]]."""
        for number, layer in enumerate(self.layers):
            output = layer(output if number == 0 else self.activation(output))
        return output

    def forward(self, input: Tensor, state: Any = None, **arguments: Any) -> tuple[Tensor, Any]:
        """As `Recurrent.forward`, with answers for outputs."""
        output, state = self.recurrent(input, state, **arguments)
        return self.on_top(output), state

    def step(self, input: Tensor, state: Any = None, **arguments: Any) -> tuple[Tensor, Any]:
        """As `Recurrent.step`, with answers for outputs."""
        output, state = self.recurrent.step(input, state, **arguments)
        return self.on_top(output), state
