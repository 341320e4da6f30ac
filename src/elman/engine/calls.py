"""What a call of a module looks like, and whether its tensors are as they were, in compiled code.

Each call asks for it. By Python, behind a kernel, that takes longer than some layers take to run; see docs/engine.md.
"""

import functools
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from elman.compiler import build
from elman.engine import surroundings
from elman.engine.tensors import CODES, like, maker, torch_words

Form = Any  # can be compared and hashed
_REQUIRES_GRAD = "requires_grad"


@functools.cache
def form_function() -> Callable[..., Form | None]:
    """What gives the form of a call.

    It takes an engine's name, a number for whatever else the form depends on, the rows of which each step has no more,
    or 0, the dimensions that the input must have, the input, and the entries of the state.

    Calls of one form have an input of the same shape, strides and dtype (with rows, of the same width and dtype), as
    many entries of a state, require the same gradients, and have as many threads. None where torch follows single
    operations.
    """
    library = _library()
    if library is None:
        return lambda *_: None
    level = "_current_level"
    forward_mode = forward_ad if hasattr(forward_ad, level) else SimpleNamespace(_current_level=-1)
    objects = (
        *(_REQUIRES_GRAD, surroundings.any_autocast, torch.is_autocast_enabled, torch.is_grad_enabled),
        *(torch.get_num_threads, surroundings.dispatch_modes, surroundings.tracing, surroundings.transform),
        *(surroundings.hooks_of_saved, forward_mode, level, None, "cpu", False),
        *(Tensor, surroundings.sees_operations),
    )
    words = array("q", (torch_words().buffer_info()[0], *map(id, objects)))
    function: Callable[..., Form | None] = maker(library, "elman_form")(words.buffer_info()[0], (words, objects))
    return function


def fitting(
    parameters: Sequence[tuple[str, Tensor]], states: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> Callable[..., list[Tensor] | None]:
    """What gives a module's parameters, of the dictionary of all, and of the entries of a state if one is given.

    None where one is not as expected: parameters of the shape that they have now, and as trained as they are, states of
    the given shapes, all of the dtype, on the CPU and contiguous.
    """
    library = _library()
    if library is None or dtype not in CODES:
        return lambda *_: None
    expected = [(id(name), p.requires_grad, *like(tuple(p.shape), dtype)) for name, p in parameters]
    tables = [array("q", (n for row in rows for n in row)) for rows in (expected, [like(s, dtype) for s in states])]
    objects = (_REQUIRES_GRAD, Parameter, None)
    sizes = zip((len(parameters), len(states)), (table.buffer_info()[0] for table in tables), strict=True)
    words = array("q", (torch_words().buffer_info()[0], *map(id, objects), *(n for size in sizes for n in size)))
    held = (words, tables, objects, [name for name, _ in parameters])
    function: Callable[..., list[Tensor] | None] = maker(library, "elman_fitting")(words.buffer_info()[0], held)
    return function


@functools.cache
def _library() -> Any:
    try:
        return build.load(Path(__file__).with_name("calls.cpp").read_text(), "float")
    except build.BuildError:
        return None  # the layers say so
