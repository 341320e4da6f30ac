"""The textbook's first recurrent network: after h comes e, after e comes l, and so on to "hello"."""

import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy, one_hot

import elman

torch.manual_seed(0)
vocabulary = "helo"
indices = torch.tensor([vocabulary.index(character) for character in "hello"])
x, y = one_hot(indices[:-1], 4).float(), indices[1:]  # [T, I] = [4, 4] and the next characters [T]

rnn, head = elman.RNN(input_size=4, hidden_size=8), Linear(8, 4)
optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.05)
for _ in range(100):
    optimizer.zero_grad()
    loss = cross_entropy(head(rnn(x)[0]), y)  # the output of each step predicts the next character
    loss.backward()
    optimizer.step()

print(f"loss {loss.item():.4f}\n\ninput  P(next = {'):  P('.join(vocabulary)})")
for character, row in zip("hell", head(rnn(x)[0]).softmax(-1).tolist(), strict=True):
    print(f"{character:5}  " + "  ".join(f"{p:5.3f}" for p in row))

text, state = "h", None
while len(text) < 5:  # the state, not the input, tells the first l from the second
    output, state = rnn.step(one_hot(torch.tensor(vocabulary.index(text[-1])), 4).float(), state)
    text += vocabulary[int(torch.multinomial(head(output).softmax(-1), 1))]
print(f"\nsampled: {text}")
