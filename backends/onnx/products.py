"""Products: an einsum as elementwise products, sums, diagonals and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapeout.backends.common.contraction import Operand, Products, Sizes
from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.ir import Einsum
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.sizes import Size, multiply


def einsum(low: Lowering, node: Einsum) -> Value:
    kind = low.dtype_of(node)
    factor, operands = node.without_numbers()
    if not operands:
        return low.number(factor, kind, node.shape)
    sizes = {axis: size for child, axes in operands for axis, size in zip(axes, child.shape, strict=True)}
    values = [(low.value(child, kind), axes) for child, axes in operands]
    product = _OnnxProducts(low).einsum(values, node.out_axes, sizes)
    return product if factor == 1.0 else low.elementwise("Mul", product, low.number(factor, kind))


class _OnnxProducts(Products[Value]):
    def __init__(self, low: Lowering) -> None:
        super().__init__(low.typical_rows)
        self.low = low

    def permuted(self, value: Value, order: Sequence[int]) -> Value:
        return self.low.permute(value, order)

    def aligned(self, value: Value, axes: Axes, out: Axes) -> Value:
        value = self.low.permute(value, [axes.index(axis) for axis in out if axis in axes])
        first = next((i for i, axis in enumerate(out) if axis in axes), len(out))
        sizes = iter(self.low.shape(value))
        return self.low.reshape(value, tuple(next(sizes) if axis in axes else 1 for axis in out[first:]))

    def times(self, left: Value, right: Value) -> Value:
        return self.low.elementwise("Mul", left, right)

    def sum_over(self, value: Value, places: list[int]) -> Value:
        return self.low.reduce("ReduceSum", value, places)

    def of_two(self, first: Operand[Value], second: Operand[Value], out: Axes, sizes: Sizes) -> Value:
        """One batched matrix product, or products of entries that are summed."""
        one = self.summed(first, {*out, *second[1]})
        two = self.summed(second, {*out, *first[1]})
        both = [axis for axis in out if axis in one[1] and axis in two[1]]
        summed = [axis for axis in one[1] if axis in two[1] and axis not in out]
        own = [[axis for axis in out if axis in axes and axis not in both] for _, axes in (one, two)]
        if not summed or not any(own):
            aligned = tuple([*out, *summed])
            return self.summed((self.elementwise([one, two], aligned), aligned), set(out))[0]
        if own[0] and own[1] and out.index(own[1][0]) < out.index(own[0][0]):
            (one, two), own = (two, one), own[::-1]
        rows, columns = own
        left = _grouped(self.low, one, [both, rows, summed], sizes)
        right = _grouped(self.low, two, [both, summed, columns], sizes)
        batch = tuple(sizes[axis] for axis in both)
        whole = (*batch, _size(rows, sizes), _size(columns, sizes))
        product = self.low.emit("MatMul", [left, right], whole)
        order = [*both, *rows, *columns]
        product = self.low.reshape(product, tuple(sizes[axis] for axis in order))
        return self.low.permute(product, [order.index(axis) for axis in out])

    def diagonal(self, value: Value, first: int, second: int) -> Value:
        others = [i for i in range(len(self.low.shape(value))) if i not in (first, second)]
        value = self.low.permute(value, [*others, first, second])
        shape = self.low.shape(value)
        size = _concrete(shape[-1])
        flat = self.low.reshape(value, (*shape[:-2], size * size))
        places = self.low.integers([i * (size + 1) for i in range(size)])
        return self.low.emit("Gather", [flat, places], (*shape[:-2], size), axis=len(others))

    def on_diagonal(self, value: Value) -> Value:
        shape = self.low.shape(value)
        size = _concrete(shape[-1])
        eye = self.low.booleans(torch.eye(size, dtype=torch.bool), f"diagonal {size}")
        column = self.low.reshape(value, (*shape, 1))
        zero = self.low.number(0.0, self.low.kind(value))
        return self.low.emit("Where", [eye, column, zero], (*shape, size), self.low.kind(value))


def _grouped(low: Lowering, operand: Operand[Value], groups: list[list[int]], sizes: Sizes) -> Value:
    """The operand as a batch of matrices: the axes of the first group as they are, of each other one as one axis."""
    value, axes = operand
    value = low.permute(value, [axes.index(axis) for group in groups for axis in group])
    batch, *matrix = groups
    return low.reshape(value, (*(sizes[axis] for axis in batch), *(_size(group, sizes) for group in matrix)))


def _size(axes: Sequence[int], sizes: Sizes) -> Size:
    return multiply(sizes[axis] for axis in axes)


def _concrete(size: Size) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(f"a diagonal of symbolic size {size}", hint="bind all sizes but the batch")
    return size
