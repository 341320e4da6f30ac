"""One direction of a layer on compiled kernels: backward."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from elman.cells.layout import MatrixProduct
from elman.cells.structure import Dense
from elman.compiler.plan import Plan
from elman.engine import memory, threads
from elman.engine.forward import Run, Scene
from elman.engine.kernel import Kind, Table, chunks
from elman.engine.matrices import stored_gradient, weight_parameter
from elman.engine.products import Packed, multiply


class Backward(Run):
    """A backward run from what forward kept.

    Args:
        kept: `Forward.kept()`.
        gradients: of the results of `Forward.run`, in their order; None for zero.
    """

    def __init__(
        self,
        scene: Scene,
        plan: Plan,
        inputs: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        super().__init__(scene, plan, inputs)
        self.kept = kept
        self.gradients = gradients
        self.kernel = plan.gradients
        self.found: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """The gradients of the inputs, by the names of `Scene.names`; those that are absent are zero."""
        table = Table(self.kernel, self.dtype, self.batch)
        sequences = {n: self.kept[f"sequence.{n}"] for n in self.widths}
        self.states(table, sequences)
        self.units(table)
        self.side_inputs(table)
        for n in self.kernel.buffers:
            if n.startswith("saved."):
                table.set(n, self.kept[n], Kind.STEP)
        wanted = self.scene.wanted
        carries = {}
        for k, (entry, width) in enumerate(self.layout.states):
            given = self.gradients[k] if k < wanted else None
            if given is not None:
                table.set(f"sequence.{entry.name}", self.in_order(given).contiguous(), Kind.STEP)
            final = self.gradients[wanted + k]
            if final is not None and entry.dtype != "int64":
                table.set(f"final.{entry.name}", final.contiguous(), Kind.BATCH)
            if f"carry.{entry.name}" in table:
                carries[entry.name] = torch.empty(2 * self.batch, width, dtype=self.dtype)
                table.set(f"carry.{entry.name}", carries[entry.name], Kind.CARRY)
                table.set(f"handed.{entry.name}", carries[entry.name], Kind.HANDED)
        stretches = chunks(self.packing, self._gradient_bytes())
        longest = max(entries.stop - entries.start for _, entries in stretches)
        gates, product_gradients = self._gradient_buffers(longest)
        side = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                side[n[2:]] = self.empty(self.total, width)
                table.set(n, side[n[2:]], Kind.STEP)
        totals = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith("total."):
                totals[n[6:]] = torch.zeros(threads.count(), width, dtype=self.dtype)
                table.set(n, totals[n[6:]], Kind.TOTALS)
        run = table.prepare(self.matrices(), self.patterns(), self.packing, self.reset, True, tuple(self.widths))
        after = _Products(self, gates, product_gradients, sequences, len(stretches) > 1)
        for steps, entries in reversed(stretches):
            self._place(table, gates, product_gradients, entries.start)
            table.steps(steps.start, steps.stop)
            run()
            after.take(entries)

        for n, v in totals.items():
            self.found[f"parameter.{n}"] = v.sum(0)
        for n, carry in carries.items():
            self.found[f"state.{n}"] = carry[self.batch :]
        for n, v in side.items():
            self.found["input" if n == "raw" else n] = self.in_order(v)
        after.give(self.found)
        return self.found

    def _gradient_bytes(self) -> int:
        """Bytes of the gradients of gates and products in one row, about."""
        units = sum(self.gate_widths.values()) + sum(n.width for n in self.plan.products.values())
        return int(units * self.dtype.itemsize)

    def _gradient_buffers(self, rows: int) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Memory for the gradients of the input gates, [rows, columns], and of each product.

        A product that shares its gradient with a gate has its place among the gates' columns; the others of the
        recurrent gates lie side by side.
        """
        gates = self.empty(rows, sum(self.gate_widths.values()))
        found: dict[int, Tensor] = {}
        for gate, columns in self.layout.input_gates.items():
            if gate in self.plan.shared:
                found[self.plan.shared[gate]] = gates[:, columns]
            elif f"d.x.{gate}" not in self.kernel.buffers:
                gates[:, columns] = 0
        differentiated = [i for i in self.plan.products if f"d.product.{i}" in self.kernel.buffers]
        rest = [i for i in dict.fromkeys((*self.plan.recurrent, *differentiated)) if i in differentiated]
        rest = [i for i in rest if i not in found]
        widths = [self.plan.products[i].width for i in rest]
        found |= zip(rest, self.empty(rows, sum(widths)).split(widths, 1), strict=True)
        return (gates if self.gate_widths else None), found

    def _place(self, table: Table, gates: Tensor | None, products: Mapping[int, Tensor], start: int) -> None:
        """Let the kernel write the gradients of a stretch that starts at an entry to the memory that is kept for it."""
        for gate, columns in self.layout.input_gates.items():
            if gates is not None:
                table.set(f"d.x.{gate}", gates, Kind.STEP, columns.start)
                table.shift(f"d.x.{gate}", start)
        for index, rows in products.items():
            table.set(f"d.product.{index}", rows, Kind.STEP)
            table.shift(f"d.product.{index}", start)


