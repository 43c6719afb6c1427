"""What the kinds' `push_index` rules share: how an index enters a node and what its children are asked for.

An index is here one entry for each axis, in the canonical form that `canonical` gives: then two
readers that want the same part of a node ask for it in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from tapeout.ir.axis_index import FULL, AxisIndex, Picks, Span, axis_index
from tapeout.ir.circuit import Circuit
from tapeout.ir.sizes import Shape, Size

AxisIndices = tuple[AxisIndex, ...]
Read = tuple[Circuit, AxisIndices]
"""A node and the part of it that is read."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pushed:
    """An index that has entered a node.

    Attributes:
        taken: the part of the index that entered; `:` where an axis cannot take it, which is then
            applied to the result.
        reads: what the indexed node is made of.
        build: the node indexed with `taken`, from what `reads` asks for, in that order.
    """

    taken: AxisIndices
    reads: tuple[Read, ...]
    build: Callable[[tuple[Circuit, ...]], Circuit]


def everything(node: Circuit) -> AxisIndices:
    """The index that takes the whole node."""
    return (FULL,) * node.rank


def is_everything(index: AxisIndices) -> bool:
    return index.count(FULL) == len(index)


def canonical(index: Iterable[AxisIndex], shape: Shape) -> AxisIndices:
    """The index in the one form that all indices of the same meaning have.

    Counted from the front where the size is known, `:` where everything is taken in order, a slice where a
    tensor picks neighbours in order.
    """
    return tuple(
        entry if entry == FULL else _canonical_entry(entry, size) for entry, size in zip(index, shape, strict=True)
    )


def _canonical_entry(entry: AxisIndex, size: Size) -> AxisIndex:
    if isinstance(entry, int):
        return entry % size if isinstance(size, int) else entry
    if isinstance(entry, Picks):
        return _canonical_picks(entry, size)
    if not isinstance(size, int):
        return FULL if entry.is_full else Span(entry.start or 0, entry.stop)
    bounds = entry.bounds(size)
    return FULL if bounds == (0, size) else Span(*bounds)


def _canonical_picks(picks: Picks, size: Size) -> AxisIndex:
    values = picks.values
    if len(values) == 0:
        return Span(0, 0)
    if isinstance(size, int) and int(values.min()) < 0:
        picks = axis_index(values % size)  # type: ignore[assignment]
        values = picks.values
    first, count = int(values[0]), len(values)
    if first >= 0 and torch.equal(values, torch.arange(first, first + count)):
        return FULL if (first, count) == (0, size) else Span(first, first + count)
    return picks


def composed(own: AxisIndex, entry: AxisIndex, size: Size) -> AxisIndex | None:
    """`own` of an axis of that size, and then `entry` of what it takes; None where that is no one entry.

    Args:
        own: a slice or a tensor (an integer leaves no axis).
        entry: in canonical form.
        size: the size of the axis that `own` indexes.
    """
    if entry == FULL:
        return own
    if isinstance(own, Picks):
        return _picked(own, entry)
    if own == FULL:
        return entry
    if isinstance(own, int) or _counts_from_end(entry):
        return None
    start = own.bounds(size)[0] if isinstance(size, int) else own.start or 0
    if isinstance(entry, int):
        return start + entry
    if isinstance(entry, Picks):
        return axis_index(entry.values + start)
    stop = own.stop if entry.stop is None else start + entry.stop
    return Span(start + (entry.start or 0), None if start < 0 and stop == 0 else stop)


def _picked(own: Picks, entry: AxisIndex) -> AxisIndex:
    if isinstance(entry, int):
        return int(own.values[entry])
    where = slice(entry.start, entry.stop) if isinstance(entry, Span) else entry.values
    return axis_index(own.values[where])


def _counts_from_end(entry: AxisIndex) -> bool:
    """Whether a canonical entry counts from the end, which happens only on axes of unknown size."""
    if isinstance(entry, int):
        return entry < 0
    if isinstance(entry, Picks):
        return bool((entry.values < 0).any())
    return (entry.start or 0) < 0 or (entry.stop or 0) < 0


def without_integers(items: Sequence[_T], index: Sequence[AxisIndex]) -> tuple[_T, ...]:
    """Of items for each axis those of the axes that are left after indexing."""
    return tuple(item for item, entry in zip(items, index, strict=True) if not isinstance(entry, int))


def count_integers(index: Sequence[AxisIndex]) -> int:
    """How many axes the index removes."""
    return sum(isinstance(entry, int) for entry in index)


def broadcast_reads(node: Circuit, index: AxisIndices) -> tuple[Read, ...]:
    """What an index of a node reads of children that broadcast against each other, aligned on the right."""
    return tuple(
        (
            child,
            tuple(
                _broadcast_entry(entry, size, whole)
                for entry, size, whole in zip(
                    index[node.rank - child.rank :],
                    child.shape,
                    node.shape[node.rank - child.rank :],
                    strict=True,
                )
            ),
        )
        for child in node.children
    )


def _broadcast_entry(entry: AxisIndex, size: Size, whole: Size) -> AxisIndex:
    """The entry for a child's axis of size `size` where the result has size `whole`."""
    if size != 1 or whole == 1:
        return entry
    return 0 if isinstance(entry, int) else FULL
