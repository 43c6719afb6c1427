"""Batch axes: the leading axes that children gain when a circuit is expanded."""

from __future__ import annotations

from typing import NamedTuple

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import ShapeError
from tapeout.ir.sizes import Shape, Size, SizeMismatch, Unifier, format_shape


class Batch(NamedTuple):
    """The batch axes of a node about to be expanded.

    Attributes:
        shape: sizes of the batch axes of the result.
        ranks: how many of them (the rightmost) each new child has.
    """

    shape: Shape
    ranks: tuple[int, ...]


def gained(node: Circuit, children: tuple[Circuit, ...]) -> Batch:
    """The batch axes by which `children` exceed those of `node`, aligned on the right.

    Raises:
        ShapeError: if a child lost axes or the batch sizes disagree.
    """
    ranks = tuple(new.rank - old.rank for new, old in zip(children, node.children, strict=True))
    shapes = [child.shape[:extra] for child, extra in zip(children, ranks, strict=True) if extra > 0]
    if min(ranks) < 0:
        child, old = next((c, o) for c, o, extra in zip(children, node.children, ranks, strict=True) if extra < 0)
        raise ShapeError(
            f"cannot expand {node!r}: its child {old!r} was replaced by one of smaller rank "
            f"{format_shape(child.shape)}",
            hint="an expansion adds leading axes; to remove axes, build the node anew",
        )
    return Batch(align_batch(repr(node), shapes), ranks)


def align_batch(what: str, shapes: list[Shape]) -> Shape:
    """The common batch shape of several, aligned on the right; equal sizes are required axis by axis."""
    unifier = Unifier()
    out: list[Size] = []
    for position in range(1, max(map(len, shapes), default=0) + 1):
        sizes = [shape[-position] for shape in shapes if len(shape) >= position]
        size = sizes[0]
        for other in sizes[1:]:
            try:
                size = unifier.unify(size, other)
            except SizeMismatch:
                raise ShapeError(
                    f"batch axes of {what} do not agree: {' and '.join(map(format_shape, shapes))}",
                    hint="batch axes are aligned on the right and must have equal sizes; "
                    "expand one after the other for an outer product",
                ) from None
        out.append(size)
    return tuple(unifier.resolve(size) for size in reversed(out))
