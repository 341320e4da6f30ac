"""One direction of a layer on compiled kernels: backward."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from elman.cells.layout import MatrixProduct
from elman.cells.structure import Dense
from elman.compiler.plan import Plan
from elman.engine import threads
from elman.engine.forward import Run, Scene
from elman.engine.kernel import Kind, Table, padded, whole_rows
from elman.engine.matrices import stored_gradient, weight_parameter
from elman.engine.products import multiply


class Backward(Run):
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
                table.set(f"sequence.{entry.name}", whole_rows(self.in_order(given), width), Kind.STEP)
            final = self.gradients[wanted + k]
            if final is not None and entry.dtype != "int64":
                table.set(f"final.{entry.name}", whole_rows(final, width), Kind.BATCH)
            if f"carry.{entry.name}" in table:
                carries[entry.name] = torch.empty(2 * self.batch, padded(width, self.dtype), dtype=self.dtype)
                table.set(f"carry.{entry.name}", carries[entry.name], Kind.CARRY)
                table.set(f"handed.{entry.name}", carries[entry.name], Kind.HANDED)
        x_gradients, product_gradients = self._gradient_buffers(table)
        side = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith(("d.raw", "d.extra.", "d.below.")):
                side[n[2:]] = self.empty(self.total, width)
                table.set(n, side[n[2:]], Kind.STEP)
        totals = {}
        for n, width in self.kernel.buffers.items():
            if n.startswith("total."):
                totals[n[6:]] = torch.zeros(threads.count(), padded(width, self.dtype), dtype=self.dtype)
                table.set(n, totals[n[6:]], Kind.TOTALS)
        entries = list(self.widths)
        table.prepare(self.matrices(), self.patterns(), self.packing, self.reset, True, entries)()

        for n, v in totals.items():
            self.found[f"parameter.{n}"] = v.sum(0)[: self.parameters[n].shape[0]]
        for n, carry in carries.items():
            self.found[f"state.{n}"] = carry[self.batch :, : self.widths[n]]
        for n, v in side.items():
            width = self.layout.input_size if n == "raw" else self.inputs[n].shape[1]
            self.found["input" if n == "raw" else n] = self.in_order(v[:, :width])
        self._recurrent_products(product_gradients, sequences)
        self._input_products(x_gradients)
        return self.found

    def _gradient_buffers(self, table: Table) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Memory for the gradients of the input gates, [N, padded columns], and of each product.

        A product that shares its gradient with a gate has its place among the gates' columns; the others of the
        recurrent gates lie side by side.
        """
        gates = self.empty(self.total, sum(padded(w, self.dtype) for w in self.gate_widths.values()))
        found: dict[int, Tensor] = {}
        for gate, start in self.columns().items():
            span = padded(self.gate_widths[gate], self.dtype)
            index = self.plan.shared.get(gate)
            if index is not None:
                found[index] = gates[:, start : start + span]
            elif f"d.x.{gate}" not in table:
                gates[:, start : start + span] = 0
            table.set(f"d.x.{gate}" if index is None else f"d.product.{index}", gates, Kind.STEP, start)
        rest = [i for i in (*self.plan.recurrent, *self.plan.products) if f"d.product.{i}" in table and i not in found]
        rest = list(dict.fromkeys(rest))
        wide = self.empty(self.total, sum(padded(self.plan.products[i].width, self.dtype) for i in rest))
        start = 0
        for index in rest:
            span = padded(self.plan.products[index].width, self.dtype)
            table.set(f"d.product.{index}", wide, Kind.STEP, start)
            found[index] = wide[:, start : start + span]
            start += span
        return (gates if self.gate_widths else None), found

    def _compact(self, wide: Tensor, widths: list[int]) -> Tensor:
        """Rows of padded columns without the padding."""
        if all(w == padded(w, self.dtype) for w in widths):
            return wide
        parts = wide.split([padded(w, self.dtype) for w in widths], 1)
        return torch.cat([p[:, :w] for p, w in zip(parts, widths, strict=True)], 1)

    def _input_products(self, wide: Tensor | None) -> None:
        if wide is None:
            return
        d = self._compact(wide, list(self.gate_widths.values()))
        x = self.in_order(self.inputs["input"].detach())
        self.found["parameter.weight_ih"] = multiply(d.T, x)
        if self.layout.input_bias:
            self.found["parameter.bias_ih"] = d.sum(0)
        if self.inputs["input"].requires_grad:
            through = self.in_order(multiply(d, self.parameters["weight_ih"]))
            self.found["input"] = self.found["input"] + through if "input" in self.found else through

    def _recurrent_products(self, gradients: Mapping[int, Tensor], sequences: Mapping[str, Tensor]) -> None:
        nodes = self.plan.products
        for operand in dict.fromkeys(n.args[0] for n in nodes.values()):
            group = [i for i, n in nodes.items() if n.args[0] == operand and i in gradients]
            group = [i for i in self.plan.recurrent if i in group] + [i for i in group if i not in self.plan.recurrent]
            for run in self._adjacent(group, gradients):
                first = gradients[run[0]]
                widths = [nodes[i].width for i in run]
                span = sum(padded(w, self.dtype) for w in widths)
                d = self._compact(first.as_strided((self.total, span), first.stride(), first.storage_offset()), widths)
                weight = multiply(d.T, self._operand(operand, sequences))
                bias = d.sum(0) if any(nodes[i].name in self.plan.biased for i in run) else None
                names = [nodes[i].name for i in run]
                declared = [self.layout.products.get(n) for n in names]
                if _stored_together(declared):
                    first_product, last_product = declared[0], declared[-1]
                    assert first_product is not None
                    assert last_product is not None
                    rows = slice(first_product.rows.start, last_product.rows.stop)
                    self._give(first_product.weight, rows, weight)
                    self._give(first_product.bias, rows, bias)
                    continue
                parts = [None] * len(run) if bias is None else bias.split(widths)
                for name, product, w, b in zip(names, declared, weight.split(widths), parts, strict=True):
                    if product is None or not product.fixed:
                        stored, rows = weight_parameter(self.layout, name)
                        self._give(stored, rows, stored_gradient(self.layout, name, w))
                        self._give(product.bias if product else None, rows, b)

    def _adjacent(self, group: list[int], gradients: Mapping[int, Tensor]) -> list[list[int]]:
        """Products of one operand whose gradients lie side by side, so that one matrix product serves them."""
        runs: list[list[int]] = []
        for index in group:
            if runs:
                last = gradients[runs[-1][-1]]
                follows = last.storage_offset() + last.shape[1] == gradients[index].storage_offset()
                if follows and last.untyped_storage().data_ptr() == gradients[index].untyped_storage().data_ptr():
                    runs[-1].append(index)
                    continue
            runs.append([index])
        return runs

    def _operand(self, index: int, sequences: Mapping[str, Tensor]) -> Tensor:
        """What a product read at each step, [N, width]."""
        node = self.plan.graph.nodes[index]
        if node.op != "leaf":
            entry = next((e for e, i in self.plan.graph.outputs.items() if i == index), None)
            rows = self.kept[f"saved.{index}"] if entry is None else sequences[entry][self.batch :]
            return rows[:, : node.width]
        kind, _, rest = node.name.partition(".")
        if kind == "state":
            whole = sequences[rest][:, : node.width]
            if self.packing.is_dense and self.reset is None:
                return whole[: self.total]
            rows = whole.index_select(0, self.packing.previous_steps)
            if self.reset is not None:
                rows[self.reset.bool()] = {e.name: e.initial for e, _ in self.layout.states}[rest]
            return rows
        return self.in_order(self.inputs["input" if kind == "raw" else node.name].detach())

    def _give(self, parameter: str | None, rows: slice, gradient: Tensor | None) -> None:
        """Add to the gradient of some rows of a parameter."""
        if parameter is None or gradient is None:
            return
        name = f"parameter.{parameter}"
        if name not in self.found and gradient.shape == self.parameters[parameter].shape:
            self.found[name] = gradient
            return
        if name not in self.found:
            self.found[name] = torch.zeros_like(self.parameters[parameter])
        self.found[name][rows] += gradient


def _stored_together(products: list[MatrixProduct | None]) -> bool:
    """Whether products are dense and lie one after the other in one parameter."""
    pairs = pairwise(products)
    return all(p is not None and not p.fixed and isinstance(p.structure, Dense) for p in products) and all(
        a and b and a.weight == b.weight and a.bias == b.bias and a.rows.stop == b.rows.start for a, b in pairs
    )
