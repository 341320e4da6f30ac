"""The cross-entropy of a linear layer's softmax, or of a mixture of such, without ever holding all its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from elman.compiler.build import BuildError
from elman.engine import memory, products
from elman.engine.dispatch import wanted
from elman.engine.sinks import REALS, AtOnce

CHUNK = 1 << 22  # logits held at a time: 16 MB in single precision
COLUMNS = 1 << 12  # tokens whose weights the product packs at a time
SLICE = 1 << 18  # logits that the softmax goes over at a time: what a core's cache holds


@dataclass(frozen=True)
class Part:
    """Where a weight's rows belong that are divided among P processes, each of which calls with the same tokens.

    Attributes:
        first: the number of the first row's token.
        most: rows of the process that has most.
        gathered: all processes' tensors of one shape, stacked: ``[P, ...]``.
    """

    first: int
    most: int
    gathered: Callable[[Tensor], Tensor]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_shares: Tensor | None = None,
    part: Part | None = None,
) -> Tensor:
    """The mean over N tokens of log Σ_v exp(w_v·h + b_v) - (w_y·h + b_y), in nats: as torch's ``cross_entropy``.

    Loss and gradients are made together, for a chunk of tokens at a time, when the loss is: of ``[N, V]`` only CHUNK
    numbers exist at once. So it can be differentiated once, and not twice.

    Under autocast the products are of its precision, logits and losses of the weight's.

    Args:
        hidden: [N, H].
        weight, bias: [V, H] and [V].
        targets: y, int64 [N].
        log_shares: of a mixture of K softmaxes over the same weights, the logarithms of their shares, [N, K]; each
            token then has K rows of ``hidden``, one after the other [N·K, H], and the probability
            Σ_k share_k · softmax_k(y). By default one softmax.
        part: where weight and bias are a part of all rows, for one softmax. The gradient of hidden then lacks the other
            parts' share.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, log_shares, part)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_shares: Tensor | None = None,
    part: Part | None = None,
) -> Tensor:
    """What :func:`linear_cross_entropy` is the mean of, [N]; without gradients."""
    if log_shares is None:
        log_shares = hidden.new_zeros(len(targets), 1)
    losses = []
    chunks = _chunks(len(hidden), len(weight) if part is None else part.most, log_shares.shape[1])
    held = _memory(chunks, weight)
    for rows, tokens in chunks:
        logits = _logits(hidden[rows], weight, bias, held)
        losses.append(_losses(logits, targets[tokens], log_shares[tokens], 0.0, part)[0])
    return torch.cat(losses)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        log_shares: Tensor | None,
        part: Part | None,
    ) -> Tensor:
        count = len(targets)
        want_hidden, want_weight, want_bias, _, want_shares, _ = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if want_hidden else None
        d_weight = torch.empty_like(weight) if want_weight else None
        d_bias = torch.zeros_like(bias) if bias is not None and want_bias else None
        d_shares = torch.empty_like(log_shares) if log_shares is not None and want_shares else None
        if log_shares is None:
            log_shares = hidden.new_zeros(count, 1)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        # the gradients of a mean would vanish in half precision: these are of the sum until the backward pass
        later = 1 / count if torch.is_autocast_enabled(hidden.device.type) else 1.0
        chunks = _chunks(len(hidden), len(weight) if part is None else part.most, log_shares.shape[1])
        held = _memory(chunks, weight)
        for rows, tokens in chunks:
            logits = _logits(hidden[rows], weight, bias, held)
            losses, d_log = _losses(logits, targets[tokens], log_shares[tokens], 1 / count / later, part)
            total += losses.sum(dtype=torch.float64)
            if d_shares is not None:
                d_shares[tokens] = d_log
            # the logits are their own gradients now
            if d_hidden is not None:
                multiply(d_hidden[rows], logits, weight)
            if d_weight is not None:
                multiply(d_weight, logits.t(), hidden[rows], add=rows.start > 0)
            if d_bias is not None:
                d_bias += logits.sum(0)
        ctx.gradients, ctx.later = (d_hidden, d_weight, d_bias, None, d_shares), later
        return (total / count).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass; compute the loss again")
        gradients: tuple[Tensor | None, ...] = ctx.gradients
        ctx.gradients = None
        factor = d_loss * ctx.later
        if factor.device.type != "cpu" or factor.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient *= factor  # of no dimension, so it leaves the dtype alone
        return (*gradients, None)


Chunk = tuple[slice, slice]  # rows of logits, and the tokens that they are of


