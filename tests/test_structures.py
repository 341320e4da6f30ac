"""The patterns of input and output, and the parts of an encoder-decoder."""

from typing import Any

import pytest
import torch
from torch import nn

from elman import Noise, Recurrent
from elman.nn import (
    Bridge,
    Decoder,
    DeepOutput,
    EmbeddingDropout,
    Encoder,
    EncoderDecoder,
    LockedDropout,
    ManyToMany,
    ManyToOne,
    OneToMany,
    OneToOne,
)

T, B = 5, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_one_to_one_is_one_step() -> None:
    recurrent, head, x = Recurrent("gru", 4, 6), nn.Linear(6, 2), torch.randn(B, 4)
    torch.testing.assert_close(OneToOne(recurrent, head)(x), head(recurrent.step(x)[0]))


@pytest.mark.parametrize("merge", ["concatenate", "sum"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_many_to_one_reads_each_row_to_its_end(bidirectional: bool, merge: Any) -> None:
    recurrent = Recurrent("gru", 4, 6, bidirectional=bidirectional, merge=merge)
    model, x = ManyToOne(recurrent, nn.Identity()), torch.randn(T, B, 4)
    lengths = [2, 5, 1]
    together = model(x, lengths=lengths)
    for row, n in enumerate(lengths):
        alone = model(x[:n, row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)
    if merge == "concatenate":  # the end of each direction's time is its final state
        _, state = recurrent(x, lengths=lengths)
        torch.testing.assert_close(together, torch.cat(list(state), -1))


def test_many_to_many_at_once_sees_no_later_input() -> None:
    model = ManyToMany(Recurrent("gru", 4, 6), nn.Linear(6, 2))
    assert _seen(model, 2) == [True] * 3 + [False] * 2


@pytest.mark.parametrize("delay", [1, 3])
def test_many_to_many_delayed_sees_so_many_more(delay: int) -> None:
    model = ManyToMany(Recurrent("gru", 4, 6), nn.Linear(6, 2), delay)
    assert _seen(model, 1) == [True] * min(2 + delay, T) + [False] * max(3 - delay, 0)
    x, lengths = torch.randn(T, B, 4), [2, 5, 3]
    together, _ = model(x, lengths=lengths)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(together[:n, row], model(x[:n, row : row + 1])[0][:, 0])


def _seen(model: ManyToMany, step: int) -> list[bool]:
    """At which steps the inputs act on the answer of one."""
    x = torch.randn(T, B, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0][step].sum(), x)
    return (gradient.abs().sum((1, 2)) > 0).tolist()


def test_one_to_many_reads_what_it_wrote() -> None:
    recurrent, head = Recurrent("lstm", 4, 6), nn.Linear(6, 4)
    first = torch.randn(B, 4)
    answers, state = OneToMany(recurrent, head)(first, T)
    inputs = torch.cat([first[None], answers[:-1]])
    output, expected = recurrent(inputs)
    torch.testing.assert_close(answers, head(output))
    torch.testing.assert_close(state.c, expected.c)
    squashed, _ = OneToMany(recurrent, head, torch.tanh)(first, 2)
    torch.testing.assert_close(squashed[1], head(recurrent(torch.stack([first, squashed[0].tanh()]))[0][1]))


def test_a_feed_forward_network_on_top_of_each_step() -> None:
    model = DeepOutput(Recurrent("gru", 4, 6, bidirectional=True), [8, 7, 2], torch.tanh)
    x = torch.randn(T, B, 4)
    first, second, third = model.layers
    expected = third(torch.tanh(second(torch.tanh(first(model.recurrent(x)[0])))))
    torch.testing.assert_close(model(x, lengths=[T] * B)[0], expected)
    model = DeepOutput(Recurrent("lstm", 4, 6), [8, 2])
    whole, _ = model(x)
    state, steps = None, []
    for t in range(T):
        answer, state = model.step(x[t], state)
        steps.append(answer)
    torch.testing.assert_close(torch.stack(steps), whole)


PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cell": "lstm", "hidden_size": 6}, {"cell": "lstm", "hidden_size": 6}),
    ({"cell": "lstm", "hidden_size": 6, "bidirectional": True, "num_layers": 2}, {"cell": "gru", "hidden_size": 5}),
    ({"cell": "gru", "hidden_size": 6}, {"cell": "lstm", "hidden_size": 5, "num_layers": 3}),
    ({"cell": ["gru", "lstm"], "hidden_size": (6, 5)}, {"cell": "clockwork", "hidden_size": 8}),
    ({"cell": "slstm", "hidden_size": 8}, {"cell": ["lstm", "gru"], "hidden_size": (4, 7)}),
]


@pytest.mark.parametrize(("above", "below"), PAIRS)
def test_a_bridge_fits_any_encoder_to_any_decoder(above: dict[str, Any], below: dict[str, Any]) -> None:
    encoder, decoder = Recurrent(input_size=4, **above), Recurrent(input_size=3, **below)
    bridge = Bridge(encoder, decoder)
    x, y = torch.randn(T, B, 4, requires_grad=True), torch.randn(T, B, 3)
    _, state = encoder(x, lengths=[5, 2, 4])
    output, _ = decoder(y, bridge(state))
    gradients = torch.autograd.grad(output.sum(), [x, *bridge.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_a_bridge_reads_both_directions_of_the_layer_beside() -> None:
    encoder, decoder = Recurrent("gru", 4, 6, 2, bidirectional=True), Recurrent("gru", 3, 5)
    bridge = Bridge(encoder, decoder)
    state = torch.randn(4, B, 6)
    made = bridge(state)
    torch.testing.assert_close(made[0], torch.tanh(bridge.maps[0](torch.cat([state[2], state[3]], -1))))


def test_a_bridge_that_copies() -> None:
    encoder, decoder = Recurrent("lstm", 4, 6, 2), Recurrent("lstm", 3, 6, 2)
    bridge = Bridge(encoder, decoder, copy=True)
    assert not list(bridge.parameters())
    _, state = encoder(torch.randn(T, B, 4))
    assert all(torch.equal(a, b) for a, b in zip(bridge(state), state, strict=True))
    with pytest.raises(ValueError, match="copy needs equal layers and widths; 'h' has 12, then 6"):
        Bridge(Recurrent("lstm", 4, 6, bidirectional=True), Recurrent("lstm", 4, 6), copy=True)


def _translator() -> EncoderDecoder:
    words = nn.Embedding(9, 4)
    encoder = Encoder(Recurrent("gru", 4, 6, bidirectional=True), words)
    return EncoderDecoder(encoder, Decoder(Recurrent("lstm", 4, 7), nn.Linear(7, 9), words))


def test_an_encoder_decoder_generates_what_teacher_forcing_scores() -> None:
    model = _translator()
    source, lengths, first = torch.randint(9, (T, B)), [2, 5, 3], torch.zeros(B, dtype=torch.int64)
    written = model.generate(source, first, 6, lengths=lengths)
    assert written.shape == (6, B)
    answers, _ = model(source, torch.cat([first[None], written[:-1]]), lengths=lengths)
    assert torch.equal(answers.argmax(-1), written)
    for row, n in enumerate(lengths):
        alone = model.generate(source[:n, row : row + 1], first[:1], 6)
        assert torch.equal(alone[:, 0], written[:, row])


def test_an_encoder_decoder_of_vectors() -> None:
    encoder, decoder = Encoder(Recurrent("gru", 4, 6)), Decoder(Recurrent("gru", 2, 6), nn.Linear(6, 2))
    model = EncoderDecoder(encoder, decoder, Bridge(encoder.recurrent, decoder.recurrent, copy=True))
    written = model.generate(torch.randn(T, B, 4), torch.zeros(B, 2), 3)
    assert written.shape == (3, B, 2)


def test_an_encoder_decoder_learns_to_reverse() -> None:
    words = nn.Embedding(5, 16)
    encoder, decoder = (
        Encoder(Recurrent("gru", 16, 48), words),
        Decoder(Recurrent("gru", 16, 48), nn.Linear(48, 5), words),
    )
    model = EncoderDecoder(encoder, decoder)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(250):
        target = torch.randint(1, 5, (4, 32))
        previous = torch.cat([torch.zeros(1, 32, dtype=torch.int64), target[:-1]])
        answers, _ = model(target.flip(0), previous)
        loss = nn.functional.cross_entropy(answers.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    target = torch.randint(1, 5, (4, 64))
    written = model.generate(target.flip(0), torch.zeros(64, dtype=torch.int64), 4)
    assert (written == target).float().mean() > 0.9


def test_locked_dropout_as_a_module() -> None:
    module, x = LockedDropout(0.4), torch.ones(T, 200, 50)
    dropped = module(x, noise=Noise(3))
    assert torch.equal(dropped[0], dropped[-1])
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs((dropped[0] == 0).float().mean().item() - 0.4) < 0.02
    turned = LockedDropout(0.4, batch_first=True)(x.transpose(0, 1), noise=Noise(3))
    assert torch.equal(turned.transpose(0, 1), dropped)
    assert torch.equal(module.eval()(x), x)
    with pytest.raises(ValueError, match="time, batch and units"):
        module.train()(x[0])


def test_embedding_dropout_drops_words() -> None:
    embedding = nn.Embedding(400, 6)
    module, tokens = EmbeddingDropout(embedding, 0.3), torch.randint(400, (7, 30))
    found, mask = module(tokens, noise=Noise(2, step=5)), module.mask(Noise(2))
    expected = nn.functional.embedding(tokens, embedding.weight * mask)  # as in the paper: of the matrix
    torch.testing.assert_close(found, expected)
    assert abs((mask == 0).float().mean().item() - 0.3) < 0.1
    assert torch.equal(module.eval()(tokens), embedding(tokens))


BAD: list[tuple[Any, str]] = [
    (lambda: Decoder(Recurrent("gru", 2, 3, bidirectional=True), nn.Identity()), "a decoder must be unidirectional"),
    (lambda: ManyToMany(Recurrent("gru", 2, 3), nn.Identity(), -1), "delay must be a number of steps"),
    (lambda: ManyToOne(Recurrent("gru", 2, 3, batch_first=True), nn.Identity()), "batch_first=False"),
    (lambda: DeepOutput(Recurrent("gru", 2, 3), []), "sizes must have one width at least"),
    (lambda: LockedDropout(1.0), "p must be a probability"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_structures(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
