"""`Index`: entries and slices, one index an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tapeout.ir.axis_index import FULL, AxisIndex, Picks, Span, axis_indices, format_index, indexed_shape
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.index_rules import AxisIndices, Pushed, composed
from tapeout.ir.sizes import Shape


class Index(Circuit):
    """Indexes each axis by itself: an integer removes it, a slice or a 1-D tensor keeps it.

    Several tensors act independently (an outer product of positions), unlike in torch. Negative
    indices count from the end; nothing is clipped; slices have no step; missing axes are `:`.

    Args:
        node: what is indexed.
        index: the indices, such as `I[0, 1:3]`; one ellipsis is allowed.
        name: the node's name.

    Raises:
        ShapeError: if an index is out of range, of an unsupported kind, or there are too many.
    """

    __slots__ = ()

    def __new__(cls, node: Circuit, index: Sequence[Any], name: str | None = _AUTONAME) -> Index:
        indices = axis_indices(index, node.rank, repr(node))
        return cls._make((indices,), (node,), auto_name(name, [node], "{} idx", bracketed=OPERATORS))

    @property
    def node(self) -> Circuit:
        return self.children[0]

    @property
    def axis_indices(self) -> tuple[AxisIndex, ...]:
        """The indices in canonical form, one an axis of the node."""
        return self.attributes[0]  # type: ignore[no-any-return]

    @property
    def idx(self) -> list[int | slice | torch.Tensor]:
        """The indices as integers, slices and tensors."""
        return as_torch(self.axis_indices)

    def has_tensor_axes(self) -> bool:
        return any(isinstance(index, Picks) for index in self.axis_indices)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        (child,) = self.children
        return indexed_shape(self.axis_indices, child.shape, repr(child)), child.torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        (count,) = gained(self, children).ranks
        return self._make(((FULL,) * count + self.axis_indices,), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """Composes: of the child the part of the part is read, and the node itself is gone."""
        outer = iter(index)
        taken: list[AxisIndex] = []
        below: list[AxisIndex] = []
        for own, size in zip(self.axis_indices, self.node.shape, strict=True):
            if isinstance(own, int):
                below.append(own)
                continue
            entry = next(outer)
            both = composed(own, entry, size)
            taken.append(FULL if both is None else entry)
            below.append(own if both is None else both)
        return Pushed(tuple(taken), ((self.node, tuple(below)),), lambda children: children[0])

    def _text(self) -> str:
        return format_index(self.axis_indices)


def as_torch(indices: AxisIndices) -> list[int | slice | torch.Tensor]:
    """Indices in canonical form as integers, slices and tensors."""
    return [
        slice(index.start, index.stop)
        if isinstance(index, Span)
        else index.values
        if isinstance(index, Picks)
        else index
        for index in indices
    ]
