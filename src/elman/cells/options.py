"""Options that act inside the recurrence, each a cell around a cell: zoneout, recurrent dropout, layer normalisation,
the Mogrifier.

Randomness stays in what a wrapper `draws`; its step is an ordinary one, so every engine sees the same definition. In
evaluation `Cell.evaluated` gives what takes the place of a random option.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elman.cells.contract import Cell, Draw, Gate, Product, Vector, Width, entries
from elman.cells.initial import Constant, Initial
from elman.cells.math import layer_norm, sigmoid, where
from elman.cells.named import Named
from elman.cells.structure import Dense, LowRank
from elman.cells.wrapped import Wrapped


@dataclass(frozen=True)
class Zoneout(Wrapped):
    """A cell whose units keep their previous value now and then, instead of taking the new one.

    s_t = d ∘ s_{t-1} + (1 - d) ∘ s̃_t,   d ~ Bernoulli(z) for each unit, step and state entry apart,

    where s̃_t is the cell's new state, made from the previous one. In evaluation d is its mean, z.

    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017.

    `chances` gives z for each state entry that takes part.
    """

    chances: tuple[tuple[str, float], ...]
    mean: bool = False

    @property
    def draws(self) -> tuple[Draw, ...]:
        if self.mean:
            return self.cell.draws
        widths = {entry.name: entry.width for entry in entries(self.cell)}
        return (*self.cell.draws, *(Draw(f"zoneout_{name}", chance, widths[name]) for name, chance in self.chances))

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        own = {f"zoneout_{name}": np.array([chance]) for name, chance in self.chances} if self.mean else {}
        return {**self.cell.constants(hidden_size), **own}

    def evaluated(self) -> Cell:
        return replace(self, cell=self.cell.evaluated(), mean=True)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        new = self.cell.step(x, u, s, p)._asdict()
        for name, _ in self.chances:
            kept = getattr(s, name)
            if self.mean:
                z = getattr(p, f"zoneout_{name}")
                new[name] = z * kept + (1 - z) * new[name]
            else:
                new[name] = where(getattr(x, f"zoneout_{name}"), kept, new[name])
        return self.State(**new)


@dataclass(frozen=True)
class RecurrentDropout(Wrapped):
    """A cell whose recurrent gates read a state of which units are dropped: U v becomes U (m ∘ v).

    m = b / (1 - p),   b ~ Bernoulli(1 - p) for each unit of a row, the same for all gates,

    the same at all steps where `locked`, else afresh at each. The state itself is carried whole: dropped is what the
    products with `weight_hh` read, so memories are not lost step by step.

    Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016
    (locked, tied masks); that a memory must not be dropped itself: Semeniuta, Severyn & Barth, "Recurrent dropout
    without memory loss", COLING 2016.
    """

    chance: float
    locked: bool = True

    @property
    def draws(self) -> tuple[Draw, ...]:
        return (*self.cell.draws, Draw("recurrent_dropout", self.chance, "R", self.locked))

    def constants(self, hidden_size: int) -> Mapping[str, Any]:
        return {**self.cell.constants(hidden_size), "recurrent_scale": np.array([1 / (1 - self.chance)])}

    def evaluated(self) -> Cell:
        return self.cell.evaluated()

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        def reading(name: str, product: Any) -> Any:
            return lambda v: product(where(x.recurrent_dropout, 0.0, v * p.recurrent_scale))

        return self.cell.step(x, _Products(u, self.cell, reading), s, p)


@dataclass(frozen=True)
class LayerNorm(Wrapped):
    """A cell whose gates are normalised over their units, the input's part and the recurrent part apart.

    x.g = γ_g ∘ LN(W_g x_t) + b_g,    u.g(v) = γ'_g ∘ LN(U_g v) + b'_g,    LN(a) = (a - μ) / √(σ² + ε)

    with the mean μ and the variance σ² over the units of that gate, and biases where the cell has them. Ba, Kiros &
    Hinton, "Layer normalization", 2016, equations 20-21, which normalise all gates of a product together;
    `layer_norm_lstm` and `layer_norm_gru` are the paper's own. A gate of one unit is left as it is.

    Parameters: `gain_ih_<gate>`, `gain_hh_<gate>` [width], which start at 1, and `bias_ih_<gate>`, `bias_hh_<gate>`
    [width] in place of `bias_ih` and `bias_hh`. `bias` says whether the layer has biases.
    """

    bias: bool = True

    @property
    def input_bias(self) -> bool:
        return False

    @property
    def recurrent_bias(self) -> bool:
        return False

    def _sides(self) -> tuple[tuple[str, dict[str, Width], bool], ...]:
        """ "ih" and "hh": the widths of the gates, and whether they have biases."""
        inner = self.cell
        return (
            ("ih", _widths(inner.input_gates), self.bias and inner.input_bias),
            ("hh", _widths(inner.recurrent_gates), self.bias and inner.recurrent_bias),
        )

    @property
    def vectors(self) -> tuple[str | Vector, ...]:
        own: list[Vector] = []
        for side, gates, biased in self._sides():
            own += [Vector(f"gain_{side}_{gate}", width) for gate, width in gates.items() if width != 1]
            own += [Vector(f"bias_{side}_{gate}", width) for gate, width in gates.items() if biased]
        return (*self.cell.vectors, *own)

    @property
    def initial(self) -> Mapping[str, Initial]:
        found = dict(self.cell.initial)
        for side, gates, biased in self._sides():
            whole = found.pop(f"bias_{side}", None)
            for gate in gates:
                given = found.pop(f"bias_{side}.{gate}", whole)
                found[f"gain_{side}_{gate}"] = Constant(1.0)
                if biased and given is not None:
                    found[f"bias_{side}_{gate}"] = given
        return found

    @property
    def keeping(self) -> Mapping[str, int]:
        return {name.replace(".", "_"): sign for name, sign in self.cell.keeping.items()}

    @property
    def frozen(self) -> tuple[str, ...]:
        inner = self.cell.frozen
        biases = {f"bias_{side}": [f"bias_{side}_{gate}" for gate in gates] for side, gates, _ in self._sides()}
        return tuple(own for name in inner for own in biases.get(name, [name]))

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        def normalised(side: str, gate: str, v: Any) -> Any:
            gain, bias = (getattr(p, f"{kind}_{side}_{gate}", None) for kind in ("gain", "bias"))
            if gain is not None:
                (v,) = layer_norm(v)
                v = v * gain
            return v if bias is None else v + bias

        def reading(name: str, product: Any) -> Any:
            return lambda v: normalised("hh", name, product(v))

        gates = {gate: normalised("ih", gate, getattr(x, gate)) for gate in _widths(self.cell.input_gates)}
        return self.cell.step(Named(**{**vars(x), **gates}), _Products(u, self.cell, reading), s, p)


@dataclass(frozen=True)
class Mogrified(Wrapped):
    """A cell whose input and previous output gate each other in turn before it reads them.

    x^i = 2 σ(Q^i h^{i-1}) ∘ x^{i-2}   for odd i,    h^i = 2 σ(R^i x^{i-1}) ∘ h^{i-2}   for even i, up to `rounds`,

    from x^{-1} = x_t and h^0 = h_{t-1}; the cell then reads the last x and the last h in their places. Melis, Kočiský &
    Blunsom, "Mogrifier LSTM", ICLR 2020, who take five rounds. With a `rank`, Q^i and R^i are products of two matrices
    that meet in so many units, as there.

    Parameters: `weight_mogrify_<i>` [I, R] for odd and [R, I] for even i, R the width of h; with a rank k [I or R, k],
    and `weight_mogrify_<i>_in` [k, R or I].
    """

    rounds: int
    rank: int = 0

    @property
    def input_within(self) -> bool:
        return True

    @property
    def products(self) -> tuple[Product, ...]:
        structure = LowRank(self.rank) if self.rank else Dense()
        sides: tuple[tuple[Width, Width], ...] = (("I", "R"), ("R", "I"))  # of even rounds, and of odd ones
        own = (
            Product(f"mogrify_{i}", *sides[i % 2], bias=False, structure=structure) for i in range(1, self.rounds + 1)
        )
        return (*self.cell.products, *own)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        output = entries(self.cell)[0].name
        raw, h = x.raw, getattr(s, output)
        for i in range(1, self.rounds + 1):
            if i % 2:
                raw = 2 * sigmoid(u[f"mogrify_{i}"](h)) * raw
            else:
                h = 2 * sigmoid(u[f"mogrify_{i}"](raw)) * h
        gates = {gate: u[f"x.{gate}"](raw) for gate in _widths(self.cell.input_gates)}
        inputs = Named(**{**vars(x), **gates, "raw": raw})
        return self.cell.step(inputs, u, s._replace(**{output: h}), p)


def _widths(gates: tuple[str | Gate, ...]) -> dict[str, Width]:
    return {gate.name: gate.width for gate in (g if isinstance(g, Gate) else Gate(g) for g in gates)}


class _Products:
    """The `u` of a step whose recurrent gates' products are `around(name, product)`; others are as they were."""

    def __init__(self, u: Any, cell: Cell, around: Callable[[str, Any], Any]) -> None:
        self._u = u
        self._gates = _widths(cell.recurrent_gates)
        self._around = around

    def __getitem__(self, name: str) -> Any:
        product = self._u[name]
        return self._around(name, product) if name in self._gates else product

    def __getattr__(self, name: str) -> Any:
        return self[name]
