"""The cells that have a name, and the registry of names."""

import difflib
import inspect

from elman.cells.antisymmetric import AntisymmetricRNN, GatedAntisymmetricRNN
from elman.cells.clockwork import Clockwork
from elman.cells.continuous import LTC, CfC
from elman.cells.contract import Cell, Extra, Gate, Product, StateEntry, Vector
from elman.cells.delta import DeltaRNN
from elman.cells.elman import Elman
from elman.cells.gilr import GILR, GILRLSTM
from elman.cells.gru import GRU, GRUResetBefore, MinGRU
from elman.cells.highway import RecurrentHighway
from elman.cells.indrnn import IndRNN
from elman.cells.leaky import EchoState, LeakyRNN
from elman.cells.lem import LEM
from elman.cells.linear_recurrent import LRU, RGLRU
from elman.cells.lmu import LMU
from elman.cells.lstm import LSTM, DepthGatedLSTM, LayerNormLSTM, PeepholeLSTM
from elman.cells.oscillators import CoRNN, UnICORNN
from elman.cells.qrnn import QRNN
from elman.cells.rwa import RWA
from elman.cells.sru import SRU
from elman.cells.timed_lstm import PhasedLSTM, TimeAwareLSTM
from elman.cells.xlstm import SLSTM

__all__ = ["Cell", "Extra", "Gate", "Product", "StateEntry", "Vector", "get", "names", "register"]

_registry: dict[str, type[Cell]] = {
    "elman": Elman,
    "lstm": LSTM,
    "gru": GRU,
    "gru_reset_before": GRUResetBefore,
    "peephole_lstm": PeepholeLSTM,
    "depth_gated_lstm": DepthGatedLSTM,
    "clockwork": Clockwork,
    "layer_norm_lstm": LayerNormLSTM,
    "min_gru": MinGRU,
    "slstm": SLSTM,
    "recurrent_highway": RecurrentHighway,
    "lmu": LMU,
    "cfc": CfC,
    "ltc": LTC,
    "leaky_rnn": LeakyRNN,
    "echo_state": EchoState,
    "antisymmetric_rnn": AntisymmetricRNN,
    "gated_antisymmetric_rnn": GatedAntisymmetricRNN,
    "cornn": CoRNN,
    "unicornn": UnICORNN,
    "lem": LEM,
    "indrnn": IndRNN,
    "delta_rnn": DeltaRNN,
    "rwa": RWA,
    "sru": SRU,
    "qrnn": QRNN,
    "gilr": GILR,
    "gilr_lstm": GILRLSTM,
    "lru": LRU,
    "rg_lru": RGLRU,
    "phased_lstm": PhasedLSTM,
    "time_aware_lstm": TimeAwareLSTM,
}


def names() -> tuple[str, ...]:
    """The names of all registered cells."""
    return tuple(_registry)


def get(name: str) -> type[Cell]:
    """The cell class with this name.

    Raises:
        ValueError: no cell has this name; the message offers the nearest one that exists.
    """
    if name in _registry:
        return _registry[name]
    near = difflib.get_close_matches(name.lower(), _registry, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_registry)}"
    raise ValueError(f"unknown cell {name!r}; {hint}")


def register(name: str, cell: type[Cell]) -> None:
    """Give a cell class a name, so that `Recurrent(name, ...)` and the command line find it.

    Raises:
        ValueError: the name is taken by another class, or the class is no subclass of `Cell`.
    """
    if not (inspect.isclass(cell) and issubclass(cell, Cell)):
        raise ValueError(f"cell must be a subclass of elman.Cell, got {cell!r}")
    if _registry.get(name, cell) is not cell:
        raise ValueError(f"the cell name {name!r} is taken by {_registry[name].__name__}")
    _registry[name] = cell
