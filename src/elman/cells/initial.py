"""Initial values of parameters, as a cell's `initial` names them. Each fills one block: a gate's rows, or a vector."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
class Between(Initial):
    """g(v) with v from U(low, high), or with the values v of a vector spread evenly from `low` to `high`.

    Spread evenly, several vectors of one width can each be a function of the same numbers.
    """

    low: float
    high: float
    through: Callable[[Any], Any] | None = None
    evenly: bool = False

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        import torch

        v = torch.empty_like(block, dtype=torch.float64)
        if self.evenly:
            places = (torch.arange(len(v), dtype=v.dtype, device=v.device) + 0.5) / len(v)
            v = self.low + (self.high - self.low) * places
        else:
            v.uniform_(self.low, self.high)
        block.copy_(v if self.through is None else self.through(v))


@dataclass(frozen=True)
class LecunUniform(Initial):
    """U(-a, a), a = gain · √(3/n), n the inputs of a unit: products of variance gain² (LeCun et al. 1998)."""

    gain: float = 1.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        bound = self.gain * math.sqrt(3.0 / block.shape[-1])
        block.uniform_(-bound, bound)


@dataclass(frozen=True)
class LecunNormal(Initial):
    """N(0, gain²/n), n the inputs of a unit: products of variance gain² (LeCun et al. 1998)."""

    gain: float = 1.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        block.normal_(0.0, self.gain / math.sqrt(block.shape[-1]))


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


@dataclass(frozen=True)
class Identity(Initial):
    """The identity, times `gain`: a state that nothing changes stays (Le, Jaitly & Hinton 2015)."""

    gain: float = 1.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        from torch.nn import init

        init.eye_(block).mul_(self.gain)


@dataclass(frozen=True)
class SpectralRadius(Initial):
    """A random square matrix whose largest eigenvalue has the absolute value `radius` (Jaeger 2001).

    Each unit is fed by a share `density` of the units, drawn at random, one at least: so some units form a loop and
    the largest eigenvalue is not zero. Weights are from U(-1, 1) before they are scaled.
    """

    radius: float
    density: float = 1.0

    def fill(self, block: "Tensor", hidden_size: int) -> None:
        import torch

        width = block.shape[-1]
        drawn = torch.empty_like(block, dtype=torch.float64).uniform_(-1.0, 1.0)
        places = torch.rand_like(drawn).argsort(-1)
        drawn *= places < max(1, round(self.density * width))
        block.copy_(drawn * (self.radius / torch.linalg.eigvals(drawn).abs().max()))
