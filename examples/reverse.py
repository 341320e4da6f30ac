"""An encoder reads a word, a decoder writes it backwards: the smallest translation."""

import torch
from torch.nn import Embedding, Linear
from torch.nn.functional import cross_entropy

from elman import Recurrent
from elman.nn import Decoder, Encoder, EncoderDecoder

torch.manual_seed(0)
alphabet = "_abcdefgh"  # the first is what the decoder reads before it has written anything
letters = Embedding(len(alphabet), 16)
encoder = Encoder(Recurrent("gru", 16, 32, bidirectional=True), letters)
decoder = Decoder(Recurrent("lstm", 16, 64, forget_bias=1.0), Linear(64, len(alphabet)), letters)
model = EncoderDecoder(encoder, decoder)  # with a bridge from two GRUs' states to an LSTM's
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

for step in range(401):
    words = torch.randint(1, len(alphabet), (5, 64))  # [T, B]
    targets = words.flip(0)
    previous = torch.cat([torch.zeros_like(targets[:1]), targets[:-1]])
    answers, _ = model(words, previous)
    loss = cross_entropy(answers.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

for word in ("abcde", "headf", "ghgfa"):
    given = torch.tensor([[alphabet.index(letter)] for letter in word])
    written = model.generate(given, torch.zeros(1, dtype=torch.int64), len(word))
    print(word, "->", "".join(alphabet[int(k)] for k in written[:, 0]))
