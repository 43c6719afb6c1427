"""Rules of concatenations: what was taken apart is put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tapeout.ir import Circuit, Concat, Index, Scalar
from tapeout.ir.axis_index import FULL, AxisIndex, Span
from tapeout.ir.sizes import UNKNOWN, add

_Join = Callable[[Circuit, Circuit, int], Circuit | None]
"""Two neighbours along an axis as one node, or None."""


def concat_of_one(node: Concat) -> Circuit | None:
    """`concat(x) --> x`"""
    return node.children[0] if len(node.children) == 1 else None


def concat_of_concat(node: Concat) -> Circuit | None:
    """`(x ++ y) ++ z --> x ++ y ++ z`, along one axis"""
    parts: list[Circuit] = []
    for child in node.children:
        parts += child.children if isinstance(child, Concat) and child.axis == node.axis else (child,)
    return None if len(parts) == len(node.children) else Concat(*parts, axis=node.axis, name=None)


def concat_of_empty(node: Concat) -> Circuit | None:
    """`x ++ y[0:0] --> x`"""
    parts = [child for child in node.children if child.shape[node.axis] != 0]
    return Concat(*parts, axis=node.axis, name=None) if 0 < len(parts) < len(node.children) else None


def concat_of_scalars(node: Concat) -> Circuit | None:
    """`2[n] ++ 2[m] --> 2[n+m]`, for neighbours"""
    return _join_neighbours(node, _join_scalars)


def concat_of_slices(node: Concat) -> Circuit | None:
    """`x[0:1] ++ x[1:2] --> x[0:2]`, for neighbours"""
    return _join_neighbours(node, _join_slices)


def _join_scalars(left: Circuit, right: Circuit, axis: int) -> Circuit | None:
    if not (isinstance(left, Scalar) and isinstance(right, Scalar) and left.value.hex() == right.value.hex()):
        return None
    size = add(left.shape[axis], right.shape[axis])
    return None if size == UNKNOWN else Scalar(left.value, (*left.shape[:axis], size, *left.shape[axis + 1 :]))


class _Slice(NamedTuple):
    """A part of a node: bounds along one of its axes, and its index with that axis left open."""

    node: Circuit
    axis: int
    start: int
    stop: int | None
    rest: tuple[AxisIndex, ...]

    def to_node(self) -> Circuit:
        index = (*self.rest[: self.axis], Span(self.start, self.stop), *self.rest[self.axis + 1 :])
        return Index(self.node, index, name=None)


def _slice_of(node: Circuit, axis: int) -> _Slice | None:
    """The node as a slice that its axis `axis` comes from, if it is one with bounds counted from the front."""
    if not isinstance(node, Index):
        return None
    index = node.axis_indices
    source = [i for i, entry in enumerate(index) if not isinstance(entry, int)][axis]
    span = index[source]
    if not isinstance(span, Span) or span == FULL or (span.start or 0) < 0 or (span.stop or 0) < 0:
        return None
    return _Slice(node.node, source, span.start or 0, span.stop, (*index[:source], FULL, *index[source + 1 :]))


def _join_slices(left: Circuit, right: Circuit, axis: int) -> Circuit | None:
    first, second = _slice_of(left, axis), _slice_of(right, axis)
    if first is None or second is None or first.stop != second.start:
        return None
    joined = first._replace(stop=second.stop)
    return joined.to_node() if joined == second._replace(start=first.start) else None


def _join_neighbours(node: Concat, join: _Join) -> Circuit | None:
    parts: list[Circuit] = []
    for child in node.children:
        joined = join(parts[-1], child, node.axis) if parts else None
        if joined is None:
            parts.append(child)
        else:
            parts[-1] = joined
    if len(parts) == len(node.children):
        return None
    return parts[0] if len(parts) == 1 else Concat(*parts, axis=node.axis, name=None)


CONCAT_RULES = (concat_of_one, concat_of_concat, concat_of_empty, concat_of_scalars, concat_of_slices)
