"""From one sequence to another: an encoder reads, a bridge carries its state over, a decoder writes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elman.nn.recurrent import Recurrent


class Encoder(nn.Module):
    """Reads a sequence: an embedding, where inputs are tokens, and recurrent layers.

    Args:
        recurrent: the layers; of both directions, if wanted.
        embedding: maps [T, B] tokens to [T, B, I]; None where inputs are vectors already.
    """

    def __init__(self, recurrent: Recurrent, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.embedding = embedding

    def forward(self, input: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Any]:
        """[T, B] tokens or [T, B, I], lengths [B], to all outputs [T, B, output_size] and the final state."""
        output, state = self.recurrent(input if self.embedding is None else self.embedding(input), lengths=lengths)
        return output, state


class Decoder(nn.Module):
    """Writes a sequence from a state: an embedding of what was written, recurrent layers, and a head.

    Args:
        recurrent: the layers, of one direction.
        head: maps outputs to answers, such as scores of tokens, [*, O].
        embedding: maps tokens to inputs; None where inputs are vectors.
    """

    def __init__(self, recurrent: Recurrent, head: nn.Module, embedding: nn.Module | None = None) -> None:
        super().__init__()
        if recurrent.bidirectional:
            raise ValueError("a decoder must be unidirectional: what it reads, it has yet to write")
        self.recurrent = recurrent
        self.head = head
        self.embedding = embedding

    def forward(
        self, previous: Tensor, state: Any = None, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Any]:
        """Teacher forcing: the true previous targets, [T, B] or [T, B, I], to answers [T, B, O] and the state."""
        given = previous if self.embedding is None else self.embedding(previous)
        output, state = self.recurrent(given, state, lengths=lengths)
        return self.head(output), state

    def step(self, previous: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step: [B] or [B, I] to an answer [B, O] and the state."""
        output, state = self.recurrent.step(previous if self.embedding is None else self.embedding(previous), state)
        return self.head(output), state

    def generate(
        self, first: Tensor, state: Any, steps: int, choose: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """Free running: each step reads what `choose` makes of the answer before.

        Args:
            first: what the first step reads, [B] or [B, I].
            state: before it.
            steps: to write.
            choose: maps an answer [B, O] to the next input; by default its largest entry where there is an embedding,
                else the answer itself.

        Returns:
            What was chosen, [steps, B] or [steps, B, O], and the state.
        """
        if choose is None:
            choose = (lambda answer: answer.argmax(-1)) if self.embedding is not None else (lambda answer: answer)
        written, previous = [], first
        for _ in range(steps):
            answer, state = self.step(previous, state)
            previous = choose(answer)
            written.append(previous)
        return torch.stack(written), state


class Bridge(nn.Module):
    """Maps an encoder's final state to a decoder's first, whatever their layers, directions, widths and cells.

    s'_l,e = V_l,e [s_m,e ; s_m,e reversed] + b_l,e, and tanh of it for the output, as it is bounded in the encoder:
    one linear map for each layer l and state entry e of the decoder, from both directions of the encoder's layer m,
    which is as far from the top (the lowest where the decoder is deeper). An entry that the encoder's cell lacks is
    made from its output. Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014, for one
    layer.

    With `copy`, nothing is learned: states are handed over as they are, which their shapes must allow.
    """

    def __init__(self, encoder: Recurrent, decoder: Recurrent, copy: bool = False) -> None:
        super().__init__()
        self.copy = copy
        self._layered = decoder.layered
        self._encoder_layered = encoder.layered
        self._directions = encoder.num_directions
        self._entries: list[list[tuple[int, int, int]]] = []  # of the decoder: its source's layer, entry, and map
        self._cells = [cell for cell, _ in decoder.layers]
        self._encoder_layers = len(encoder.layers)
        self.maps = nn.ModuleList()
        for level, (_, parts) in enumerate(decoder.layers):
            source = max(0, level + len(encoder.layers) - len(decoder.layers))
            available = encoder.layers[source][1].states
            names = [entry.name for entry, _ in available]
            chosen = []
            for entry, width in parts.states:
                place = names.index(entry.name) if entry.name in names else 0
                if entry.dtype == "int64":
                    chosen.append((source, place, -1))
                    continue
                found = available[place][1] * self._directions
                if copy and (found != width or len(encoder.layers) != len(decoder.layers)):
                    raise ValueError(f"copy needs equal layers and widths; {entry.name!r} has {found}, then {width}")
                chosen.append((source, place, len(self.maps)))
                if not copy:
                    self.maps.append(nn.Linear(found, width))
            self._entries.append(chosen)

    def forward(self, state: Any) -> Any:
        """The encoder's state, in the form that it gives, to one in the form that the decoder takes."""
        layers = _by_layer(state, self._encoder_layers, self._encoder_layered)
        made: list[tuple[Tensor, ...]] = []
        for chosen in self._entries:
            values = []
            for place, (source, entry, number) in enumerate(chosen):
                value = layers[source][entry]  # [directions, B, width]
                both = torch.cat(list(value), -1)
                if number < 0:
                    both = torch.zeros(value.shape[1], 1, dtype=torch.int64, device=value.device)
                elif not self.copy:
                    both = self.maps[number](both)
                    both = both.tanh() if place == 0 else both
                values.append(both)
            made.append(tuple(values))
        if self._layered:
            forms = [cell.State(*(v[None] for v in values)) for cell, values in zip(self._cells, made, strict=True)]
            return tuple(form if len(form) > 1 else form[0] for form in forms)
        whole = self._cells[0].State(*(torch.stack(entry) for entry in zip(*made, strict=True)))
        return whole if len(whole) > 1 else whole[0]


def _by_layer(state: Any, layers: int, layered: bool) -> list[list[Tensor]]:
    """A state as, for each layer, one [directions, B, width] tensor for each entry."""
    if layered:
        return [list(value) if isinstance(value, tuple) else [value] for value in state]
    entries = list(state) if isinstance(state, tuple) else [state]
    return [list(found) for found in zip(*(v.unflatten(0, (layers, -1)) for v in entries), strict=True)]


class EncoderDecoder(nn.Module):
    """A sequence to another, which begins when all of the first is read.

    Sutskever, Vinyals & Le, "Sequence to sequence learning with neural networks", NeurIPS 2014; Cho et al. 2014.

    Args:
        encoder, decoder: the parts.
        bridge: between their states; by default a learned one.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, bridge: Bridge | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.bridge = bridge or Bridge(encoder.recurrent, decoder.recurrent)

    def forward(
        self, input: Tensor, previous: Tensor, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Any]:
        """The input and the true previous targets to answers [T', B, O], and the decoder's state."""
        _, state = self.encoder(input, lengths=lengths)
        answers, state = self.decoder(previous, self.bridge(state))
        return answers, state

    def generate(
        self,
        input: Tensor,
        first: Tensor,
        steps: int,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        choose: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The input and what the decoder reads first to what it writes; see `Decoder.generate`."""
        _, state = self.encoder(input, lengths=lengths)
        return self.decoder.generate(first, self.bridge(state), steps, choose)[0]