class _Products:
    """The large products after the loop: a stretch of time at a time, added up."""

    def __init__(
        self,
        run: Backward,
        gates: Tensor | None,
        products: Mapping[int, Tensor],
        sequences: Mapping[str, Tensor],
        several: bool,
    ) -> None:
        self._run = run
        self._gates = gates
        self._sequences = sequences
        self._sums: dict[str, Tensor] = {}
        self._groups = list(self._adjacent_groups(products))
        self._input = run.in_order(run.inputs["input"])
        self._through: Tensor | None = None
        if gates is not None and run.inputs["input"].requires_grad:
            weight = run.parameters["weight_ih"]
            self._right = Packed(weight) if several else weight
            self._through = memory.empty(run.total, weight.shape[1], dtype=weight.dtype)

    def take(self, entries: slice) -> None:
        """Multiply the gradients of a stretch."""
        count = entries.stop - entries.start
        for number, (operand, first, widths, biased, _) in enumerate(self._groups):
            d = first.as_strided((count, sum(widths)), first.stride(), first.storage_offset())
            self._add(f"weight {number}", f"bias {number}" if biased else None, d, self._operand(operand, entries))
        if self._gates is None:
            return
        d = self._gates[:count]
        self._add("weight_ih", "bias_ih" if self._run.layout.input_bias else None, d, self._input[entries])
        if self._through is not None:
            multiply(d, self._right, out=self._through[entries])

    def _add(self, name: str, bias: str | None, d: Tensor, right: Tensor) -> None:
        """Add dᵀ right, and for a bias the sums of d's columns."""
        rows, columns = d.shape[1], right.shape[1]
        fresh = name not in self._sums
        narrow = columns < 32 and rows > columns  # then it is better computed transposed
        if narrow and fresh:
            self._sums[name] = multiply(right.T, d).T
            if bias:
                self._sums[bias] = d.sum(0)
            return
        if narrow:
            multiply(right.T, d, out=self._sums[name].T, add=True)
            if bias:
                self._sums[bias] += d.sum(0)
            return
        if fresh:
            self._sums[name] = memory.empty(rows, columns, dtype=d.dtype)
            if bias:
                self._sums[bias] = d.new_empty(rows)
        sums = self._sums[bias] if bias else None
        multiply(d.T, right, out=self._sums[name], add=not fresh, sums=sums)

    def give(self, found: dict[str, Tensor]) -> None:
        """Put the gradients of parameters and input, by name, beside those that are there."""
        for name in ("weight_ih", "bias_ih"):
            if name in self._sums:
                found[f"parameter.{name}"] = self._sums[name].contiguous()
        if self._through is not None:
            through = self._run.in_order(self._through)
            found["input"] = found["input"] + through if "input" in found else through
        for number, (_, _, widths, _, names) in enumerate(self._groups):
            self._give_group(
                found, names, widths, self._sums[f"weight {number}"].contiguous(), self._sums.get(f"bias {number}")
            )

    def _give_group(
        self, found: dict[str, Tensor], names: list[str], widths: list[int], weight: Tensor, bias: Tensor | None
    ) -> None:
        layout = self._run.layout
        declared = [layout.products.get(n) for n in names]
        if _stored_together(declared):
            first, last = declared[0], declared[-1]
            assert first is not None
            assert last is not None
            rows = slice(first.rows.start, last.rows.stop)
            self._give(found, first.weight, rows, weight)
            self._give(found, first.bias, rows, bias)
            return
        parts = [None] * len(names) if bias is None else bias.split(widths)
        for name, product, w, b in zip(names, declared, weight.split(widths), parts, strict=True):
            if product is None or not product.fixed:
                stored, rows = weight_parameter(layout, name)
                self._give(found, stored, rows, stored_gradient(layout, name, w))
                self._give(found, product.bias if product else None, rows, b)

    def _give(self, found: dict[str, Tensor], parameter: str | None, rows: slice, gradient: Tensor | None) -> None:
        """Add to the gradient of some rows of a parameter."""
        if parameter is None or gradient is None:
            return
        name, whole = f"parameter.{parameter}", self._run.parameters[parameter]
        if name not in found and gradient.shape == whole.shape:
            found[name] = gradient
            return
        if name not in found:
            found[name] = torch.zeros_like(whole)
        found[name][rows] += gradient

    def _adjacent_groups(
        self, gradients: Mapping[int, Tensor]
    ) -> Iterator[tuple[int, Tensor, list[int], bool, list[str]]]:
        """Products of one operand whose gradients lie side by side, so that one matrix product serves them.

        Each group: the operand's node, the first gradient, widths, whether any has a bias, names.
        """
        plan = self._run.plan
        for operand in dict.fromkeys(n.args[0] for n in plan.products.values()):
            members = [i for i, n in plan.products.items() if n.args[0] == operand and i in gradients]
            runs: list[list[int]] = []
            for index in sorted(members, key=lambda i: (gradients[i].data_ptr(), i)):
                if runs:
                    last = gradients[runs[-1][-1]]
                    follows = last.data_ptr() + last.shape[1] * last.element_size() == gradients[index].data_ptr()
                    if follows and last.stride() == gradients[index].stride():
                        runs[-1].append(index)
                        continue
                runs.append([index])
            for run in runs:
                names = [plan.products[i].name for i in run]
                widths = [plan.products[i].width for i in run]
                yield operand, gradients[run[0]], widths, any(n in plan.biased for n in names), names

    def _operand(self, index: int, entries: slice) -> Tensor:
        """What a product read at some entries, [rows, width]."""
        run = self._run
        node = run.plan.graph.nodes[index]
        if node.op != "leaf":
            entry = next((e for e, i in run.plan.graph.outputs.items() if i == index), None)
            rows = run.kept[f"saved.{index}"] if entry is None else self._sequences[entry][run.batch :]
            return rows[entries]
        kind, _, rest = node.name.partition(".")
        if kind == "state":
            whole = self._sequences[rest]
            if run.packing.is_dense and run.reset is None:
                return whole[entries]
            rows = whole.index_select(0, run.packing.previous_steps[entries])
            if run.reset is not None:
                rows[run.reset[entries].bool()] = {e.name: e.initial for e, _ in run.layout.states}[rest]
            return rows
        return run.in_order(run.inputs["input" if kind == "raw" else node.name])[entries]


def _stored_together(products: list[MatrixProduct | None]) -> bool:
    """Whether products are dense and lie one after the other in one parameter."""
    pairs = pairwise(products)
    return all(p is not None and not p.fixed and isinstance(p.structure, Dense) for p in products) and all(
        a and b and a.weight == b.weight and a.bias == b.bias and a.rows.stop == b.rows.start for a, b in pairs
    )