def _chunks(rows: int, vocabulary: int, parts: int) -> list[Chunk]:
    """Slices of almost equal size, each with at most CHUNK logits, or one token's; a token has ``parts`` rows."""
    tokens = rows // parts
    count = max(1, -(-tokens // max(1, CHUNK // (vocabulary * parts))))
    size = max(1, -(-tokens // count))
    found = [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
    return [(slice(chunk.start * parts, chunk.stop * parts), chunk) for chunk in found]


def _memory(chunks: list[Chunk], weight: Tensor) -> Tensor:
    """For the logits of each chunk in turn, ``[n, V]``: of the scratch memory that layers do not need now."""
    shape = max((rows.stop - rows.start for rows, _ in chunks), default=0), len(weight)
    if weight.device.type != "cpu":
        return weight.new_empty(shape)
    memory.scratch.begin()
    return memory.scratch.tensor(*shape, dtype=weight.dtype)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, held: Tensor) -> Tensor:
    """``[n, V]``, in the first rows of ``held``."""
    logits = held[: len(hidden)]
    for start in range(0, len(weight), COLUMNS):
        some = slice(start, start + COLUMNS)
        multiply(logits[:, some], hidden, weight[some].t(), bias=bias[some] if bias is not None else None)
    return logits


def _losses(
    logits: Tensor, targets: Tensor, log_shares: Tensor, scale: float, part: Part | None
) -> tuple[Tensor, Tensor]:
    """The losses ``[n]``, and ``scale`` times their gradients: of the shares ``[n, K]``; over the logits ``[n·K, V]``.

    Of a mixture each row's gradient is that of a loss of its own, weighted by the part that it has in the probability.
    """
    if part is not None:
        return _losses_of_part(logits, targets, scale, part), log_shares
    losses, gradients = [], []
    count = log_shares.shape[1]
    step = max(1, SLICE // logits.shape[1] // count)
    for start in range(0, len(targets), step):
        some = logits[start * count : (start + step) * count]
        target = targets[start : start + step].repeat_interleave(count)[:, None]
        some -= some.amax(1, keepdim=True)
        at_target = some.gather(1, target)
        total = some.exp_().sum(1, keepdim=True)
        apart = log_shares[start : start + step] - (total.log() - at_target).view(-1, count)
        together = apart.logsumexp(1, keepdim=True)
        losses.append(-together[:, 0])
        if scale:
            weights = scale * (apart - together).exp()
            gradients.append(-weights)
            each = weights.view(-1, 1).to(some.dtype)
            some *= each / total
            some.scatter_add_(1, target, -each)
    return torch.cat(losses), torch.cat(gradients or [log_shares])


def _losses_of_part(logits: Tensor, targets: Tensor, scale: float, part: Part) -> Tensor:
    """The same of logits ``[n, V / P]``: three numbers a token tell the processes of each other's."""
    own = targets - part.first
    here = (own >= 0) & (own < logits.shape[1])
    own = own.clamp(0, logits.shape[1] - 1)[:, None]
    step = max(1, SLICE // logits.shape[1])
    slices = [slice(start, start + step) for start in range(0, len(logits), step)]
    at_target = logits.gather(1, own)[:, 0].where(here, -torch.inf)
    top, total = torch.empty_like(at_target), torch.empty_like(at_target)
    for some in slices:
        top[some] = logits[some].amax(1)
        total[some] = logits[some].sub_(top[some, None]).exp_().sum(1)
    tops, totals, at_targets = part.gathered(torch.stack([top, total, at_target])).unbind(1)  # each [P, n]
    highest = tops.amax(0)
    sums = (totals * (tops - highest).exp()).sum(0)
    if scale:
        factor = scale * (top - highest).exp() / sums
        for some in slices:
            logits[some].mul_(factor[some, None])
        logits.scatter_add_(1, own, -scale * here[:, None].to(logits.dtype))
    return sums.log() + highest - at_targets.amax(0)


def multiply(out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None, add: bool = False) -> None:
    """out = a b + bias, or out += a b; on Elman's own kernel where it runs.

    Args:
        out: [M, N], each row contiguous.
        a: [M, K]. b: [K, N]. Either may be transposed.
        bias: [N].
    """
    if torch.is_autocast_enabled(out.device.type):
        product = a @ b  # in the precision of autocast; an `out` would have none of it
        if bias is not None:
            product = product + bias
        if add:
            out += product
        else:
            out.copy_(product)
        return
    if out.device.type == "cpu" and out.dtype in REALS and wanted() in ("auto", "cpu"):
        try:
            tools = products.tools(out.dtype)
        except BuildError:
            pass  # the layers say so
        else:
            with memory.scratch.within():
                tools.multiply(
                    AtOnce(),
                    (out.shape[0], out.shape[1], a.shape[1]),
                    (a.data_ptr(), a.stride(0), a.stride(1)),
                    (b.data_ptr(), b.stride(0), b.stride(1)),
                    (out.data_ptr(), out.stride(0)),
                    bias=bias.data_ptr() if bias is not None else 0,
                    add=add,
                )
            return
    if add:
        out.addmm_(a, b)
    elif bias is not None:
        torch.addmm(bias, a, b, out=out)
    else:
        torch.mm(a, b, out=out)
