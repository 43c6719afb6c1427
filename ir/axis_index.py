"""Indices of one axis each: an integer, a slice without step, or a 1-D tensor of integers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import torch

from tapeout.ir.errors import ShapeError
from tapeout.ir.hashing import HASH_DIGITS, hash_tensor
from tapeout.ir.sizes import UNKNOWN, Shape, Size, format_shape


class Indexer:
    """`I[1:3, 0]` is the tuple of indices `(slice(1, 3), 0)`; always a tuple."""

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return index if isinstance(index, tuple) else (index,)


I = Indexer()  # noqa: E741


@dataclass(frozen=True, slots=True)
class Span:
    """A slice without step; None for the beginning or the end."""

    start: int | None = None
    stop: int | None = None

    @property
    def is_full(self) -> bool:
        return self.start in (None, 0) and self.stop is None

    def bounds(self, size: int) -> tuple[int, int]:
        """Start and stop, counted from the beginning, for an axis of that size."""
        start = 0 if self.start is None else self.start
        stop = size if self.stop is None else self.stop
        return start + size * (start < 0), stop + size * (stop < 0)

    def __str__(self) -> str:
        return f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"


@dataclass(frozen=True, slots=True)
class Picks:
    """A 1-D tensor of integers; compared by content."""

    digest: str
    values: torch.Tensor = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"t{self.digest[:HASH_DIGITS]}"


AxisIndex = int | Span | Picks
FULL = Span()


def axis_index(index: Any) -> AxisIndex:
    """The index in its canonical form.

    Raises:
        ShapeError: if it is of no supported kind.
    """
    if isinstance(index, Span | Picks):
        return index
    if isinstance(index, slice):
        if index.step not in (None, 1):
            raise ShapeError(
                f"a slice with step {index.step} is not supported", hint="use a tensor of positions instead"
            )
        return Span(*(None if bound is None else _integer(bound) for bound in (index.start, index.stop)))
    if isinstance(index, torch.Tensor) and index.ndim > 0:
        return _picks(index)
    if isinstance(index, (list, tuple)):
        return _picks(torch.tensor([_integer(item) for item in index], dtype=torch.int64))
    return _integer(index)


def _integer(index: Any) -> int:
    try:
        if isinstance(index, bool):
            raise TypeError
        return operator.index(index)
    except TypeError:
        raise ShapeError(
            f"not an index of an axis: {index!r}",
            hint="use an integer, a slice without step, or a 1-D tensor of integers",
        ) from None


def _picks(tensor: torch.Tensor) -> Picks:
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype is torch.bool:
        raise ShapeError(
            f"an index tensor must be 1-D and of integers, not {tensor.ndim}-D of {tensor.dtype}",
            hint="each tensor indexes its own axis; for several axes give several tensors (they act independently)",
        )
    values = tensor.detach().to(device="cpu", dtype=torch.int64).clone()
    return Picks(hash_tensor(values), values)


def axis_indices(index: Sequence[Any | EllipsisType], rank: int, what: str) -> tuple[AxisIndex, ...]:
    """One index for each of `rank` axes; an ellipsis and missing trailing ones are `:`.

    Raises:
        ShapeError: if there are too many.
    """
    given = list(index)
    dots = [i for i, item in enumerate(given) if item is Ellipsis]
    if len(dots) > 1 or len(given) - len(dots) > rank:
        raise ShapeError(
            f"too many indices for {what}: {len(given) - len(dots)} for rank {rank}",
            hint="give at most one index an axis and one ellipsis",
        )
    missing = [FULL] * (rank - len(given) + len(dots))
    at = dots[0] if dots else len(given)
    return tuple(axis_index(item) for item in given[:at] + missing + given[at + len(dots) :])


def indexed_size(index: AxisIndex, size: Size, what: str) -> Size | None:
    """The size of the axis after indexing; None if the axis goes away.

    Raises:
        ShapeError: if the index is out of range; indices are never clipped.
    """
    if isinstance(index, int):
        if isinstance(size, int) and not -size <= index < size:
            raise _out_of_range(index, size, what)
        return None
    if isinstance(index, Picks):
        entries = index.values.tolist()
        low, high = (min(entries), max(entries)) if entries else (0, -1)
        if isinstance(size, int) and len(index.values) and not (-size <= low and high < size):
            raise _out_of_range(index, size, what)
        return len(index.values)
    if not isinstance(size, int):
        return size if index.is_full else _symbolic_span(index)
    start, stop = index.bounds(size)
    if not 0 <= start <= stop <= size:
        raise _out_of_range(index, size, what)
    return stop - start


def positions(index: AxisIndex, size: int, what: str) -> list[int]:
    """The positions that the index takes of an axis of that size, in its order, counted from the front.

    Raises:
        ShapeError: if one is out of range.
    """
    indexed_size(index, size, what)
    if isinstance(index, int):
        return [index % size]
    if isinstance(index, Picks):
        return [position % size for position in index.values.tolist()]
    return list(range(*index.bounds(size)))


def _symbolic_span(span: Span) -> Size:
    start, stop = span.start or 0, span.stop
    if stop is not None and (start >= 0) == (stop >= 0):
        return max(0, stop - start)
    return -start if stop is None and start < 0 else UNKNOWN


def _out_of_range(index: AxisIndex, size: Size, what: str) -> ShapeError:
    return ShapeError(
        f"index {index} is out of range for an axis of size {size} of {what}",
        hint="indices are checked and never clipped; valid are 0 to size - 1, or negative ones from the end",
    )


def apply_index(tensor: torch.Tensor, index: Sequence[AxisIndex]) -> torch.Tensor:
    """Indexes a tensor axis by axis (several tensors act independently, unlike torch's own). A view where possible."""
    axis = 0
    for item in index:
        if isinstance(item, int):
            tensor = tensor.select(axis, item)
            continue
        if isinstance(item, Picks):
            tensor = tensor.index_select(axis, item.values.to(tensor.device) % tensor.shape[axis])
        elif not item.is_full:
            start, stop = item.bounds(tensor.shape[axis])
            tensor = tensor.narrow(axis, start, stop - start)
        axis += 1
    return tensor


def format_index(index: Sequence[AxisIndex]) -> str:
    return "[" + ",".join(map(str, index)) + "]"


def indexed_shape(index: Sequence[AxisIndex], shape: Shape, what: str) -> Shape:
    """The shape after indexing.

    Raises:
        ShapeError: if there are more indices than axes or one is out of range.
    """
    if len(index) != len(shape):
        raise ShapeError(
            f"{len(index)} indices for {what} of shape {format_shape(shape)}",
            hint="give one index for each axis",
        )
    sizes = (indexed_size(item, size, what) for item, size in zip(index, shape, strict=True))
    return tuple(size for size in sizes if size is not None)
