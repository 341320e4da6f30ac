"""torch's tensors as compiled code reads and makes them, without torch's headers and without Python's own code.

DLPack is the standard for it: a plain structure says where a tensor's numbers are. torch has functions in C that fill
one in (`__dlpack_c_exchange_api__`, from 2.10 on), which takes a seventh of what asking for as much by Python does.
Without them the same goes by DLPack's capsules.
"""

import ctypes
import functools
from array import array
from typing import Any, TypeAlias

import torch
import torch.utils.dlpack
from torch import Tensor

DIMENSIONS = 4  # as in tensors.h
CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.uint8: (1, 8)}  # DLPack's type codes, and bits

_Words: TypeAlias = "array[int]"


@functools.cache
def torch_words() -> _Words:
    """The words of a `Torch` in tensors.h; they stay where they are."""
    functions = torch.utils.dlpack.to_dlpack, torch.utils.dlpack.from_dlpack  # type: ignore[attr-defined]
    return array("q", (_exchange(), *map(id, functions)))


def _exchange() -> int:
    """The address of torch's table of functions; 0 where it has none that is known."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = pointer(capsule, b"dlpack_exchange_api") or 0
    major = ctypes.c_uint32.from_address(address).value if address else 0
    return address if major == 1 else 0


def like(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """The words of a `Like` in tensors.h."""
    return (*CODES[dtype], len(shape), *shape, *(0,) * (DIMENSIONS - len(shape)))


def maker(library: ctypes.CDLL, name: str, more: int = 0) -> Any:
    """What makes a builtin function of Python's, by a function of a library that takes an address.

    The address is that of words which the builtin function reads; then come `more` numbers and an object that holds
    the words.
    """
    numbers = [ctypes.c_int64] * more
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, *numbers, ctypes.py_object)((name, library))
