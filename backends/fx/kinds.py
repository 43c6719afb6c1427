"""For every kind of node its rule."""

from __future__ import annotations

import operator

import torch
from torch import fx

from tapeout.backends.common.precision import is_product
from tapeout.backends.common.rules import COMMON_RULES, function_rule
from tapeout.backends.fx.functions import FUNCTION_RULES
from tapeout.backends.fx.graph import KindRule, Lowering
from tapeout.backends.fx.products import einsum
from tapeout.ir import (
    Add,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    Index,
    Rearrange,
    Scalar,
    Scatter,
)
from tapeout.ir.axis_index import Picks, Span, positions
from tapeout.ir.nodes.kernels import Linear


def _scalar(low: Lowering, node: Scalar) -> fx.Node:
    return low.filled(node.value, node.shape)


def _add(low: Lowering, node: Add) -> fx.Node:
    if not node.children:
        return low.filled(0.0, node.shape)
    ordered = sorted(node.children, key=lambda child: _place(low, node, child))
    total = low.wide(ordered[0])
    if len(ordered) == 1:
        return low.call(torch.broadcast_to, total, tuple(low.size(size) for size in node.shape))
    for child in ordered[1:]:
        number = child.value if isinstance(child, Scalar) and not child.shape else None
        total = low.call(operator.add, total, low.value(child) if number is None else low.number(number))
    return total


def _place(low: Lowering, node: Add, child: Circuit) -> tuple[bool, bool, bool]:
    """A summand of the sum's shape and dtype comes first, plain numbers last."""
    return isinstance(child, Scalar), child.shape != node.shape, child in low.narrow_nodes


def _rearrange(low: Lowering, node: Rearrange) -> fx.Node:
    have = node.node.shape
    steps = node.spec.steps(have)
    value = low.permute(low.reshape(low.value(node.node), have, steps.split), steps.order)
    for axis in steps.new:
        value = low.call(torch.unsqueeze, value, axis)
    if any(steps.full[axis] != 1 for axis in steps.new):
        value = low.call(torch.broadcast_to, value, tuple(map(low.size, steps.full)))
    return low.reshape(value, steps.full, steps.out)


def _index(low: Lowering, node: Index) -> fx.Node:
    value = low.value(node.children[0])
    axis = 0
    for item, size in zip(node.axis_indices, node.children[0].shape, strict=True):
        if isinstance(item, int):
            value = low.call(torch.select, value, axis, item)
            continue
        if isinstance(item, Picks):
            taken = positions(item, int(size), repr(node))  # type: ignore[arg-type]
            value = low.call(torch.index_select, value, axis, low.positions(taken))
        elif isinstance(item, Span) and not item.is_full:
            start, stop = item.bounds(int(size))  # type: ignore[arg-type]
            value = low.call(torch.narrow, value, axis, start, stop - start)
        axis += 1
    return value


def _concat(low: Lowering, node: Concat) -> fx.Node:
    return low.call(torch.cat, [low.value(child) for child in node.children], node.axis)


def _scatter(low: Lowering, node: Scatter) -> fx.Node:
    """Zeros joined to the node on both sides for slices; index_copy into zeros for tensors."""
    value = low.value(node.children[0])
    shape = list(node.children[0].shape)
    for axis, (item, size) in enumerate(zip(node.axis_indices, node.attributes[1], strict=True)):
        if isinstance(item, int):
            value = low.call(torch.unsqueeze, value, axis)
            shape.insert(axis, 1)
        if isinstance(item, Span) and item.is_full:
            continue
        taken = positions(item, int(size), repr(node))
        shape[axis] = size
        zeros = low.call(
            torch.zeros, tuple(low.size(s) for s in shape), dtype=low.dtype_of(node), device=low.weights.device
        )
        value = low.call(torch.index_copy, zeros, axis, low.positions(taken), value)
    return value


def _function(low: Lowering, node: GeneralFunction) -> fx.Node:
    spec, rule = node.spec, function_rule(low, FUNCTION_RULES, node)
    operand = low.narrow if is_product(node) else low.value if node in low.narrow_nodes else low.wide
    return rule(low, node, [operand(child) for child in node.children if not _taken_as_tensor(spec, node, child)])


def _taken_as_tensor(spec: object, node: GeneralFunction, child: Circuit) -> bool:
    return isinstance(spec, Linear) and child is not node.children[0]


RULES: dict[type[Circuit], KindRule] = {
    **COMMON_RULES,
    Scalar: _scalar,
    Add: _add,
    Einsum: einsum,
    Rearrange: _rearrange,
    Index: _index,
    Concat: _concat,
    Scatter: _scatter,
    GeneralFunction: _function,
}
"""For every kind its rule, or why there is none."""
