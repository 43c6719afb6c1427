"""Products: an einsum as elementwise products, sums, diagonals and products of two operands."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from opt_einsum import contract_path
from torch import fx

from tapeout.backends.fx.graph import Args, Lowering
from tapeout.ir import Einsum, Scalar
from tapeout.ir.einsum import Axes, write_einsum
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.sizes import Size

Operand = tuple[fx.Node, Axes]

_GUESSED_BATCH = 64
"""How long the batch axis is taken to be where the order of products is chosen."""


def einsum(low: Lowering, node: Einsum, _: Args) -> fx.Node:
    factor = 1.0
    operands: list[Operand] = []
    sizes: dict[int, Size] = {}
    for child, axes in node.args:
        if isinstance(child, Scalar) and not axes:
            factor *= child.value
        else:
            operands.append((low.value(child), axes))
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
        return low.call(torch.einsum, _einsum_text(operands, out), *(value for value, _ in operands))
    return _in_pairs(low, operands, out, sizes)


def _einsum_text(operands: list[Operand], out: Axes) -> str:
    number = {axis: i for i, axis in enumerate(dict.fromkeys(axis for _, axes in operands for axis in axes))}
    if len(number) > 52:
        raise UnsupportedError(f"an einsum of {len(number)} axes", hint="torch.einsum has letters for 52")
    return write_einsum(
        tuple(tuple(number[axis] for axis in axes) for _, axes in operands), tuple(number[axis] for axis in out)
    )


def _in_pairs(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    """A product of many operands two at a time, in the cheapest order.

    torch would choose the order anew at each call, TorchScript goes from left to right, and Inductor cannot
    choose while the batch has no size.
    """
    guess = {axis: size if isinstance(size, int) else _GUESSED_BATCH for axis, size in sizes.items()}
    shapes = [tuple(guess[axis] for axis in axes) for _, axes in operands]
    path, _ = contract_path(_einsum_text(operands, out), *shapes, shapes=True)
    left = list(operands)
    for step in path[:-1]:
        chosen = [left.pop(i) for i in sorted(step, reverse=True)][::-1]
        needed = set(out).union(*(axes for _, axes in left))
        seen = dict.fromkeys(axis for _, axes in chosen for axis in axes)
        kept = tuple([axis for axis in out if axis in seen] + [axis for axis in seen if axis in needed - set(out)])
        left.append((_product_of(low, chosen, kept, sizes), kept))
    return _product_of(low, left, out, sizes)


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
