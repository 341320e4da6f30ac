"""Several processes that train one model: Lightning Fabric on torch.distributed.

Every process has its own part of each batch and all weights, but for those that --shard divides (`elman.nn.divided`).
The gradients of what all have are averaged once for each update, after the backward pass: a recurrent layer's weight
gradients are there only when the loop has come back to its first step, so there is little to overlap with. Imported
only where there are several processes.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from elman.errors import UsageError, UserError
from elman.nn.divided import Rows
from elman.train.config import TrainConfig
from elman.train.device import choose_device
from elman.train.world import World

Result = TypeVar("Result")
LARGE = 1 << 21  # numbers: gradients that are summed alone, the others in one piece


class Together(World):
    """One of several processes, of torch's default group. Its methods are called by all of them, in the same order.

    Raises:
        UserError: another process has died.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        super().__init__(device)
        self.rank = rank
        self.size = size

    def mean_gradients(self, parameters: list[torch.nn.Parameter], tokens: int) -> None:
        large, small = [], []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.mul_(tokens)
            if gradient.numel() >= LARGE and gradient.is_contiguous():
                self._sum(gradient)  # where it lies: copies of large matrices cost more than their way
                large.append(gradient)
            else:
                small.append(gradient)
        flat = torch.cat([torch.full((1,), float(tokens), device=self.device), *(each.flatten() for each in small)])
        self._sum(flat)
        for gradient in large:
            gradient.div_(flat[0])
        pieces = (flat[1:] / flat[0]).split([gradient.numel() for gradient in small])
        for gradient, piece in zip(small, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def norm(self, gradients: list[Tensor], divided: list[Tensor]) -> Tensor:
        square = super().norm([], divided).to(self.device).square()
        self._sum(square)
        return (super().norm(gradients, []).square() + square).sqrt()

    def mean(self, value: float, tokens: int) -> tuple[float, int]:
        both = torch.tensor([value * tokens, tokens], dtype=torch.float64, device=self.device)
        self._sum(both)
        return (both[0] / both[1]).item(), int(both[1])

    def agree(self, number: int, value: float) -> tuple[int, float]:
        both = torch.tensor([number, value], dtype=torch.float64, device=self.device)
        self._call(dist.all_reduce, both, dist.ReduceOp.MAX)
        return int(both[0]), both[1].item()

    def told(self, error: UserError) -> UserError:
        # the launcher kills all when one fails, so the others leave quietly, and the first with its status
        return error if self.rank == 0 else UserError("", status=0)

    def gather(self, tree: Any) -> list[Any]:
        trees: list[Any] = [None] * self.size
        self._call(dist.gather_object, tree, trees if self.rank == 0 else None)
        return trees

    def first(self, function: Callable[[], Result], together: bool = False) -> Result:
        outcome: list[Any] = [None]
        if self.rank == 0 or together:
            try:
                outcome = [function()]
            except UserError as error:
                outcome = [error]
        self._call(dist.broadcast_object_list, outcome)
        if isinstance(outcome[0], UserError):
            raise self.told(outcome[0])
        result: Result = outcome[0]
        return result

    def share(self, rows: Tensor, dim: int = 1) -> Tensor:
        if rows.shape[dim] < self.size:
            raise UserError(f"a batch of {rows.shape[dim]} rows cannot be divided among {self.size} processes")
        return rows.tensor_split(self.size, dim)[self.rank]

    def gathered(self, tensor: Tensor) -> Tensor:
        everyones = tensor.new_empty(self.size, *tensor.shape)
        self._call(dist.all_gather, list(everyones.unbind(0)), tensor.contiguous())
        return everyones

    def summed_share(self, tensor: Tensor) -> Tensor:
        share = torch.empty_like(tensor[0], memory_format=torch.contiguous_format)
        self._call(dist.reduce_scatter, share, list(tensor.contiguous().unbind(0)))
        return share

    def whole(self, part: Tensor, rows: Rows) -> Tensor:
        own = part.detach().cpu().contiguous()
        if self.rank:
            self._call(dist.send, own, 0)
            return own
        whole = own.new_empty(rows.whole, *own.shape[1:])
        whole[rows.start : rows.stop] = own
        for rank in range(1, self.size):
            others = Rows.of(rows.whole, rank, self.size)
            self._call(dist.recv, whole[others.start : others.stop], rank)
        return whole

    def _sum(self, tensor: Tensor) -> None:
        self._call(dist.all_reduce, tensor)

    def _call(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            if "memory" in str(error):
                raise
            raise UserError("the connection to the other processes is lost: one of them died or was stopped") from None


def start_together(config: TrainConfig) -> World:
    """Start the other processes, or join those that torchrun started.

    Raises:
        UsageError: there are not as many devices, --batch-size cannot be divided among the processes, or a variable
            of the environment that connects them is no number.
        UserError: they cannot be connected.
    """
    device = choose_device(config.device)
    devices, nodes = config.devices, config.nodes
    for name in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_PORT"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise UsageError(f"{name} must be a number, got {value!r}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        if not devices:
            raise UsageError("LOCAL_WORLD_SIZE is missing, which torchrun sets; unset TORCHELASTIC_RUN_ID without it")
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if config.batch_size % (devices * nodes):
        raise UsageError(
            f"--batch-size {config.batch_size} is of all processes together and must be divisible by their number, "
            f"{devices * nodes}"
        )
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells about each process it starts
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(process_group_backend=backend),
    )
    try:
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect the processes: {str(error).splitlines()[0]}") from None
    atexit.register(_disconnect)
    return Together(fabric.device, fabric.global_rank, fabric.world_size)


def _disconnect() -> None:
    """End torch's threads for the connections; where the interpreter's end does that, it now and then aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()
