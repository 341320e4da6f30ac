"""What torch does around a call that compiled code would not notice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# torch has no public way to ask for these. Where one is missing, what it tells of is taken not to be there.
_autograd, _functorch = torch._C._autograd, getattr(torch._C, "_functorch", None)
dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
# Hooks that take what is saved for backward: those of checkpoints expect the same tensors at each run.
hooks_of_saved: Callable[[bool], Any] = getattr(_autograd, "_top_saved_tensors_default_hooks", lambda _: None)
transform: Callable[[], Any] = getattr(_functorch, "peek_interpreter_stack", lambda: None)
tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: False)
any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
_has_storage: Callable[[Tensor], bool] = getattr(torch._C, "_has_storage", lambda _: True)


def transformed() -> str | None:
    """Why only operations that torch can transform can run here, or None."""
    if tracing():
        return "torch.jit traces each operation"
    return None if transform() is None else "torch.func transforms each operation"


def obstacle() -> str | None:
    """Why only torch's own operations can run here, or None: something follows them one by one."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "derivatives are taken in forward mode"
    if dispatch_modes():
        return "a dispatch mode sees each operation"
    return transformed()


def sees_operations(tensor: Tensor) -> bool:
    """Whether a tensor is of a class that takes each operation itself, as fake ones do."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def wants_operations(gradients: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass has to consist of torch's operations: it will be differentiated itself, or each of its
    gradients stands for several (`is_grads_batched`)."""
    return torch.is_grad_enabled() or not all(g is None or _has_storage(g) for g in gradients)
