"""`ConvLSTM`: an LSTM over sequences of images, whose products are convolutions."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.cells.contract import state_type

State = state_type(("h", "c"))


class ConvLSTM(nn.Module):
    """A stack of convolutional LSTM layers.

    i = σ(W_i * x_t + U_i * h_{t-1} + p_i ∘ c_{t-1} + b_i)
    f = σ(W_f * x_t + U_f * h_{t-1} + p_f ∘ c_{t-1} + b_f)
    c_t = f ∘ c_{t-1} + i ∘ tanh(W_g * x_t + U_g * h_{t-1} + b_g)
    o = σ(W_o * x_t + U_o * h_{t-1} + p_o ∘ c_t + b_o)
    h_t = o ∘ tanh(c_t)

    where * is a convolution padded with zeros, so that images keep their size, and the peepholes p have a weight for
    each pixel of each channel.

    Shi, Chen, Wang, Yeung, Wong & Woo, "Convolutional LSTM network: a machine learning approach for precipitation
    nowcasting", NIPS 2015, equation 3.

    Args:
        input_channels: C, channels of each image.
        hidden_channels: D, channels of the states.
        kernel_size: of all convolutions: one odd number, or one for the height and one for the width.
        num_layers: layers, each of which reads the outputs of the one below.
        bias: whether the gates have biases.
        batch_first: whether sequences are [B, T, C, height, width]; states are [L, B, D, height, width] regardless.
        peepholes: the height and width of the images where the paper's peepholes are wanted; default: none, and any
            size.
        device, dtype: of the parameters.

    Parameters, gates in the order i, f, g, o: `weight_ih_l{k}` [4D, C, *kernel], `weight_hh_l{k}` [4D, D, *kernel],
    `bias_ih_l{k}` [4D]; `p_i_l{k}`, `p_f_l{k}`, `p_o_l{k}` [D, height, width].

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        peepholes: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_channels": input_channels, "hidden_channels": hidden_channels, "num_layers": num_layers}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 2 or any(k < 1 or k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be one or two odd numbers, got {kernel_size!r}")
        if peepholes is not None and (len(peepholes) != 2 or min(peepholes) < 1):
            raise ValueError(f"peepholes must be the height and width of the images, got {peepholes!r}")
        self.input_channels = input_channels
        self.hidden_channels = hidden_channels
        self.kernel_size = kernel
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.peepholes = peepholes
        for level in range(num_layers):
            channels = input_channels if level == 0 else hidden_channels
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (4 * hidden_channels, channels, *kernel),
                "weight_hh": (4 * hidden_channels, hidden_channels, *kernel),
            }
            if bias:
                shapes["bias_ih"] = (4 * hidden_channels,)
            if peepholes is not None:
                shapes |= dict.fromkeys(("p_i", "p_f", "p_o"), (hidden_channels, *peepholes))
            for name, shape in shapes.items():
                empty = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(f"{name}_l{level}", nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters afresh: U(-1/√n, 1/√n), n the inputs of a state's convolution."""
        bound = 1.0 / math.sqrt(self.hidden_channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Run whole sequences.

        Args:
            input: [T, B, C, height, width] ([B, T, C, height, width] where `batch_first`).
            state: h and c before the first step, [L, B, D, height, width] each. Default: zeros.

        Returns:
            The output, in the form of the input with D channels; and the state after the last step.

        Raises:
            ValueError: a shape does not fit.
        """
        form = "[B, T, C, height, width]" if self.batch_first else "[T, B, C, height, width]"
        if input.dim() != 5 or input.shape[2] != self.input_channels:
            raise ValueError(f"input must be {form} with C = {self.input_channels}, got {tuple(input.shape)}")
        x = input.transpose(0, 1) if self.batch_first else input
        if x.shape[0] == 0:
            raise ValueError(f"input must have at least one time step, got {tuple(input.shape)}")
        if self.peepholes is not None and tuple(x.shape[3:]) != tuple(self.peepholes):
            raise ValueError(f"images must be {self.peepholes} for the peepholes, got {tuple(x.shape[3:])}")
        h, c = self._entered(x, state)
        finals = []
        for level in range(self.num_layers):
            x, final = self._layer(level, x, h[level], c[level])
            finals.append(final)
        output = x.transpose(0, 1) if self.batch_first else x
        return output, State(*(torch.stack(entry) for entry in zip(*finals, strict=True)))

    def step(self, input: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Run one time step: input [B, C, height, width] to output [B, D, height, width], and the state."""
        if input.dim() != 4:
            raise ValueError(f"input must be [B, C, height, width], got {tuple(input.shape)}")
        time = 1 if self.batch_first else 0
        output, state = self(input.unsqueeze(time), state)
        return output.squeeze(time), state

    def _entered(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        shape = (self.num_layers, x.shape[1], self.hidden_channels, *x.shape[3:])
        if state is None:
            zeros = x.new_zeros(shape)
            return zeros, zeros
        if len(state) != 2 or any(tuple(v.shape) != shape for v in state):
            raise ValueError(f"state must be h and c, {shape} each, got {[tuple(v.shape) for v in state]}")
        h, c = state
        return h, c

    def _layer(self, level: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One layer: x [T, B, C, height, width], and the state [B, D, height, width]."""
        names = ("weight_ih", "weight_hh", "bias_ih", "p_i", "p_f", "p_o")
        own = {n: getattr(self, f"{n}_l{level}") for n in names if hasattr(self, f"{n}_l{level}")}
        padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        images = F.conv2d(x.flatten(0, 1), own["weight_ih"], own.get("bias_ih"), padding=padding)
        outputs = []
        for from_input in images.unflatten(0, x.shape[:2]):
            gates = from_input + F.conv2d(h, own["weight_hh"], padding=padding)
            i, f, g, o = gates.chunk(4, 1)
            if self.peepholes is not None:
                i, f = i + own["p_i"] * c, f + own["p_f"] * c
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            if self.peepholes is not None:
                o = o + own["p_o"] * c
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def extra_repr(self) -> str:
        shown = [str(self.input_channels), str(self.hidden_channels), f"kernel_size={self.kernel_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "peepholes": None}
        shown += [f"{n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default]
        return ", ".join(shown)
