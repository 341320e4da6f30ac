"""The cells that have a name, and the registry of names."""

import difflib
import inspect

from elman.cells.additive import ATR, CFN, RAN, SGRN, STAR
from elman.cells.bistable import BRC, NBRC
from elman.cells.clockwork import Clockwork
from elman.cells.continuous import CfC
from elman.cells.contract import Cell, Extra, Gate, Product, StateEntry, Vector
from elman.cells.delayed import TauGRU
from elman.cells.elman import Elman
from elman.cells.gru import GRU, GRUResetBefore, LayerNormGRU, MinGRU, MinLSTM
from elman.cells.highway import RecurrentHighway
from elman.cells.intersection import UGRNN, IntersectionRNN
from elman.cells.janet import JANET
from elman.cells.lmu import LMU
from elman.cells.lstm import LSTM, LSTM1997, CoupledLSTM, DepthGatedLSTM, LayerNormLSTM, PeepholeLSTM
from elman.cells.lstm_variants import MemoryControllerLSTM, ResidualLSTM, WorkingMemoryLSTM
from elman.cells.multiplicative import MultiplicativeLSTM, MultiplicativeRNN
from elman.cells.mut import MUT1, MUT2, MUT3
from elman.cells.nas import NAS
from elman.cells.fast import FastGRNN, FastRNN
from elman.cells.gru import GRU, GRUResetBefore, MinGRU
from elman.cells.highway import RecurrentHighway
from elman.cells.jordan import Jordan
from elman.cells.light import LightRU, LiGRU, MinimalRNN, MiRU
from elman.cells.lmu import LMU
from elman.cells.lstm import LSTM, DepthGatedLSTM, LayerNormLSTM, PeepholeLSTM
from elman.cells.mgu import MGU, MGU1, MGU2, MGU3
from elman.cells.scrn import SCRN
from elman.cells.sgu import DSGU, SGU
from elman.cells.strongly_typed import TGRU, TLSTM, TRNN
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
    "lstm_1997": LSTM1997,
    "coupled_lstm": CoupledLSTM,
    "residual_lstm": ResidualLSTM,
    "working_memory_lstm": WorkingMemoryLSTM,
    "memory_controller_lstm": MemoryControllerLSTM,
    "multiplicative_rnn": MultiplicativeRNN,
    "multiplicative_lstm": MultiplicativeLSTM,
    "nas": NAS,
    "janet": JANET,
    "mut1": MUT1,
    "mut2": MUT2,
    "mut3": MUT3,
    "ugrnn": UGRNN,
    "intersection_rnn": IntersectionRNN,
    "min_lstm": MinLSTM,
    "layer_norm_gru": LayerNormGRU,
    "jordan": Jordan,
    "mgu": MGU,
    "mgu1": MGU1,
    "mgu2": MGU2,
    "mgu3": MGU3,
    "ligru": LiGRU,
    "lightru": LightRU,
    "minimal_rnn": MinimalRNN,
    "miru": MiRU,
    "atr": ATR,
    "cfn": CFN,
    "ran": RAN,
    "sgrn": SGRN,
    "star": STAR,
    "sgu": SGU,
    "dsgu": DSGU,
    "scrn": SCRN,
    "trnn": TRNN,
    "tgru": TGRU,
    "tlstm": TLSTM,
    "brc": BRC,
    "nbrc": NBRC,
    "fast_rnn": FastRNN,
    "fast_grnn": FastGRNN,
    "taugru": TauGRU,
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
