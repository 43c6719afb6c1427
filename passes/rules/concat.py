"""Rules of concatenations: what was taken apart is put together again."""

from __future__ import annotations

from typing import NamedTuple

from tapeout.ir import Circuit, Concat, Index, Scalar
from tapeout.ir.axis_index import AxisIndex, Span
from tapeout.ir.index_rules import canonical, is_everything
from tapeout.ir.sizes import UNKNOWN, add


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
    parts: list[Circuit] = []
    for child in node.children:
        joined = _join_scalars(parts[-1], child, node.axis) if parts else None
        if joined is None:
            parts.append(child)
        else:
            parts[-1] = joined
    return None if len(parts) == len(node.children) else Concat(*parts, axis=node.axis, name=None)


def _join_scalars(left: Circuit, right: Circuit, axis: int) -> Circuit | None:
    if not isinstance(left, Scalar) or not isinstance(right, Scalar):
        return None
    size = add(left.shape[axis], right.shape[axis])
    if left.value.hex() != right.value.hex() or size == UNKNOWN:
        return None
    return Scalar(left.value, (*left.shape[:axis], size, *left.shape[axis + 1 :]))


def concat_of_slices(node: Concat) -> Circuit | None:
    """`x[0:1] ++ x[1:2] --> x[0:2]`, for neighbours"""
    parts: list[Circuit | _Slice] = []
    for child in node.children:
        part = _slice_of(child, node.axis)
        joined = parts[-1].joined(part) if part and parts and isinstance(parts[-1], _Slice) else None
        if joined is None:
            parts.append(part or child)
        else:
            parts[-1] = joined
    if len(parts) == len(node.children):
        return None
    nodes = [part.to_node() if isinstance(part, _Slice) else part for part in parts]
    return Concat(*nodes, axis=node.axis, name=None)


class _Slice(NamedTuple):
    """A part of a node: bounds along one of its axes, and its index before and after that axis."""

    node: Circuit
    start: int
    stop: int | None
    before: tuple[AxisIndex, ...]
    after: tuple[AxisIndex, ...]

    def joined(self, following: _Slice) -> _Slice | None:
        """This part and the one that begins where it ends."""
        if self.stop != following.start or self.node is not following.node:
            return None
        same = self.before == following.before and self.after == following.after
        return _Slice(self.node, self.start, following.stop, self.before, self.after) if same else None

    def to_node(self) -> Circuit:
        index = canonical((*self.before, Span(self.start, self.stop), *self.after), self.node.shape)
        return self.node if is_everything(index) else Index(self.node, index, name=None)


def _slice_of(node: Circuit, axis: int) -> _Slice | None:
    """The node as a slice cut along its axis `axis`; None if its bounds there do not count from the front."""
    if not isinstance(node, Index):
        return None
    index = node.axis_indices
    source = [i for i, entry in enumerate(index) if not isinstance(entry, int)][axis]
    span = index[source]
    if not isinstance(span, Span) or span.is_full or (span.start or 0) < 0 or (span.stop or 0) < 0:
        return None
    return _Slice(node.node, span.start or 0, span.stop, index[:source], index[source + 1 :])


CONCAT_RULES = (concat_of_one, concat_of_concat, concat_of_empty, concat_of_scalars, concat_of_slices)
