"""`Scatter`: a node placed into zeros."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tapeout.ir.axis_index import FULL, AxisIndex, axis_indices, format_index, indexed_shape
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.errors import ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed, canonical, without_integers
from tapeout.ir.nodes.index import as_torch
from tapeout.ir.sizes import Shape, SizeIn, SizeMismatch, Unifier, as_shape, format_shape, is_concrete


class Scatter(Circuit):
    """Zeros of shape `shape` with the node at the places `index`: the transpose of `Index`.

    Args:
        node: what is placed.
        index: where, one index an axis of the result (see `Index`).
        shape: the shape of the result.
        name: the node's name.

    Raises:
        ShapeError: if the indexed part of `shape` has not the node's shape.
    """

    __slots__ = ()

    def __new__(
        cls, node: Circuit, index: Sequence[Any], shape: Iterable[SizeIn], name: str | None = _AUTONAME
    ) -> Scatter:
        full = as_shape(shape)
        indices = axis_indices(index, len(full), f"the shape {format_shape(full)}")
        return cls._make((indices, full), (node,), auto_name(name, [node], "{} scatter", bracketed=OPERATORS))

    @property
    def node(self) -> Circuit:
        return self.children[0]

    @property
    def axis_indices(self) -> tuple[AxisIndex, ...]:
        return self.attributes[0]  # type: ignore[no-any-return]

    @property
    def idx(self) -> list[int | slice | torch.Tensor]:
        """The indices as integers, slices and tensors."""
        return as_torch(self.axis_indices)

    def is_identity(self) -> bool:
        """Whether the node fills the result."""
        return self.shape == self.node.shape and all(
            entry == FULL for entry in canonical(self.axis_indices, self.shape)
        )

    def with_sizes(self, learnt: Unifier) -> Circuit:
        index, shape = self.attributes
        if is_concrete(shape):
            return self
        return self._make((index, tuple(map(learnt.resolve, shape))), self.children, self.op_name)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        (child,), (index, shape) = self.children, self.attributes
        part = indexed_shape(index, shape, f"the shape {format_shape(shape)}")
        unifier = Unifier()
        try:
            if len(part) != child.rank:
                raise SizeMismatch
            for left, right in zip(part, child.shape, strict=True):
                unifier.unify(left, right)
        except SizeMismatch:
            raise ShapeError(
                f"Scatter {self.name!r}: {format_index(index)} of {format_shape(shape)} has shape "
                f"{format_shape(part)}, "
                f"but {child!r} has {format_shape(child.shape)}",
                hint="the indexed part of the result's shape must have the node's shape",
            ) from None
        return tuple(map(unifier.resolve, shape)), child.torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        batch = gained(self, children)
        index, shape = self.attributes
        return self._make(((FULL,) * len(batch.shape) + index, batch.shape + shape), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """Along the axes that the node fills; the others keep their zeros."""
        shape = self.attributes[1]
        where = canonical(self.axis_indices, shape)
        taken = tuple(entry if own == FULL else FULL for entry, own in zip(index, where, strict=True))
        left = indexed_shape(taken, shape, repr(self))
        attributes = (without_integers(where, taken), left)
        reads = ((self.node, without_integers(taken, where)),)
        return Pushed(taken, reads, lambda children: self._make(attributes, children, self.op_name))

    def _text(self) -> str:
        index, shape = self.attributes
        return f"{format_index(index)} {format_shape(shape)}"
