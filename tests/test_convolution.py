"""`ConvLSTM` against a loop of plain convolutions, and against the LSTMs that it is on images of one pixel."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import elman
from elman import ConvLSTM, Recurrent

OPTIONS: list[dict[str, Any]] = [
    {},
    {"kernel_size": (1, 5), "num_layers": 2},
    {"num_layers": 2, "peepholes": (6, 7)},
    {"bias": False, "batch_first": True, "peepholes": (6, 7)},
]


def _module(options: dict[str, Any]) -> ConvLSTM:
    torch.manual_seed(0)
    module = ConvLSTM(3, 4, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def _inputs(module: ConvLSTM, steps: int = 5, batch: int = 2) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x [T, B, C, 6, 7], and a state."""
    h, c = torch.randn(2, module.num_layers, batch, 4, 6, 7, dtype=torch.float64)
    x = torch.randn(steps, batch, 3, 6, 7, dtype=torch.float64)
    return x.requires_grad_(), (h.requires_grad_(), c.requires_grad_())


def _loop(module: ConvLSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Step by step, layer by layer: one convolution of x and h together for each gate."""
    parameters = dict(module.named_parameters())
    hs, cs = list(state[0]), list(state[1])
    outputs = []
    for v in x:
        for k in range(module.num_layers):
            weight = torch.cat([parameters[f"weight_ih_l{k}"], parameters[f"weight_hh_l{k}"]], 1)
            bias = parameters.get(f"bias_ih_l{k}", torch.zeros(16).double())
            both = torch.cat([v, hs[k]], 1)
            i, f, g, o = (
                F.conv2d(both, w, b, padding="same") for w, b in zip(weight.chunk(4), bias.chunk(4), strict=True)
            )
            p_i, p_f, p_o = (parameters.get(f"p_{gate}_l{k}", torch.zeros(4, 6, 7).double()) for gate in "ifo")
            c = torch.sigmoid(f + p_f * cs[k]) * cs[k] + torch.sigmoid(i + p_i * cs[k]) * torch.tanh(g)
            v = hs[k] = torch.sigmoid(o + p_o * c) * torch.tanh(c)
            cs[k] = c
        outputs.append(v)
    return [torch.stack(outputs), torch.stack(hs), torch.stack(cs)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_a_loop_of_plain_convolutions(options: dict[str, Any]) -> None:
    """Outputs, states, and the gradients of inputs, states and parameters."""
    module = _module(options)
    x, state = _inputs(module)
    output, final = module(x.transpose(0, 1) if module.batch_first else x, state)
    ours = [output.transpose(0, 1) if module.batch_first else output, *final]
    theirs = _loop(module, x, state)
    leaves = [x, *state, *module.parameters()]
    weights = [torch.randn_like(v) for v in ours]
    gradients = [
        torch.autograd.grad(sum((v * w).sum() for v, w in zip(tensors, weights, strict=True)), leaves)
        for tensors in (ours, theirs)
    ]
    for a, b in zip([*ours, *gradients[0]], [*theirs, *gradients[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives(options: dict[str, Any]) -> None:
    module = _module(options)
    x, state = _inputs(module, steps=2, batch=2)
    names = [n for n, _ in module.named_parameters()]

    def run(x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        output, final = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, (h, c)))
        return (output, *final)

    tensors = (x, *state, *(p.detach().requires_grad_() for p in module.parameters()))
    torch.autograd.gradcheck(run, tensors, fast_mode=True)
    torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_and_chunks_equal_the_whole(options: dict[str, Any]) -> None:
    module = _module(options)
    x, state = _inputs(module)
    time = 1 if module.batch_first else 0
    sequence = x.transpose(0, 1) if module.batch_first else x
    whole, final = module(sequence, state)
    first, carried = module(sequence.narrow(time, 0, 2), state)
    second, end = module(sequence.narrow(time, 2, 3), carried)
    torch.testing.assert_close(torch.cat([first, second], time), whole)
    outputs = []
    for v in x:
        output, state = module.step(v, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, time), whole)
    for a, b, c in zip(final, end, state, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize("peepholes", [None, (1, 1)])
def test_on_single_pixels_it_is_an_lstm(peepholes: tuple[int, int] | None) -> None:
    module = ConvLSTM(3, 4, 1, num_layers=2, peepholes=peepholes).double()
    plain = Recurrent("lstm" if peepholes is None else "peephole_lstm", 3, 4, num_layers=2, dtype=torch.float64)
    parameters = {n: p.reshape(p.shape[:2] if p.dim() == 4 else p.shape[:1]) for n, p in module.named_parameters()}
    missing = {n: torch.zeros_like(p) for n, p in plain.named_parameters() if n not in parameters}  # second biases
    plain.load_state_dict(parameters | missing)
    x = torch.randn(5, 2, 3).double()
    output, state = module(x[..., None, None])
    expected, final = plain(x)
    torch.testing.assert_close(output.flatten(2), expected)
    torch.testing.assert_close(state.c.flatten(2), final.c)


def test_without_peepholes_images_may_have_any_size() -> None:
    module = ConvLSTM(3, 4, dtype=torch.float32)
    assert [module(torch.zeros(2, 1, 3, n, 5))[0].shape[3:] for n in (1, 9)] == [(1, 5), (9, 5)]
    assert repr(ConvLSTM(3, 4, 5, peepholes=(8, 9))) == "ConvLSTM(3, 4, kernel_size=(5, 5), peepholes=(8, 9))"
    assert "ConvLSTM" in dir(elman)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"input_channels": 0}, "input_channels must be a positive integer, got 0"),
    ({"hidden_channels": 1.5}, "hidden_channels must be a positive integer, got 1.5"),
    ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
    ({"kernel_size": 4}, "kernel_size must be one or two odd numbers, got 4"),
    ({"kernel_size": (3, 3, 3)}, "kernel_size must be one or two odd numbers"),
    ({"peepholes": (0, 5)}, r"peepholes must be the height and width of the images, got \(0, 5\)"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvLSTM(**({"input_channels": 3, "hidden_channels": 4} | options))


BAD_CALLS: list[tuple[tuple[Any, ...], str]] = [
    ((torch.zeros(5, 3, 6, 7),), r"input must be \[T, B, C, height, width\] with C = 3, got \(5, 3, 6, 7\)"),
    ((torch.zeros(5, 2, 4, 6, 7),), r"with C = 3, got \(5, 2, 4, 6, 7\)"),
    ((torch.zeros(0, 2, 3, 6, 7),), "input must have at least one time step"),
    ((torch.zeros(5, 2, 3, 6, 8),), r"images must be \(6, 7\) for the peepholes, got \(6, 8\)"),
    ((torch.zeros(5, 2, 3, 6, 7), (torch.zeros(1, 2, 4, 6, 7),)), r"state must be h and c, \(1, 2, 4, 6, 7\) each"),
    ((torch.zeros(5, 2, 3, 6, 7), (torch.zeros(1, 2, 4, 6, 6),) * 2), "state must be h and c"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_calls(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvLSTM(3, 4, peepholes=(6, 7))(*arguments)
    with pytest.raises(ValueError, match=r"input must be \[B, C, height, width\], got \(2, 3\)"):
        ConvLSTM(3, 4).step(torch.zeros(2, 3))
