"""The cells that have a name, and the registry of names."""

import difflib
import importlib
import inspect

from elman.cells.contract import Cell, Extra, Gate, Product, StateEntry, Vector

__all__ = ["Cell", "Extra", "Gate", "Product", "StateEntry", "Vector", "families", "get", "names", "register"]

# The cells by family, each as its module and class in this package, which are imported when they are asked for.
_families: dict[str, dict[str, str]] = {
    "Elman's and Jordan's networks, and their kin": {
        "elman": "elman.Elman",
        "jordan": "jordan.Jordan",
        "leaky_rnn": "leaky.LeakyRNN",
        "echo_state": "leaky.EchoState",
        "clockwork": "clockwork.Clockwork",
        "indrnn": "indrnn.IndRNN",
        "antisymmetric_rnn": "antisymmetric.AntisymmetricRNN",
        "gated_antisymmetric_rnn": "antisymmetric.GatedAntisymmetricRNN",
        "multiplicative_rnn": "multiplicative.MultiplicativeRNN",
        "recurrent_highway": "highway.RecurrentHighway",
        "scrn": "scrn.SCRN",
        "delta_rnn": "delta.DeltaRNN",
        "fast_rnn": "fast.FastRNN",
        "fast_grnn": "fast.FastGRNN",
        "minimal_rnn": "light.MinimalRNN",
        "intersection_rnn": "intersection.IntersectionRNN",
        "ugrnn": "intersection.UGRNN",
        "trnn": "strongly_typed.TRNN",
    },
    "LSTM and its kin": {
        "lstm": "lstm.LSTM",
        "lstm_1997": "lstm.LSTM1997",
        "peephole_lstm": "lstm.PeepholeLSTM",
        "coupled_lstm": "lstm.CoupledLSTM",
        "depth_gated_lstm": "lstm.DepthGatedLSTM",
        "residual_lstm": "lstm_variants.ResidualLSTM",
        "layer_norm_lstm": "lstm.LayerNormLSTM",
        "multiplicative_lstm": "multiplicative.MultiplicativeLSTM",
        "working_memory_lstm": "lstm_variants.WorkingMemoryLSTM",
        "memory_controller_lstm": "lstm_variants.MemoryControllerLSTM",
        "janet": "janet.JANET",
        "nas": "nas.NAS",
        "slstm": "xlstm.SLSTM",
        "tlstm": "strongly_typed.TLSTM",
        "phased_lstm": "timed_lstm.PhasedLSTM",
        "time_aware_lstm": "timed_lstm.TimeAwareLSTM",
    },
    "GRU and its kin": {
        "gru": "gru.GRU",
        "gru_reset_before": "gru.GRUResetBefore",
        "layer_norm_gru": "gru.LayerNormGRU",
        "mgu": "mgu.MGU",
        "mgu1": "mgu.MGU1",
        "mgu2": "mgu.MGU2",
        "mgu3": "mgu.MGU3",
        "ligru": "light.LiGRU",
        "lightru": "light.LightRU",
        "miru": "light.MiRU",
        "mut1": "mut.MUT1",
        "mut2": "mut.MUT2",
        "mut3": "mut.MUT3",
        "atr": "additive.ATR",
        "cfn": "additive.CFN",
        "ran": "additive.RAN",
        "sgrn": "additive.SGRN",
        "star": "additive.STAR",
        "sgu": "sgu.SGU",
        "dsgu": "sgu.DSGU",
        "brc": "bistable.BRC",
        "nbrc": "bistable.NBRC",
        "tgru": "strongly_typed.TGRU",
        "taugru": "delayed.TauGRU",
    },
    "Recurrences without a product of the state": {
        "sru": "sru.SRU",
        "qrnn": "qrnn.QRNN",
        "gilr": "gilr.GILR",
        "gilr_lstm": "gilr.GILRLSTM",
        "min_gru": "gru.MinGRU",
        "min_lstm": "gru.MinLSTM",
        "lru": "linear_recurrent.LRU",
        "rg_lru": "linear_recurrent.RGLRU",
        "rwa": "rwa.RWA",
    },
    "Dynamical systems and memories in continuous time": {
        "cornn": "oscillators.CoRNN",
        "unicornn": "oscillators.UnICORNN",
        "lem": "lem.LEM",
        "lmu": "lmu.LMU",
        "ltc": "continuous.LTC",
        "cfc": "continuous.CfC",
    },
}
_registry: dict[str, str | type[Cell]] = {
    name: place for members in _families.values() for name, place in members.items()
}


def names() -> tuple[str, ...]:
    """The names of all registered cells."""
    return tuple(_registry)


def families() -> dict[str, tuple[str, ...]]:
    """The names of all registered cells by family; those that `register` added come last."""
    found = {family: tuple(members) for family, members in _families.items()}
    others = tuple(name for name in _registry if not any(name in members for members in _families.values()))
    return {**found, "Registered here": others} if others else found


def get(name: str) -> type[Cell]:
    """The cell class with this name, or the one that `module:Class` names.

    Raises:
        ValueError: the name is no string, or no cell has it, and the message offers the nearest one that exists; or the
            module cannot be imported, or has no such cell.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name of a cell must be a string, got {name!r}")
    if ":" in name:
        return _imported(name)
    found = _registry.get(name)
    if isinstance(found, str):
        module, _, kind = found.partition(".")
        found = _registry[name] = _class(getattr(importlib.import_module(f"elman.cells.{module}"), kind))
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), _registry, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_registry)}"
    raise ValueError(f"unknown cell {name!r}; {hint}")


def register(name: str, cell: type[Cell]) -> None:
    """Give a cell class a name, so that `Recurrent(name, ...)` and the command line find it.

    Raises:
        ValueError: the name is no string, has a colon or is taken by another class, or the class is no subclass of
            `Cell`.
    """
    cell = _class(cell)
    if not isinstance(name, str) or not name or ":" in name:
        raise ValueError(f"the name of a cell must be a string without a colon, got {name!r}")
    if name in _registry and get(name) is not cell:
        raise ValueError(f"the cell name {name!r} is taken by {get(name).__name__}")
    _registry[name] = cell


def _imported(name: str) -> type[Cell]:
    module, _, kind = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except Exception as error:  # whatever the module's own code raises, the name is what the user can change
        raise ValueError(f"cell {name!r}: cannot import {module!r}: {type(error).__name__}: {error}") from error
    if found is None:
        raise ValueError(f"cell {name!r}: the module {module!r} has no {kind!r}")
    return _class(found)


def __getattr__(name: str) -> type[Cell]:
    """The classes of the registered cells, by their own names."""
    for cell, found in _registry.items():
        if name == (found.partition(".")[2] if isinstance(found, str) else found.__name__):
            return get(cell)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _class(cell: object) -> type[Cell]:
    if inspect.isclass(cell) and issubclass(cell, Cell):
        return cell
    raise ValueError(f"cell must be a subclass of elman.Cell, got {cell!r}")
