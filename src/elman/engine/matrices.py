"""The matrices of a cell's products, dense, as compiled kernels multiply by them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from elman.cells.layout import Layout
from elman.cells.structure import Antisymmetric, BlockDiagonal, BlockTriangular
from elman.engine.reference import antisymmetric, block_triangle


def dense(layout: Layout, name: str, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    """The matrix of a product, [outputs, inputs] with zeros where its structure has no weights.

    A name that no product has is a parameter's: the inner factor of a low-rank product.
    """
    product = layout.products.get(name)
    if product is None:
        return parameters[name]
    if product.fixed:
        return constants[product.weight]
    stored = parameters[product.weight][product.rows]
    match product.structure:
        case BlockTriangular(blocks):
            return stored * block_triangle(product.output, product.input, blocks, stored)
        case BlockDiagonal(blocks):
            result = stored.new_zeros(blocks, product.output // blocks, blocks, product.input // blocks)
            diagonal = torch.arange(blocks, device=stored.device)
            result[diagonal, :, diagonal] = stored.reshape(blocks, product.output // blocks, -1)
            return result.reshape(product.output, product.input)
        case Antisymmetric(gamma):
            return antisymmetric(stored, gamma)
    return stored


def stored(layout: Layout, name: str) -> tuple[str, slice] | None:
    """The parameter that holds a product's matrix as it is, and its rows there; None where `dense` has to make it."""
    product = layout.products.get(name)
    return weight_parameter(layout, name) if product is None or product.stored else None


def stored_gradient(layout: Layout, name: str, gradient: Tensor) -> Tensor:
    """The gradient of what is stored of a product's matrix, from that of the dense matrix, [outputs, inputs]."""
    product = layout.products.get(name)
    if product is None:
        return gradient
    match product.structure:
        case BlockTriangular(blocks):
            return gradient * block_triangle(product.output, product.input, blocks, gradient)
        case BlockDiagonal(blocks):
            diagonal = torch.arange(blocks, device=gradient.device)
            cube = gradient.reshape(blocks, product.output // blocks, blocks, product.input // blocks)
            return cube[diagonal, :, diagonal].reshape(product.output, -1)
        case Antisymmetric():
            return gradient - gradient.T
    return gradient


def pattern(layout: Layout, name: str) -> Tensor | None:
    """True where a product's matrix may have weights, or None where that is everywhere."""
    product = layout.products.get(name)
    if product is None or not product.sparse:
        return None
    ones = torch.ones(next(p.shape for p in layout.parameters if p.name == product.weight), device="cpu")
    return dense(layout, name, {product.weight: ones}, {}) != 0


def weight_parameter(layout: Layout, name: str) -> tuple[str, slice]:
    """The parameter that stores a product's matrix, and its rows there; a low-rank product's is its outer factor."""
    product = layout.products.get(name)
    return (name, slice(None)) if product is None else (product.weight, product.rows)
