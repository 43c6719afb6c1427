"""Rules of nodes that are another node under another type or in a larger frame."""

from __future__ import annotations

from tapeout.ir import Circuit, Scalar, Scatter, SetSymbolicShape, Tag
from tapeout.ir.index_rules import canonical, is_everything


def scatter_of_zero(node: Scatter) -> Circuit | None:
    """`scatter(0) --> 0`"""
    child = node.node
    return Scalar(0.0, node.shape) if isinstance(child, Scalar) and child.is_zero() else None


def scatter_everywhere(node: Scatter) -> Circuit | None:
    """`scatter(x, [0:n]) of n --> x`"""
    return node.node if is_everything(canonical(node.axis_indices, node.shape)) else None


def scatter_canonical(node: Scatter) -> Circuit | None:
    """`scatter(x, [-2:]) of 3 --> scatter(x, [1:3])`"""
    index = canonical(node.axis_indices, node.shape)
    return None if index == node.axis_indices else Scatter(node.node, index, node.shape, name=None)


def tag(node: Tag) -> Circuit | None:
    """`tag(x) --> x`; not while there are random variables, which tags keep apart"""
    return node.node


def set_symbolic_shape(node: SetSymbolicShape) -> Circuit | None:
    """`set_shape(x) --> x`, where x knows its shape itself"""
    return node.node if node.node.shape == node.shape else None


SCATTER_RULES = (scatter_of_zero, scatter_everywhere, scatter_canonical)
TAG_RULES = (tag,)
SET_SYMBOLIC_SHAPE_RULES = (set_symbolic_shape,)
