"""`SetSymbolicShape`: a node under another, symbolic shape."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tapeout.ir.axis_index import indexed_shape
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.errors import ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed
from tapeout.ir.sizes import Shape, SizeIn, SizeMismatch, Unifier, as_shape, format_shape


class SetSymbolicShape(Circuit):
    """Its child, typed with `shape`, which must agree with the child's: it says what unknown sizes are called.

    Raises:
        ShapeError: if the shapes cannot be equal.
    """

    __slots__ = ()

    def __new__(cls, node: Circuit, shape: Iterable[SizeIn], name: str | None = _AUTONAME) -> SetSymbolicShape:
        return cls._make((as_shape(shape),), (node,), auto_name(name, [node], "{} set_shape", bracketed=OPERATORS))

    @property
    def node(self) -> Circuit:
        return self.children[0]

    def with_sizes(self, learnt: Unifier) -> Circuit:
        shape = tuple(map(learnt.resolve, self.attributes[0]))
        return self if shape == self.attributes[0] else self._make((shape,), self.children, self.op_name)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        (child,), (shape,) = self.children, self.attributes
        unifier = Unifier()
        try:
            if len(shape) != child.rank:
                raise SizeMismatch
            # A concrete size of the child stays: what is known is never forgotten.
            sizes = [unifier.unify(left, right) for left, right in zip(shape, child.shape, strict=True)]
        except SizeMismatch:
            raise ShapeError(
                f"SetSymbolicShape {self.name!r}: {format_shape(shape)} does not fit {child!r}",
                hint="ranks must be equal and sizes compatible",
            ) from None
        return tuple(map(unifier.resolve, sizes)), child.torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        batch = gained(self, children)
        return self._make((batch.shape + self.attributes[0],), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """Passes through; the shape shrinks."""
        small = indexed_shape(index, self.shape, repr(self))
        reads = ((self.node, index),)
        return Pushed(index, reads, lambda children: self._make((small,), children, self.op_name))

    def _text(self) -> str:
        return format_shape(self.attributes[0])
