import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from elman.engine.tensors import torch_words

torch.set_num_threads(1)  # the test runner starts a process for each core

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory from torch.empty starts as NaN, so that a kernel that reads what nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """As torch.set_num_threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def by_capsules() -> Iterator[None]:
    """Tensors reach compiled code by DLPack's capsules, as with a torch that has no functions in C for it."""
    words = torch_words()
    exchange, words[0] = words[0], 0
    yield
    words[0] = exchange
