"""RNN, LSTM and GRU with the constructors of torch.nn's classes of the same names."""

from typing import Any, Literal

import torch

from elman.cells.elman import Elman
from elman.cells.gru import GRU as GRUCell
from elman.cells.lstm import LSTM as LSTMCell
from elman.nn.recurrent import Recurrent


class RNN(Recurrent):
    """The vanilla (Elman) network, h_t = tanh(W x_t + b + U h_{t-1} + b') or with relu; see `Recurrent`.

    Arguments, shapes, results and `state_dict` keys are torch.nn.RNN's. Source: see `elman.cells.elman.Elman`.
    """

    dropout_as_torch = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            Elman(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity


class LSTM(Recurrent):
    """Long short-term memory; see `Recurrent`.

    Arguments, shapes, results and `state_dict` keys are torch.nn.LSTM's. Source: see `elman.cells.lstm.LSTM`.
    """

    dropout_as_torch = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            LSTMCell(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )


class GRU(Recurrent):
    """Gated recurrent unit, with the reset gate after the product; see `Recurrent`.

    Arguments, shapes, results and `state_dict` keys are torch.nn.GRU's. Source: see `elman.cells.gru.GRU`.
    """

    dropout_as_torch = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            GRUCell(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
