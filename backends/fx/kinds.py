"""For every kind of node its rule."""

from __future__ import annotations

import operator

import torch
from torch import fx

from tapeout.backends.fx.functions import FUNCTION_RULES
from tapeout.backends.fx.graph import Args, Lowering, Rule
from tapeout.backends.fx.products import einsum
from tapeout.backends.precision import is_product
from tapeout.backends.rules import Refused
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Index,
    Module,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
)
from tapeout.ir.axis_index import Picks, Span
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.kernels import Linear


def _scalar(low: Lowering, node: Scalar, _: Args) -> fx.Node:
    return low.filled(node.value, node.shape)


def _symbol(low: Lowering, node: Symbol, _: Args) -> fx.Node:
    raise LoweringError(f"{node!r} is free and no input", hint="name it in `inputs`, or bind it")


def _add(low: Lowering, node: Add, _: Args) -> fx.Node:
    if not node.children:
        return low.filled(0.0, node.shape)
    ordered = sorted(node.children, key=lambda child: _place(low, node, child))
    total = low.wide(ordered[0])
    if len(ordered) == 1:
        return low.call(torch.broadcast_to, total, tuple(low.size(size) for size in node.shape))
    for child in ordered[1:]:
        number = child.value if isinstance(child, Scalar) and not child.shape else None
        total = low.call(operator.add, total, low.value(child) if number is None else number)
    return total


def _place(low: Lowering, node: Add, child: Circuit) -> tuple[bool, bool, bool]:
    """A summand of the sum's shape and dtype comes first, plain numbers last."""
    return isinstance(child, Scalar), child.shape != node.shape, child in low.narrow_nodes


def _rearrange(low: Lowering, node: Rearrange, _: Args) -> fx.Node:
    spec, child = node.spec, node.children[0]
    sizes = spec.sizes(child.shape)
    before = [number for group in spec.input_ints for number in group]
    after = [number for group in spec.output_ints for number in group]
    left = [number for number in before if number in after]
    value = low.value(child)
    value = low.reshape(value, child.shape, tuple(sizes[number] for number in left))
    value = low.permute(value, [left.index(number) for number in after if number in left])
    new = [i for i, number in enumerate(after) if number not in left]
    for i in new:
        value = low.call(torch.unsqueeze, value, i)
    if any(sizes[after[i]] != 1 for i in new):
        value = low.call(torch.broadcast_to, value, tuple(low.size(sizes[number]) for number in after))
    return low.reshape(value, tuple(sizes[number] for number in after), node.shape)


def _index(low: Lowering, node: Index, _: Args) -> fx.Node:
    value = low.value(node.children[0])
    axis = 0
    for item, size in zip(node.axis_indices, node.children[0].shape, strict=True):
        if isinstance(item, int):
            value = low.call(torch.select, value, axis, item)
            continue
        if isinstance(item, Picks):
            positions = item.values % int(size)  # type: ignore[arg-type]
            value = low.call(torch.index_select, value, axis, low.positions(positions))
        elif isinstance(item, Span) and not item.is_full:
            start, stop = item.bounds(int(size))  # type: ignore[arg-type]
            value = low.call(torch.narrow, value, axis, start, stop - start)
        axis += 1
    return value


def _concat(low: Lowering, node: Concat, _: Args) -> fx.Node:
    return low.call(torch.cat, [low.value(child) for child in node.children], node.axis)


def _scatter(low: Lowering, node: Scatter, _: Args) -> fx.Node:
    """Zeros joined to the node on both sides for slices; index_copy into zeros for tensors."""
    value = low.value(node.children[0])
    shape = list(node.children[0].shape)
    for axis, (item, size) in enumerate(zip(node.axis_indices, node.attributes[1], strict=True)):
        if isinstance(item, int):
            value = low.call(torch.unsqueeze, value, axis)
            shape.insert(axis, 1)
        if isinstance(item, Span) and item.is_full:
            continue
        positions = _positions(item, int(size))
        shape[axis] = size
        zeros = low.call(
            torch.zeros, tuple(low.size(s) for s in shape), dtype=low.dtype_of(node), device=low.weights.device
        )
        value = low.call(torch.index_copy, zeros, axis, low.positions(positions), value)
    return value


def _positions(item: int | Span | Picks, size: int) -> torch.Tensor:
    if isinstance(item, Picks):
        return item.values % size
    return torch.arange(*item.bounds(size)) if isinstance(item, Span) else torch.tensor([item % size])


def _pass_on(low: Lowering, node: Circuit, _: Args) -> fx.Node:
    return low.value(node.children[0])


def _function(low: Lowering, node: GeneralFunction, _: Args) -> fx.Node:
    spec = node.spec
    rule = FUNCTION_RULES.get(spec.name) or FUNCTION_RULES.get(type(spec))
    if rule is None:
        raise UnsupportedError(f"fx has no rule for the function {spec.name}", hint="add it to FUNCTION_RULES")
    operand = low.narrow if is_product(node) else low.value if node in low.narrow_nodes else low.wide
    return rule(low, node, [operand(child) for child in node.children if not _taken_as_tensor(spec, node, child)])


def _taken_as_tensor(spec: object, node: GeneralFunction, child: Circuit) -> bool:
    return isinstance(spec, Linear) and child is not node.children[0]


RULES: dict[type[Circuit], Rule] = {
    Array: Refused("an Array is a constant and no call"),
    Scalar: _scalar,
    Symbol: _symbol,
    Add: _add,
    Einsum: einsum,
    Rearrange: _rearrange,
    Index: _index,
    Concat: _concat,
    Scatter: _scatter,
    GeneralFunction: _function,
    Tag: _pass_on,
    SetSymbolicShape: _pass_on,
    Module: Refused("modules are inlined before lowering"),
    DiscreteVar: Refused("sample random variables first"),
}
"""For every kind its rule, or why there is none."""
