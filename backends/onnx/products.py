"""Products: an einsum as elementwise products, sums, diagonals and matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tapeout.backends.contraction import in_pairs
from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.ir import Einsum, Scalar
from tapeout.ir.einsum import Axes
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.sizes import Shape, Size, multiply

Operand = tuple[Value, Axes]
Sizes = Mapping[int, Size]


def einsum(low: Lowering, node: Einsum, _: object) -> Value:
    kind = low.dtype_of(node)
    factor = 1.0
    operands: list[Operand] = []
    sizes: dict[int, Size] = {}
    for child, axes in node.args:
        if isinstance(child, Scalar) and not axes:
            factor *= child.value
        else:
            operands.append((low.value(child, kind), axes))
            sizes.update(zip(axes, child.shape, strict=True))
    if not operands:
        return low.number(factor, kind, node.shape)
    product = _product(low, operands, node.out_axes, sizes)
    return product if factor == 1.0 else low.elementwise("Mul", product, low.number(factor, kind))


def _product(low: Lowering, operands: list[Operand], out: Axes, sizes: Sizes) -> Value:
    distinct = all(len(set(axes)) == len(axes) for axes in (*(axes for _, axes in operands), out))
    reduced = {axis for _, axes in operands for axis in axes} - set(out)
    if not distinct:
        return _with_diagonals(low, operands, out, sizes)
    if not reduced:
        return _elementwise(low, operands, out)
    if len(operands) == 1:
        value, axes = _summed(low, operands[0], set(out))
        return low.permute(value, [axes.index(axis) for axis in out])
    if len(operands) == 2:
        return _of_two(low, operands[0], operands[1], out, sizes)
    left = list(operands)
    for places, kept in in_pairs([axes for _, axes in operands], out, sizes, low.typical_rows):
        chosen = [left.pop(i) for i in reversed(places)][::-1]
        left.append((_product(low, chosen, kept, sizes), kept))
    return left[0][0]


def _summed(low: Lowering, operand: Operand, kept: set[int]) -> Operand:
    """The operand summed over the axes that are not kept."""
    value, axes = operand
    gone = [i for i, axis in enumerate(axes) if axis not in kept]
    if not gone:
        return operand
    return low.reduce("ReduceSum", value, gone), tuple(axis for axis in axes if axis in kept)


def _elementwise(low: Lowering, operands: Sequence[Operand], out: Axes) -> Value:
    product, *factors = (_aligned(low, value, axes, out) for value, axes in operands)
    for factor in factors:
        product = low.elementwise("Mul", product, factor)
    return product


def _aligned(low: Lowering, value: Value, axes: Axes, out: Axes) -> Value:
    """The operand with its axes in the order of the result and size 1 where it lacks one (leading ones left out)."""
    value = low.permute(value, [axes.index(axis) for axis in out if axis in axes])
    first = next((i for i, axis in enumerate(out) if axis in axes), len(out))
    sizes = iter(low.shape(value))
    return low.reshape(value, tuple(next(sizes) if axis in axes else 1 for axis in out[first:]))


def _of_two(low: Lowering, first: Operand, second: Operand, out: Axes, sizes: Sizes) -> Value:
    """A product of two operands that is summed: one batched matrix product, or products of entries summed."""
    one = _summed(low, first, {*out, *second[1]})
    two = _summed(low, second, {*out, *first[1]})
    both = [axis for axis in out if axis in one[1] and axis in two[1]]
    summed = [axis for axis in one[1] if axis in two[1] and axis not in out]
    own = [[axis for axis in out if axis in axes and axis not in both] for _, axes in (one, two)]
    if not summed or not any(own):
        aligned = tuple([*out, *summed])
        return _summed(low, (_elementwise(low, [one, two], aligned), aligned), set(out))[0]
    if own[0] and own[1] and out.index(own[1][0]) < out.index(own[0][0]):
        (one, two), own = (two, one), own[::-1]
    rows, columns = own
    left = _grouped(low, one, [both, rows, summed], sizes)
    right = _grouped(low, two, [both, summed, columns], sizes)
    batch = tuple(sizes[axis] for axis in both)
    whole = (*batch, _size(rows, sizes), _size(columns, sizes))
    product = low.emit("MatMul", [left, right], whole)
    order = [*both, *rows, *columns]
    return low.permute(low.reshape(product, tuple(sizes[axis] for axis in order)), [order.index(axis) for axis in out])


def _grouped(low: Lowering, operand: Operand, groups: list[list[int]], sizes: Sizes) -> Value:
    """The operand as a batch of matrices: the axes of the first group as they are, of each other one as one axis."""
    value, axes = operand
    value = low.permute(value, [axes.index(axis) for group in groups for axis in group])
    batch, *matrix = groups
    return low.reshape(value, (*(sizes[axis] for axis in batch), *(_size(group, sizes) for group in matrix)))


def _size(axes: Sequence[int], sizes: Sizes) -> Size:
    return multiply(sizes[axis] for axis in axes)


def _with_diagonals(low: Lowering, operands: list[Operand], out: Axes, sizes: Sizes) -> Value:
    plain = [_diagonals(low, value, axes) for value, axes in operands]
    unique = tuple(dict.fromkeys(out))
    value = _product(low, plain, unique, sizes)
    have = list(unique)
    for axis in unique:
        for _ in range(out.count(axis) - 1):
            last = [i for i, each in enumerate(have) if i != have.index(axis)] + [have.index(axis)]
            value = _on_diagonal(low, low.permute(value, last))
            have = [*(have[i] for i in last), axis]
    positions: dict[int, list[int]] = {}
    for i, axis in enumerate(have):
        positions.setdefault(axis, []).append(i)
    return low.permute(value, [positions[axis].pop(0) for axis in out])


def _diagonals(low: Lowering, value: Value, axes: Axes) -> Operand:
    """The entries at equal places of axes that occur twice."""
    while len(set(axes)) < len(axes):
        twice = next(axis for axis in axes if axes.count(axis) > 1)
        first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
        others = [i for i in range(len(axes)) if i not in (first, second)]
        value = low.permute(value, [*others, first, second])
        shape = low.shape(value)
        size = _concrete(shape[-1])
        flat = low.reshape(value, (*shape[:-2], size * size))
        places = low.integers([i * (size + 1) for i in range(size)])
        value = low.emit("Gather", [flat, places], (*shape[:-2], size), axis=len(others))
        axes = (*(axes[i] for i in others), twice)
    return value, axes


def _on_diagonal(low: Lowering, value: Value) -> Value:
    """The last axis on the diagonal of two axes, zeros elsewhere."""
    shape: Shape = low.shape(value)
    size = _concrete(shape[-1])
    eye = low.booleans(torch.eye(size, dtype=torch.bool), f"diagonal {size}")
    column = low.reshape(value, (*shape, 1))
    zero = low.number(0.0, low.kind(value))
    return low.emit("Where", [eye, column, zero], (*shape, size), low.kind(value))


def _concrete(size: Size) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(f"a diagonal of symbolic size {size}", hint="bind all sizes but the batch")
    return size
