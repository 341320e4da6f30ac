"""What each option of `Recurrent` costs, and a layer-normalised LSTM against eager loops; a section of layers.py."""

from typing import Any

import torch
from torch import Tensor, nn

import elman

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
    "mogrify, 5 rounds": ({"mogrify": 5}, {}),
    "mogrify, 5 rounds of rank 32": ({"mogrify": 5, "mogrify_rank": 32}, {}),
    "recurrent_dropout + zoneout + locked_dropout": (
        {"recurrent_dropout": 0.3, "zoneout": 0.1, "locked_dropout": 0.3},
        {},
    ),
}
CELLS = ("lstm", "gru", "elman")


SHAPES = ((1, 128, 128, 128), (16, 64, 128, 128), (32, 64, 256, 256), (64, 64, 512, 512))


class EagerLayerNormLSTM(nn.Module):
    """The LSTM of Ba et al. 2016 as a loop of torch's operations over time.

    Args:
        inputs, units: I and H.
        ahead: whether the input's products and their normalisation are done for all steps before the loop; else in
            it, as in loops over a cell module.
    """

    def __init__(self, inputs: int, units: int, ahead: bool) -> None:
        super().__init__()
        self.ahead = ahead
        self.from_input = nn.Linear(inputs, 4 * units, bias=False)
        self.from_state = nn.Linear(units, 4 * units, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in (4 * units, 4 * units, units))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[T, B, I] to [T, B, H]."""
        of_input, of_state, of_cell = self.norms
        h = c = x.new_zeros(x.shape[1], self.from_state.in_features)
        outputs = []
        for step in of_input(self.from_input(x)) if self.ahead else x:
            given = step if self.ahead else of_input(self.from_input(step))
            i, f, g, o = (given + of_state(self.from_state(h))).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * of_cell(c).tanh()
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
    ratios = []
    for batch, steps, inputs, units in SHAPES:
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        found: list[object] = [f"{batch}, {steps}, {inputs}, {units}"]
        ours = elman.Recurrent("layer_norm_lstm", inputs, units)
        for ahead in (False, True):
            eager = EagerLayerNormLSTM(inputs, units, ahead)
            mine, loop = medians([training(ours, x), training(eager, x)], seconds)
            found.append(loop / mine)
        ratios.append(found)
    print("\nLayer-normalised LSTM (`layer_norm_lstm`), training, against loops of torch's operations:")
    table(["B, T, I, H", "loop over a cell ×", "loop with the input's products ahead ×"], ratios)
