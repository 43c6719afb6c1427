"""Products: an einsum as elementwise products, sums, diagonals and products of two operands."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from tapeout.backends.contraction import einsum_text, in_pairs
from tapeout.backends.fx.graph import Args, Lowering
from tapeout.backends.precision import is_product
from tapeout.ir import Einsum, Scalar
from tapeout.ir.einsum import Axes
from tapeout.ir.sizes import Size

Operand = tuple[fx.Node, Axes]


def einsum(low: Lowering, node: Einsum, _: Args) -> fx.Node:
    factor = 1.0
    operands: list[Operand] = []
    sizes: dict[int, Size] = {}
    operand = low.narrow if is_product(node) else low.value if node in low.narrow_nodes else low.wide
    for child, axes in node.args:
        if isinstance(child, Scalar) and not axes:
            factor *= child.value
        else:
            operands.append((operand(child), axes))
            sizes.update(zip(axes, child.shape, strict=True))
    if not operands:
        return low.filled(factor, node.shape)
    product = _product_of(low, operands, node.out_axes, sizes)
    return product if factor == 1.0 else low.call(operator.mul, product, factor)


def _product_of(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    distinct = all(len(set(axes)) == len(axes) for axes in (*(axes for _, axes in operands), out))
    reduced = {axis for _, axes in operands for axis in axes} - set(out)
    if not distinct:
        return _diagonal_einsum(low, operands, out, sizes)
    if not reduced:
        return _elementwise_product(low, operands, out)
    if len(operands) == 1:
        value, axes = operands[0]
        total = low.call(torch.sum, value, [i for i, axis in enumerate(axes) if axis in reduced])
        kept = [axis for axis in axes if axis not in reduced]
        return low.permute(total, [kept.index(axis) for axis in out])
    if len(operands) == 2:
        return low.call(
            torch.einsum, einsum_text([axes for _, axes in operands], out), *(value for value, _ in operands)
        )
    return _in_pairs(low, operands, out, sizes)


def _in_pairs(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    """A product of many operands two at a time, in the cheapest order.

    torch would choose the order anew at each call, TorchScript goes from left to right, and Inductor cannot
    choose while the batch has no size.
    """
    left = list(operands)
    for places, kept in in_pairs([axes for _, axes in operands], out, sizes, low.typical_rows):
        chosen = [left.pop(i) for i in reversed(places)][::-1]
        left.append((_product_of(low, chosen, kept, sizes), kept))
    return left[0][0]


def _elementwise_product(low: Lowering, operands: list[Operand], out: Axes) -> fx.Node:
    factors = [_aligned(low, value, axes, out) for value, axes in operands]
    product = factors[0]
    for factor in factors[1:]:
        product = low.call(operator.mul, product, factor)
    return product


def _aligned(low: Lowering, value: fx.Node, axes: Axes, out: Axes) -> fx.Node:
    """The operand with its axes in the order of the result and size 1 where it lacks one (leading ones left out)."""
    value = low.permute(value, [axes.index(axis) for axis in out if axis in axes])
    started = False
    for i, axis in enumerate(out):
        if axis in axes:
            started = True
        elif started:
            value = low.call(torch.unsqueeze, value, i - len(out) if i == len(out) - 1 else i - _leading(axes, out))
    return value


def _leading(axes: Axes, out: Axes) -> int:
    """How many axes of the result come before the operand's first."""
    return next((i for i, axis in enumerate(out) if axis in axes), len(out))


def _diagonal_einsum(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    plain: list[Operand] = []
    for value, axes in operands:
        while len(set(axes)) < len(axes):
            twice = next(axis for axis in axes if axes.count(axis) > 1)
            first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
            value = low.call(torch.diagonal, value, 0, first, second)
            axes = (*(axis for i, axis in enumerate(axes) if i not in (first, second)), twice)
        plain.append((value, axes))
    unique = tuple(dict.fromkeys(out))
    value = _product_of(low, plain, unique, sizes)
    have = list(unique)
    for axis in unique:
        for _ in range(out.count(axis) - 1):
            last = [i for i, each in enumerate(have) if i != have.index(axis)] + [have.index(axis)]
            value = low.call(torch.diag_embed, low.permute(value, last), 0, -2, -1)
            have = [*(have[i] for i in last), axis]
    positions: dict[int, list[int]] = {}
    for i, axis in enumerate(have):
        positions.setdefault(axis, []).append(i)
    return low.permute(value, [positions[axis].pop(0) for axis in out])
