"""Initial values of parameters, as a cell's `initial` names them. Each fills one block: a gate's rows, or a vector."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Initial:
    """Fills a parameter, or one gate's rows of it, in place."""

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        """Write the initial values into `block`: [rows, columns] of a weight, or [width] of a bias or vector."""
        raise NotImplementedError


@dataclass(frozen=True)
class Uniform(Initial):
    """U(-bound, bound); by default the bound is 1/√H, as in torch.nn."""

    bound: float | None = None

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        bound = self.bound if self.bound is not None else 1.0 / math.sqrt(hidden_size)
        block.uniform_(-bound, bound)


@dataclass(frozen=True)
class Normal(Initial):
    """N(mean, std²)."""

    std: float
    mean: float = 0.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        block.normal_(self.mean, self.std)


@dataclass(frozen=True)
class Constant(Initial):
    """One value everywhere."""

    value: float

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        block.fill_(self.value)


@dataclass(frozen=True)
class Chrono(Initial):
    """log U(1, longest - 1): a forget gate's bias, for dependencies of up to so many steps (Tallec & Ollivier 2018)."""

    longest: float

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        block.uniform_(1.0, self.longest - 1.0).log_()


@dataclass(frozen=True)
class LecunUniform(Initial):
    """U(-√(3/n), √(3/n)) with n the number of inputs of a unit: unit variance of the products (LeCun et al. 1998)."""

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        bound = math.sqrt(3.0 / block.shape[-1])
        block.uniform_(-bound, bound)


@dataclass(frozen=True)
class XavierUniform(Initial):
    """U(-a, a), a = √(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        from torch.nn import init

        init.xavier_uniform_(block)


@dataclass(frozen=True)
class XavierNormal(Initial):
    """N(0, 2 / (inputs + outputs)) (Glorot & Bengio 2010)."""

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        from torch.nn import init

        init.xavier_normal_(block)


@dataclass(frozen=True)
class Orthogonal(Initial):
    """A random (semi-)orthogonal matrix for each gate (Saxe, McClelland & Ganguli 2014)."""

    gain: float = 1.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        from torch.nn import init

        init.orthogonal_(block, self.gain)
