"""For every kind of node its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tapeout.backends.common.rules import COMMON_RULES, function_rule
from tapeout.backends.onnx.functions import FUNCTION_RULES, NOT_IN_FLOAT64
from tapeout.backends.onnx.graph import Lowering, Value, broadcast
from tapeout.backends.onnx.products import einsum
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
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.sizes import Size

Rule = Callable[[Lowering, Any], Value]


def _scalar(low: Lowering, node: Scalar) -> Value:
    return low.number(node.value, low.dtype_of(node), node.shape)


def _add(low: Lowering, node: Add) -> Value:
    kind = low.dtype_of(node)
    others = sorted(
        (child for child in node.children if not isinstance(child, Scalar)), key=lambda child: child.shape != node.shape
    )
    numbers = [child for child in node.children if isinstance(child, Scalar)]
    if not others:
        return low.number(sum(child.value for child in numbers), kind, node.shape)
    covered = broadcast(*(child.shape for child in others)) == node.shape
    total, *rest = (low.value(child, kind) for child in others)
    for value in rest:
        total = low.elementwise("Add", total, value)
    for child in numbers:
        total = low.elementwise("Add", total, low.number(child.value, kind, () if covered else child.shape))
    return total


def _rearrange(low: Lowering, node: Rearrange) -> Value:
    """A reshape, a transpose and a reshape, of which what does nothing is left out."""
    steps = node.spec.steps(node.node.shape)
    value = low.permute(low.reshape(low.value(node.node), steps.split), steps.order)
    if any(steps.full[axis] != 1 for axis in steps.new):
        value = low.reshape(value, tuple(1 if i in steps.new else size for i, size in enumerate(steps.full)))
        value = low.expand(value, steps.full)
    return low.reshape(value, steps.out)


def _index(low: Lowering, node: Index) -> Value:
    """One slice for all spans, then a gather for every position and list of positions."""
    value = low.value(node.children[0])
    sizes = list(node.children[0].shape)
    spans = {
        axis: item.bounds(int(sizes[axis]))  # type: ignore[arg-type]
        for axis, item in enumerate(node.axis_indices)
        if isinstance(item, Span) and not item.is_full
    }
    if spans:
        for axis, (start, stop) in spans.items():
            sizes[axis] = stop - start
        bounds = [low.integers([pair[i] for pair in spans.values()]) for i in (0, 1)]
        value = low.emit("Slice", [value, *bounds, low.integers(list(spans))], tuple(sizes))
    axis = 0
    for item in node.axis_indices:
        if isinstance(item, Span):
            axis += 1
            continue
        taken: list[Size] = [len(item.values)] if isinstance(item, Picks) else []
        where = low.integers(item.values.tolist()) if isinstance(item, Picks) else low.integer(item)
        sizes[axis : axis + 1] = taken
        value = low.emit("Gather", [value, where], tuple(sizes), axis=axis)
        axis += len(taken)
    return value


def _concat(low: Lowering, node: Concat) -> Value:
    kind = low.dtype_of(node)
    if len(node.children) == 1:
        return low.value(node.children[0], kind)
    return low.emit("Concat", [low.value(child, kind) for child in node.children], node.shape, axis=node.axis)


def _scatter(low: Lowering, node: Scatter) -> Value:
    """Zeros around slices and positions by one pad; for lists of positions one zero, which is gathered elsewhere."""
    kind = low.dtype_of(node)
    value = low.value(node.children[0], kind)
    sizes, before, after = list(low.shape(value)), list[int](), list[int]()
    gathers: dict[int, list[int]] = {}
    for axis, (item, size) in enumerate(zip(node.axis_indices, node.attributes[1], strict=True)):
        if isinstance(item, int):
            sizes.insert(axis, 1)
        if isinstance(item, Span) and item.is_full:
            before.append(0)
            after.append(0)
            continue
        places = positions(item, int(size), repr(node))
        if isinstance(item, Picks):
            where = {place: i for i, place in enumerate(places)}
            gathers[axis] = [where.get(place, len(places)) for place in range(int(size))]
            before.append(0)
            after.append(1)
        else:
            start = places[0] if places else 0
            before.append(start)
            after.append(int(size) - start - len(places))
    value = low.reshape(value, tuple(sizes))
    if any(before) or any(after):
        sizes = [size + b + a if b + a else size for size, b, a in zip(sizes, before, after, strict=True)]  # type: ignore[operator]
        value = low.emit("Pad", [value, low.integers([*before, *after]), low.number(0.0, kind)], tuple(sizes))
    for axis, places in gathers.items():
        sizes[axis] = len(places)
        value = low.emit("Gather", [value, low.integers(places)], tuple(sizes), axis=axis)
    return value


def _function(low: Lowering, node: GeneralFunction) -> Value:
    spec, rule = node.spec, function_rule(low, FUNCTION_RULES, node)
    if spec.name in NOT_IN_FLOAT64 and low.dtype is torch.float64:
        raise UnsupportedError(
            f"onnx cannot lower {node!r} in float64: ONNX Runtime has no {NOT_IN_FLOAT64[spec.name]} of it",
            hint="compile to float32, or use backend='fx' for float64",
        )
    return rule(low, node)


RULES: dict[type[Circuit], Rule] = {
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
