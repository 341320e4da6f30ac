"""The network: recurrent → dropout → head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from elman.errors import UsageError
from elman.nn.patterns import last_output
from elman.nn.recurrent import Recurrent
from elman.tasks.long_memory import LongMemoryConfig
from elman.tasks.long_memory.problem import Problem
from elman.tasks.long_memory.start import open_gates
from elman.tasks.models import check_engine


class SequenceModel(nn.Module):
    """Answers from recurrent outputs, at each step or once.

    Args:
        cell: a registered name.
        input_size: I, of each step.
        hidden_size, num_layers, bidirectional: of the recurrent layers.
        output_size: O, width of an answer.
        every_step: an answer at each step; else one, from the last output of each direction.
        dropout: between layers, and before the head.

    Raises:
        ValueError: a size does not fit the cell.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        every_step: bool,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.recurrent = Recurrent(
            cell, input_size, hidden_size, num_layers, dropout=between, bidirectional=bidirectional
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.recurrent.output_size, output_size)
        self.every_step = every_step

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Inputs ``[T, B, I]`` to answers ``[T, B, O]``, or ``[B, O]`` where there is one, and the state."""
        output, state = self.read(inputs, state)
        if not self.every_step:
            output = last_output(output, None, self.recurrent)
        answers: Tensor = self.head(self.dropout(output))
        return answers, state

    def read(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Inputs ``[T, B, I]`` to recurrent outputs ``[T, B, H·directions]`` and the state to carry on."""
        output, state = self.recurrent(inputs, state)
        return output, state


def build_model(config: LongMemoryConfig, problem: Problem) -> tuple[SequenceModel, tuple[str, ...]]:
    """The model that a configuration describes, and which biases start open.

    Raises:
        UsageError: a size or the engine does not fit.
    """
    try:
        model = SequenceModel(
            config.cell,
            problem.input_size,
            config.hidden_size,
            problem.output_size,
            every_step=problem.every_step,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
        )
    except ValueError as error:
        raise UsageError(f"--cell {config.cell}: {error}") from None
    check_engine(model.recurrent)
    return model, open_gates(model.recurrent, problem.steps) if config.chrono else ()
