"""`Scalar`: one number broadcast to a shape. It has no dtype of its own and takes its siblings'."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tapeout.ir.axis_index import indexed_shape
from tapeout.ir.circuit import Circuit
from tapeout.ir.index_rules import AxisIndices, Pushed
from tapeout.ir.sizes import Shape, SizeIn, Unifier, as_shape, is_concrete


class Scalar(Circuit):
    """One number, broadcast to `shape`.

    Args:
        value: the number.
        shape: the shape it is broadcast to; `()` for a plain number.
        name: the node's name.
    """

    __slots__ = ()

    def __new__(cls, value: float, shape: Iterable[SizeIn] = (), name: str | None = None) -> Scalar:
        # Kept as hexadecimal text: 0.0 and -0.0 are equal as numbers, and a NaN is not equal to itself.
        return cls._make((float(value).hex(), as_shape(shape)), (), name)

    @property
    def value(self) -> float:
        return float.fromhex(self.attributes[0])

    def is_zero(self) -> bool:
        return self.value == 0.0

    def is_one(self) -> bool:
        return self.value == 1.0

    def evolve_shape(self, shape: Iterable[SizeIn]) -> Scalar:
        """The same number broadcast to another shape."""
        return Scalar(self.value, shape, self.op_name)

    def with_sizes(self, learnt: Unifier) -> Circuit:
        return self if is_concrete(self.shape) else self.evolve_shape(map(learnt.resolve, self.shape))

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return self.attributes[1], None

    def push_index(self, index: AxisIndices) -> Pushed:
        """The same number with the smaller shape."""
        small = self.evolve_shape(indexed_shape(index, self.shape, repr(self)))
        return Pushed(index, (), lambda _: small)

    def _text(self) -> str:
        return format_number(self.value)


def format_number(value: float) -> str:
    """The shortest decimal text that reads back as the same number, without `.0` for whole ones."""
    return repr(int(value)) if value.is_integer() and abs(value) < 1e16 and str(value) != "-0.0" else repr(value)
