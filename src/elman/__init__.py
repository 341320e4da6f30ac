"""Elman: recurrent networks for PyTorch, from a cell's equations to a trained model.

The names below are the whole public interface of the package; each is imported at its first use, so that
`import elman` and the cells' definitions need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from elman import cells
from elman.cells.contract import Cell

if TYPE_CHECKING:
    from elman import nn
    from elman.engine.dispatch import Explanation, explain, use_engine
    from elman.engine.draws import Noise
    from elman.nn.convolution import ConvLSTM
    from elman.nn.recurrent import Recurrent
    from elman.nn.stepper import Stepper
    from elman.nn.torch_layers import GRU, LSTM, RNN

__version__ = "0.1.0"

_LAZY = {
    "RNN": "elman.nn.torch_layers",
    "LSTM": "elman.nn.torch_layers",
    "GRU": "elman.nn.torch_layers",
    "ConvLSTM": "elman.nn.convolution",
    "Recurrent": "elman.nn.recurrent",
    "Stepper": "elman.nn.stepper",
    "Noise": "elman.engine.draws",
    "Explanation": "elman.engine.dispatch",
    "explain": "elman.engine.dispatch",
    "use_engine": "elman.engine.dispatch",
}

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "ConvLSTM",
    "Explanation",
    "Noise",
    "Recurrent",
    "Stepper",
    "__version__",
    "cells",
    "explain",
    "nn",
    "use_engine",
]


def __getattr__(name: str) -> Any:
    if name == "nn":
        return importlib.import_module("elman.nn")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'elman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
