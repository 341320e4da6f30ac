"""The structure of a product's matrix: which weights it has, and how they are stored."""

from dataclasses import dataclass


def _blocks(width: int, blocks: int, what: str) -> int:
    if not isinstance(blocks, int) or blocks < 1:
        raise ValueError(f"the number of blocks must be at least 1, got {blocks!r}")
    if width % blocks:
        raise ValueError(f"{what} must be a multiple of the number of blocks ({blocks}), got {width}")
    return width // blocks


@dataclass(frozen=True)
class Dense:
    """Every output sees every input. Stored [outputs, inputs]."""

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """The stored matrices: what their parameter's name ends in, and their shape."""
        return {"": (outputs, inputs)}


@dataclass(frozen=True)
class BlockDiagonal:
    """Inputs and outputs in as many blocks ("heads"); a block sees only itself. Stored [outputs, inputs / blocks]."""

    blocks: int

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        _blocks(outputs, self.blocks, "the width of a block-diagonal product's result")
        return {"": (outputs, _blocks(inputs, self.blocks, "the width of a block-diagonal product's operand"))}


@dataclass(frozen=True)
class BlockTriangular:
    """Block i of the outputs sees the blocks j ≥ i of the inputs. Stored [outputs, inputs]; the rest counts as zero."""

    blocks: int

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        _blocks(outputs, self.blocks, "the width of a block-triangular product's result")
        _blocks(inputs, self.blocks, "the width of a block-triangular product's operand")
        return {"": (outputs, inputs)}


@dataclass(frozen=True)
class LowRank:
    """W = A B with A [outputs, rank], stored under the product's name, and B [rank, inputs], under `<name>_in`."""

    rank: int

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"the rank of a low-rank product must be at least 1, got {self.rank!r}")
        return {"": (outputs, self.rank), "_in": (self.rank, inputs)}


@dataclass(frozen=True)
class Antisymmetric:
    """A = W - Wᵀ - γ I, square: its eigenvalues have the real part -γ. Stored [width, width], as W."""

    gamma: float = 0.0

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        if outputs != inputs:
            raise ValueError(f"an antisymmetric product must be square, got {outputs} outputs and {inputs} inputs")
        return {"": (outputs, inputs)}


Structure = Dense | BlockDiagonal | BlockTriangular | LowRank | Antisymmetric
