"""Rules of indices. An index of an Array stays: weights are used in place."""

from __future__ import annotations

from tapeout.ir import Circuit, Concat, Index, Rearrange, Scalar
from tapeout.ir.index_rules import canonical, is_everything


def index_canonical(node: Index) -> Circuit | None:
    """`x[-1, t(1,2)] --> x[2, 1:3]`"""
    index = canonical(node.axis_indices, node.node.shape)
    return None if index == node.axis_indices else Index(node.node, index, name=None)


def index_of_everything(node: Index) -> Circuit | None:
    """`x[:] --> x`"""
    return node.node if is_everything(node.axis_indices) else None


def index_of_scalar(node: Index) -> Circuit | None:
    """`2[n][0] --> 2`"""
    return Scalar(node.node.value, node.shape) if isinstance(node.node, Scalar) else None


def index_of_index(node: Index) -> Circuit | None:
    """`x[1:4][0] --> x[1]`"""
    return _index_below(node) if isinstance(node.node, Index) else None


def index_of_concat(node: Index) -> Circuit | None:
    """`(x ++ y)[i] --> y[i - n]`, where everything that is read is in y"""
    return _index_below(node) if isinstance(node.node, Concat) else None


def index_of_rearrange(node: Index) -> Circuit | None:
    """`rearrange(x, a b -> b a)[i] --> rearrange(x[:, i])`, where no indexed axis is split or merged"""
    return _index_below(node) if isinstance(node.node, Rearrange) else None


def _index_below(node: Index) -> Circuit | None:
    """The child of an indexed part of its only child; None where the index cannot enter as a whole."""
    pushed = node.node.push_index(node.axis_indices)
    if pushed is None or pushed.taken != node.axis_indices or len(pushed.reads) != 1:
        return None
    below, index = pushed.reads[0]
    if not is_everything(index):
        below = Index(below, index, name=None)
    return pushed.build((below,))


INDEX_RULES = (
    index_canonical,
    index_of_everything,
    index_of_scalar,
    index_of_index,
    index_of_concat,
    index_of_rearrange,
)
