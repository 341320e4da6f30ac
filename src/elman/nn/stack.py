"""What a `Recurrent` is made of, tensors apart: its layers' cells and layouts, names of parameters, and wiring."""

import warnings
from collections.abc import Sequence

from elman.cells.contract import Cell
from elman.cells.layout import Layout, layout
from elman.cells.wrapped import Unbiased
from elman.nn.options import Options
from elman.nn.wiring import Wiring


class Stack:
    """Layers of cells, one on the other.

    Args:
        cells: of each layer, from the lowest.
        sizes: hidden units of each.
        input_size: width of the lowest layer's input.
        bias: whether there are biases.
        directions: 1, or 2 where each layer also runs backwards.
        options: of all layers.
        layered: whether states may differ from layer to layer.

    Attributes:
        trained: each layer's cell, with the options that act inside the recurrence, and its layout.
        layers: the same in evaluation, without what is random.
        wiring: how layers are joined.
        suffixes: of the parameters' names, for each layer and direction.
        slots: the parameters' names in the layout and in full, for each layer and direction.
        names: all of them in full.

    Raises:
        ValueError: the layers do not fit each other, or an option does not fit a cell.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        sizes: Sequence[int],
        input_size: int,
        bias: bool,
        directions: int,
        options: Options,
        layered: bool,
    ) -> None:
        self.options = options
        self.layered = layered
        self.directions = directions
        self.wiring = Wiring(options, len(cells))
        self.trained = self._lay_out(cells, sizes, input_size, bias)
        self.layers = [_evaluated(cell, parts, bias) for cell, parts in self.trained]
        self.suffixes = [[f"_l{level}", f"_l{level}_reverse"][:directions] for level in range(len(cells))]
        self.slots = [
            [[(p.name, p.name + suffix) for p in parts.parameters] for suffix in suffixes]
            for (_, parts), suffixes in zip(self.layers, self.suffixes, strict=True)
        ]
        self.names = frozenset(full for level in self.slots for slots in level for _, full in slots)

    @property
    def output_size(self) -> int:
        """Width of the output of the last layer."""
        return self._width(self.layers[-1][1])

    def _width(self, parts: Layout) -> int:
        return parts.output_size * (self.directions if self.options.merge == "concatenate" else 1)

    def _lay_out(
        self, cells: Sequence[Cell], sizes: Sequence[int], width: int, bias: bool
    ) -> list[tuple[Cell, Layout]]:
        options, skips = self.options, self.wiring.skips
        layers: list[tuple[Cell, Layout]] = []
        for level, (given, size) in enumerate(zip(cells, sizes, strict=True)):
            cell = given.at_layer(level)
            cell = options.applied(Unbiased(cell) if cell.biases and not bias else cell, bias)
            parts = layout(cell, width, size, bias)
            if type(given).step is Cell.step:
                raise ValueError(f"{type(given).__name__} defines no step; subclass Cell and write one")
            if cell.below and not layers:
                raise ValueError(f"{cell!r} reads the layer below, so it cannot be the lowest; see Cell.at_layer")
            if cell.below and size != sizes[level - 1]:
                raise ValueError(
                    f"{cell!r} reads the layer below, so hidden_size must be the same in both, got {list(sizes)}"
                )
            if layers and not self.layered and parts.states != layers[0][1].states:
                raise ValueError(f"{cells[-1]!r} must have the same states in every layer, of the same widths")
            layers.append((cell, parts))
            output = self._width(parts)
            skips.append(options.residual and output == width)
            if options.residual and level and output != width:
                warnings.warn(f"residual: layer {level} has no skip, since {width} in are {output} out", stacklevel=4)
            width = output + (width if options.dense and level < len(sizes) - 1 else 0)
        if options.residual and not any(skips):
            raise ValueError("residual: no layer's input is as wide as its output, so there is nothing to add")
        return layers


def _evaluated(cell: Cell, parts: Layout, bias: bool) -> tuple[Cell, Layout]:
    other = cell.evaluated()
    if other.draws:
        raise ValueError(
            f"{cell!r} draws {other.draws[0].name!r} in evaluation too; let evaluated() give a cell without"
        )
    if other == cell:
        return cell, parts
    return other, layout(other, parts.input_size, parts.hidden_size, bias)
