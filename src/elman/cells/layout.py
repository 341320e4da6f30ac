"""A cell's declarations at given sizes: every parameter with its name and shape, every gate with its rows."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from elman.cells.checks import check_constants, check_draws, check_lists, check_names, check_states, checked_width
from elman.cells.contract import Cell, Draw, Extra, Gate, StateEntry, Vector, entries
from elman.cells.structure import BlockDiagonal, BlockTriangular, Dense, LowRank, Structure

_RESERVED = {"raw", "below"}


@dataclass(frozen=True)
class Parameter:
    """A parameter's name without its layer, its shape, and the rows that initial values are drawn for apart.

    A `frozen` one is not trained.
    """

    name: str
    shape: tuple[int, ...]
    blocks: dict[str, slice]
    frozen: bool = False


@dataclass(frozen=True)
class MatrixProduct:
    """`u.<name>`: some rows of a stored matrix, perhaps with a bias.

    `weight` is the parameter that holds the matrix (a constant's name where `fixed`), `rows` its rows for this
    product; `bias` names the parameter that holds the bias in the same rows, or is None.
    """

    name: str
    weight: str
    rows: slice
    input: int
    output: int
    bias: str | None
    structure: Structure
    fixed: bool

    @property
    def stored(self) -> bool:
        """Whether the parameter's rows are the matrix to multiply by (of a low-rank one, its outer factor)."""
        return not self.fixed and isinstance(self.structure, (Dense, LowRank))

    @property
    def sparse(self) -> bool:
        """Whether the matrix has weights in some blocks alone."""
        return isinstance(self.structure, (BlockDiagonal, BlockTriangular))


@dataclass(frozen=True, eq=False)
class Layout:
    """One layer's parts at their sizes; equal only to itself, so that engines may keep what they derive from it.

    Attributes:
        input_size, hidden_size: I and H.
        states: width of each state entry, in order, beside its declaration.
        input_gates: rows of `weight_ih` for each input gate.
        products: every product by the name that `step` uses.
        vectors: names of the per-unit parameters, the cell's own biases among them.
        extras: the further inputs.
        draws: the width of each random choice, beside its declaration.
        parameters: all parameters, in the order they are registered.
        input_bias: whether `bias_ih` exists.
    """

    input_size: int
    hidden_size: int
    states: tuple[tuple[StateEntry, int], ...]
    input_gates: dict[str, slice]
    products: dict[str, MatrixProduct]
    vectors: tuple[str, ...]
    extras: tuple[Extra, ...]
    parameters: tuple[Parameter, ...]
    input_bias: bool
    draws: tuple[tuple[Draw, int], ...] = ()

    @property
    def output_size(self) -> int:
        """Width of the first state, which is the layer's output."""
        return self.states[0][1]

    def within(self) -> "Layout":
        """The same layer with its input gates as products of the step, named `x.<gate>`, with the input."""
        bias = "bias_ih" if self.input_bias else None
        gates = {
            f"x.{gate}": MatrixProduct(
                f"x.{gate}", "weight_ih", rows, self.input_size, rows.stop - rows.start, bias, Dense(), fixed=False
            )
            for gate, rows in self.input_gates.items()
        }
        return replace(self, input_gates={}, products=gates | self.products)


def layout(cell: Cell, input_size: int, hidden_size: int, bias: bool = True) -> Layout:
    """Work out a cell's layout.

    Raises:
        ValueError: a declaration is not what it has to be (see `checks.py`), a name is declared twice or reserved, a
            width does not fit a product's structure or the cell has `equal_sizes` and these are not, or a frozen
            parameter, or a gate that has an initial value, does not exist.
    """
    where = type(cell).__name__
    check_lists(cell)
    states = entries(cell)
    if not states:
        raise ValueError(f"{where}.state must name at least one state, the first of which is the output")
    if cell.equal_sizes and input_size != hidden_size:
        raise ValueError(
            f"{cell!r} needs as many inputs as units in each layer, got {input_size} inputs and {hidden_size} units"
        )
    check_names(cell, "state", (e.name for e in states))
    check_states(cell, states)
    widths = {"H": hidden_size, "I": input_size}
    widths["R"] = checked_width(cell, states[0].name, states[0].width, widths)

    input_gates = _rows(cell, cell.input_gates, widths)
    recurrent_gates = _rows(cell, cell.recurrent_gates, widths)
    vectors = [v if isinstance(v, Vector) else Vector(v) for v in (*cell.vectors, *(cell.biases if bias else ()))]
    extras = tuple(e if isinstance(e, Extra) else Extra(e) for e in cell.extras)
    check_draws(cell, cell.draws)
    draws = tuple((d, checked_width(cell, d.name, d.width, widths)) for d in cell.draws)
    for extra in extras:
        checked_width(cell, extra.name, extra.width, {})
    for what, names in (
        ("gate", (*input_gates, *recurrent_gates)),
        ("vector", [v.name for v in vectors]),
        ("product", [p.name for p in cell.products]),
        ("further input", [e.name for e in extras]),
        ("random choice", [d.name for d, _ in draws]),
    ):
        check_names(cell, what, names)
    inputs_of_step = [*input_gates, *(e.name for e in extras), *(d.name for d, _ in draws)]
    _distinct(where, "input", [*inputs_of_step, *_RESERVED])
    _distinct(where, "product", [*recurrent_gates, *(p.name for p in cell.products)])
    _distinct(where, "per-unit value", [*(v.name for v in vectors), *cell.constants(hidden_size)])
    _distinct(where, "state", [e.name for e in states])

    parameters: list[Parameter] = []
    products: dict[str, MatrixProduct] = {}
    fixed: dict[str, tuple[int, int]] = {}  # shapes of the matrices that are constants
    input_bias = bias and cell.input_bias and bool(input_gates)
    recurrent_bias = bias and cell.recurrent_bias and bool(recurrent_gates)
    total = _total(input_gates)
    if input_gates:
        parameters.append(Parameter("weight_ih", (total, input_size), input_gates))
    if recurrent_gates:
        structure = cell.recurrent_structure
        parameters += _matrix("hh", structure, _total(recurrent_gates), widths["R"], recurrent_gates)
        for name, rows in recurrent_gates.items():
            structure.shapes(rows.stop - rows.start, widths["R"])  # raises where a gate alone does not fit
            bias_name = "bias_hh" if recurrent_bias else None
            products[name] = MatrixProduct(
                name, "weight_hh", rows, widths["R"], rows.stop - rows.start, bias_name, structure, fixed=False
            )
    if input_bias:
        parameters.append(Parameter("bias_ih", (total,), input_gates))
    if recurrent_bias:
        parameters.append(Parameter("bias_hh", (_total(recurrent_gates),), recurrent_gates))
    for product in cell.products:
        inputs, outputs = (checked_width(cell, product.name, w, widths) for w in (product.input, product.output))
        rows = slice(0, outputs)
        has_bias = bias and product.bias and not product.fixed
        if product.fixed and not isinstance(product.structure, Dense):
            raise ValueError(f"{where}: the fixed product {product.name!r} must be dense")
        if product.fixed:
            fixed[product.name] = (outputs, inputs)
        else:
            parameters += _matrix(product.name, product.structure, outputs, inputs, {})
        if has_bias:
            parameters.append(Parameter(f"bias_{product.name}", (outputs,), {}))
        products[product.name] = MatrixProduct(
            product.name,
            product.name if product.fixed else f"weight_{product.name}",
            rows,
            inputs,
            outputs,
            f"bias_{product.name}" if has_bias else None,
            product.structure,
            product.fixed,
        )
    check_constants(cell, hidden_size, fixed)
    parameters += [Parameter(v.name, (checked_width(cell, v.name, v.width, widths),), {}) for v in vectors]
    _distinct(where, "parameter", [p.name for p in parameters])
    unknown = set(cell.frozen) - {p.name for p in parameters}
    if unknown and bias:  # without biases, those of the cell are missing
        raise ValueError(f"{where}: the frozen parameters {', '.join(map(repr, sorted(unknown)))} do not exist")
    blocks = {p.name: p.blocks for p in parameters}
    for name in cell.initial:  # which may name whole parameters that only other options have
        stored, _, gate = name.partition(".")
        if gate and gate not in blocks.get(stored, {gate: None}):
            raise ValueError(f"{where}.initial names {name!r}; {stored} has the gates {', '.join(blocks[stored])}")
    parameters = [replace(p, frozen=p.name in cell.frozen) for p in parameters]
    found = Layout(
        input_size,
        hidden_size,
        tuple((e, checked_width(cell, e.name, e.width, widths)) for e in states),
        input_gates,
        products,
        tuple(v.name for v in vectors),
        extras,
        tuple(parameters),
        input_bias,
        draws,
    )
    return found.within() if cell.input_within else found


def _rows(cell: Cell, gates: Iterable[str | Gate], widths: dict[str, int]) -> dict[str, slice]:
    rows: dict[str, slice] = {}
    start = 0
    for gate in gates:
        gate = gate if isinstance(gate, Gate) else Gate(gate)
        if gate.name in rows:
            raise ValueError(f"the gate {gate.name!r} is declared twice")
        stop = start + checked_width(cell, gate.name, gate.width, widths)
        rows[gate.name] = slice(start, stop)
        start = stop
    return rows


def _total(rows: dict[str, slice]) -> int:
    return max((r.stop for r in rows.values()), default=0)


def _matrix(name: str, structure: Structure, outputs: int, inputs: int, rows: dict[str, slice]) -> list[Parameter]:
    return [
        Parameter(f"weight_{name}{suffix}", shape, rows if suffix == "" else {})
        for suffix, shape in structure.shapes(outputs, inputs).items()
    ]


def _distinct(where: str, what: str, names: list[str]) -> None:
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(
            f"{where}: the {what} names {', '.join(map(repr, repeated))} are declared twice or reserved for others"
        )
