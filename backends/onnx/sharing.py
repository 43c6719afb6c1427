"""Weights that are part of others: they become slices, so that no memory is stored twice.

A head's rows of a matrix are read apart from the whole matrix where one variant of several patches that head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SMALL = 1024
"""Constants of fewer bytes are not worth a node."""

Extent = tuple[tuple[int, int], ...]
"""Sizes and strides, the largest stride first."""


@dataclass(frozen=True, slots=True)
class Part:
    """How one tensor lies in another.

    Attributes:
        whole: the number of the other tensor.
        shape: the shape in which that is looked at.
        starts: where it is cut, by axis.
        stops: likewise.
    """

    whole: int
    shape: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]


def parts(tensors: Sequence[torch.Tensor]) -> dict[int, Part]:
    """For every tensor that is a slice of another one's memory, by number, of which and where."""
    largest = sorted(range(len(tensors)), key=lambda i: -tensors[i].numel())
    found: dict[int, Part] = {}
    wholes: dict[tuple[int, torch.dtype], list[int]] = {}
    for i in largest:
        tensor = tensors[i]
        if tensor.nbytes <= _SMALL:
            continue
        known = wholes.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), [])
        part = next((part for j in known if (part := _part(tensor, tensors[j], j)) is not None), None)
        if part is None:
            known.append(i)
        else:
            found[i] = part
    return found


def _part(small: torch.Tensor, big: torch.Tensor, whole: int) -> Part | None:
    extent, rest = list(merged(big)), small.storage_offset() - big.storage_offset()
    wanted = {stride: size for size, stride in merged(small)}
    for stride in wanted:
        split = _split(extent, stride)
        if split is None:
            return None
        extent = split
    starts = []
    for size, stride in extent:
        starts.append(rest // stride)
        rest -= starts[-1] * stride
        if not 0 <= starts[-1] <= size - wanted.get(stride, 1):
            return None
    if rest or not wanted.keys() <= {stride for _, stride in extent}:
        return None
    stops = [start + wanted.get(stride, 1) for start, (_, stride) in zip(starts, extent, strict=True)]
    return Part(whole, tuple(size for size, _ in extent), tuple(starts), tuple(stops))


def _split(extent: list[tuple[int, int]], stride: int) -> list[tuple[int, int]] | None:
    """The extent with an axis of that stride, if it can be looked at so."""
    if any(own == stride for _, own in extent):
        return extent
    for i, (size, own) in enumerate(extent):
        inner = stride // own
        if own < stride < size * own and stride % own == 0 and size % inner == 0:
            return [*extent[:i], (size // inner, stride), (inner, own), *extent[i + 1 :]]
    return None


def merged(value: torch.Tensor) -> Extent:
    """Sizes and strides of memory that a tensor sees, with axes that adjoin taken as one."""
    out: list[tuple[int, int]] = []
    for size, stride in zip(value.shape, value.stride(), strict=True):
        if size == 1:
            continue
        if out and out[-1][1] == size * stride:
            out[-1] = (out[-1][0] * size, stride)
        else:
            out.append((size, stride))
    return tuple(out)
