"""What each option of `Recurrent` costs, and a layer-normalised LSTM against an eager loop; a section of layers.py."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import elman
from elman.cells.lstm import LSTM

B, T, H = 32, 64, 256

# Each option, and what it is compared with: the same layers without it.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "locked_dropout": ({"locked_dropout": 0.3}, {}),
    "recurrent_dropout": ({"recurrent_dropout": 0.3}, {}),
    "recurrent_dropout_per_step": ({"recurrent_dropout": 0.3, "recurrent_dropout_per_step": True}, {}),
    "zoneout": ({"zoneout": 0.1}, {}),
    "weight_dropout": ({"weight_dropout": 0.5}, {}),
    "layer_norm": ({"layer_norm": True}, {}),
    "residual": ({"residual": True}, {}),
    "learn_state": ({"learn_state": True}, {}),
    "dropout": ({"dropout": 0.3}, {"num_layers": 2}),
    "merge": ({"merge": "sum"}, {"bidirectional": True}),
    "recurrent_dropout + zoneout + locked_dropout": (
        {"recurrent_dropout": 0.3, "zoneout": 0.1, "locked_dropout": 0.3},
        {},
    ),
}
CELLS = ("lstm", "gru", "elman")


class EagerLayerNormLSTM(nn.Module):
    """`Recurrent("lstm", layer_norm=True)` as it would be written in torch: a loop over steps, products ahead of it."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs).uniform_(-0.06, 0.06))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units).uniform_(-0.06, 0.06))
        self.gain = nn.Parameter(torch.ones(2, 4, units))
        self.bias = nn.Parameter(torch.zeros(2, 4, units))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[T, B, I] to [T, B, H]."""
        units = self.weight_hh.shape[1]
        pre = (
            F.layer_norm(F.linear(x, self.weight_ih).unflatten(-1, (4, units)), (units,)) * self.gain[0] + self.bias[0]
        )
        h = c = x.new_zeros(x.shape[1], units)
        outputs = []
        for step in pre.unbind():
            sums = F.linear(h, self.weight_hh).unflatten(-1, (4, units))
            gates = step + F.layer_norm(sums, (units,)) * self.gain[1] + self.bias[1]
            i, f, g, o = gates.unbind(1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), None


def bench_options(seconds: float) -> None:
    """Print the tables."""
    from layers import medians, table, training

    print(f"\n## Options (training, B = {B}, T = {T}, I = H = {H}: time of the layer with the option ÷ without)")
    x = torch.randn(T, B, H, requires_grad=True)
    rows = []
    for name, (option, plain) in OPTIONS.items():
        row: list[object] = [name]
        for cell in CELLS:
            layers = [elman.Recurrent(cell, H, H, **plain, **more) for more in ({}, option)]
            without, with_it = medians([training(layer, x) for layer in layers], seconds)
            row.append(with_it / without)
        rows.append(row)
    table(["option", *CELLS], rows)
    ours = elman.Recurrent(LSTM(), H, H, layer_norm=True)
    eager = EagerLayerNormLSTM(H, H)
    ways = [training(ours, x), training(eager, x), training(ours, x, engine="reference")]
    ways.append(training(elman.Recurrent("layer_norm_lstm", H, H), x))
    mine, loop, reference, paper = medians(ways, 4 * seconds)
    print(f"\nLayer-normalised LSTM, training step of {mine * 1e3:.1f} ms (`layer_norm_lstm`: {paper * 1e3:.1f}):")
    table(["eager loop ×", "reference engine ×"], [[loop / mine, reference / mine]])
