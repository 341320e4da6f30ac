from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elman.cells.contract import Cell, Product, Vector
from elman.cells.initial import Constant, Initial, Normal
from elman.cells.math import Value, sigmoid, tanh
from elman.cells.structure import Dense, LowRank, Structure


@dataclass(frozen=True)
class _Fast(Cell):
    """What both cells share: one sum W x_t + U h_{t-1}, with W and U of low rank where asked."""

    rank: int | None = None
    input_rank: int | None = None

    recurrent_gates = ("sum",)
    input_bias = False
    recurrent_bias = False

    def __post_init__(self) -> None:
        for name in ("rank", "input_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None for a dense matrix, got {value!r}")

    @property
    def input_gates(self) -> tuple[str, ...]:
        return () if self.input_rank else ("sum",)

    @property
    def recurrent_structure(self) -> Structure:
        return LowRank(self.rank) if self.rank else Dense()

    @property
    def products(self) -> tuple[Product, ...]:
        return (Product("w", input="I", bias=False, structure=LowRank(self.input_rank)),) if self.input_rank else ()

    @property
    def initial(self) -> Mapping[str, Initial]:
        return {f"weight_{matrix}": Normal(0.1) for matrix in ("ih", "hh", "hh_in", "w", "w_in")}

    def _sum(self, x: Any, u: Any, s: Any) -> Value:
        return (u.w(x.raw) if self.input_rank else x.sum) + u.sum(s.h)


@dataclass(frozen=True)
class FastRNN(_Fast):
    """The vanilla network with a weighted residual connection.

    n = tanh(W x_t + U h_{t-1} + b)
    h_t = σ(α) n + σ(β) h_{t-1}

    α and β are learned numbers, -3 and 3 at the start. W has low rank where `input_rank` says so, U where `rank` does.

    Kusupati, Singh, Bhatia, Kumar, Jain & Varma, "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated
    recurrent neural network", NeurIPS 2018; initial values as in the authors' code.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], or weight_w [H, input_rank] and weight_w_in [input_rank, I];
    weight_hh [H, H], or weight_hh [H, rank] and weight_hh_in [rank, H]; b [H], alpha and beta [1]. The
    count is for dense matrices. Parameters: H·(I + H + 1) + 2.
    """

    vectors = (Vector("alpha", 1), Vector("beta", 1))
    biases = ("b",)

    @property
    def initial(self) -> Mapping[str, Initial]:
        return {**super().initial, "b": Constant(1.0), "alpha": Constant(-3.0), "beta": Constant(3.0)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        n = tanh(self._sum(x, u, s) + p.b)
        return self.State(h=sigmoid(p.alpha) * n + sigmoid(p.beta) * s.h)


@dataclass(frozen=True)
class FastGRNN(_Fast):
    """FastRNN with the residual connection's weights extended to a gate, which reads the same two products.

    z = σ(W x_t + U h_{t-1} + b_z)
    n = tanh(W x_t + U h_{t-1} + b_n)
    h_t = (σ(ζ) (1 - z) + σ(ν)) ∘ n + z ∘ h_{t-1}

    ζ and ν are learned numbers, 1 and -4 at the start. W has low rank where `input_rank` says so, U where `rank` does.

    Kusupati, Singh, Bhatia, Kumar, Jain & Varma, "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated
    recurrent neural network", NeurIPS 2018; initial values as in the authors' code.

    Shapes: x [B, I], h [B, H]; weight_ih [H, I], or weight_w [H, input_rank] and weight_w_in [input_rank, I];
    weight_hh [H, H], or weight_hh [H, rank] and weight_hh_in [rank, H]; b_z and b_n [H], zeta and nu [1]. The
    count is for dense matrices. Parameters: H·(I + H + 2) + 2.
    """

    vectors = (Vector("zeta", 1), Vector("nu", 1))
    biases = ("b_z", "b_n")

    @property
    def initial(self) -> Mapping[str, Initial]:
        biases = {name: Constant(1.0) for name in ("b_z", "b_n")}
        return {**super().initial, **biases, "zeta": Constant(1.0), "nu": Constant(-4.0)}

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        both = self._sum(x, u, s)
        z = sigmoid(both + p.b_z)
        n = tanh(both + p.b_n)
        return self.State(h=(sigmoid(p.zeta) * (1 - z) + sigmoid(p.nu)) * n + z * s.h)
