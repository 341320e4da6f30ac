"""torch's own pool of threads, as compiled code calls it."""

import ctypes
import functools
from pathlib import Path

import torch

Team = tuple[int, int, int, int]  # threads, and the addresses of a pool's functions; see pool.h


@functools.cache
def pool() -> tuple[int, int, int] | None:
    """Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads in the OpenMP runtime that torch uses.

    A second runtime's idle threads would spin beside torch's and cost more than they give. None where torch has none
    that is known here; kernels then run on one thread.
    """
    folder = Path(torch.__file__).parent
    for names in ("lib/libgomp*.so*", "../torch.libs/libgomp*.so*", "lib/libiomp5*.so*", "lib/libomp*.so*"):
        for path in sorted(folder.glob(names)):
            library = ctypes.CDLL(str(path))
            functions = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            if all(hasattr(library, f) for f in functions):
                parallel, number, size = (ctypes.cast(getattr(library, f), ctypes.c_void_p).value for f in functions)
                return (parallel or 0, number or 0, size or 0)
    return None


def count() -> int:
    """Threads to run on: as many as torch uses."""
    return torch.get_num_threads() if pool() else 1


def worth(operations: int) -> bool:
    """Whether so many repay the start of threads; below zero there are many, whose number is not known."""
    return not 0 <= operations <= 1 << 15


def team(operations: int = -1) -> "Team":
    """The threads for so many operations, and the functions of the pool."""
    return (count() if worth(operations) else 1, *(pool() or (0, 0, 0)))
