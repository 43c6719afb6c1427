"""Products: an einsum as elementwise products, sums, diagonals and products of two operands."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from tapeout.backends.common.contraction import Operand, Products, Sizes, einsum_text
from tapeout.backends.common.precision import is_product
from tapeout.backends.fx.graph import Lowering
from tapeout.ir import Einsum
from tapeout.ir.nodes.einsum import Axes


def einsum(low: Lowering, node: Einsum) -> fx.Node:
    factor, operands = node.without_numbers()
    if not operands:
        return low.filled(factor, node.shape)
    operand = low.narrow if is_product(node) else low.value if node in low.narrow_nodes else low.wide
    sizes = {axis: size for child, axes in operands for axis, size in zip(axes, child.shape, strict=True)}
    values = [(operand(child), axes) for child, axes in operands]
    product = _FxProducts(low).einsum(values, node.out_axes, sizes)
    return product if factor == 1.0 else low.call(operator.mul, product, low.number(factor))


class _FxProducts(Products[fx.Node]):
    def __init__(self, low: Lowering) -> None:
        super().__init__(low.typical_rows)
        self.low = low

    def permuted(self, value: fx.Node, order: Sequence[int]) -> fx.Node:
        return self.low.permute(value, order)

    def aligned(self, value: fx.Node, axes: Axes, out: Axes) -> fx.Node:
        value = self.low.permute(value, [axes.index(axis) for axis in out if axis in axes])
        leading = next((i for i, axis in enumerate(out) if axis in axes), len(out))
        for i, axis in enumerate(out):
            if i > leading and axis not in axes:
                value = self.low.call(torch.unsqueeze, value, -1 if i == len(out) - 1 else i - leading)
        return value

    def times(self, left: fx.Node, right: fx.Node) -> fx.Node:
        return self.low.call(operator.mul, left, right)

    def sum_over(self, value: fx.Node, places: list[int]) -> fx.Node:
        return self.low.call(torch.sum, value, places)

    def of_two(self, first: Operand[fx.Node], second: Operand[fx.Node], out: Axes, sizes: Sizes) -> fx.Node:
        return self.low.call(torch.einsum, einsum_text([first[1], second[1]], out), first[0], second[0])

    def diagonal(self, value: fx.Node, first: int, second: int) -> fx.Node:
        return self.low.call(torch.diagonal, value, 0, first, second)

    def on_diagonal(self, value: fx.Node) -> fx.Node:
        return self.low.call(torch.diag_embed, value, 0, -2, -1)
