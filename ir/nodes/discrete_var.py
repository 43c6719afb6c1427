"""`DiscreteVar`: a random variable over the rows of a node."""

from __future__ import annotations

import torch

from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.errors import ShapeError
from tapeout.ir.nodes.scalar import Scalar
from tapeout.ir.nodes.tag import Tag
from tapeout.ir.sizes import Shape, SizeMismatch, Unifier, format_shape


class DiscreteVar(Circuit):
    """One of the entries of `values` along axis 0, at random. It is sampled, never evaluated.

    Variables with the same `probs_and_group` node are sampled together.

    Args:
        values: the entries, along axis 0.
        probs_and_group: the probabilities, as a node of shape `[n]`, usually a Tag; without it a
            fresh uniform group is made: two `DiscreteVar(x)` are independent.
        name: the node's name.

    Raises:
        ShapeError: if `values` has no axis 0 or the probabilities do not fit it.
    """

    __slots__ = ()

    def __new__(
        cls, values: Circuit, probs_and_group: Circuit | None = None, name: str | None = _AUTONAME
    ) -> DiscreteVar:
        if not values.shape:
            raise ShapeError(
                f"DiscreteVar of {values!r}: it has no axis to sample", hint="stack the samples along axis 0"
            )
        if probs_and_group is None:
            size = values.shape[0]
            if not isinstance(size, int):
                raise ShapeError(
                    f"DiscreteVar of {values!r}: the number of samples is the symbolic size {size}",
                    hint="give probs_and_group, or values of a known size",
                )
            probs_and_group = DiscreteVar.uniform_probs_and_group(size)
        return cls._make((), (values, probs_and_group), auto_name(name, [values], "{} var", bracketed=OPERATORS))

    @staticmethod
    def new_uniform(values: Circuit, name: str | None = _AUTONAME) -> DiscreteVar:
        """A variable of a fresh uniform group."""
        return DiscreteVar(values, None, name)

    @staticmethod
    def uniform_probs_and_group(size: int, name: str | None = None) -> Tag:
        """A fresh group of `size` equally likely samples.

        Raises:
            ShapeError: if size is not positive.
        """
        if size < 1:
            raise ShapeError(f"a group of {size} samples", hint="a dataset needs at least one row")
        return Tag.new_with_random_uuid(Scalar(1.0 / size, (size,)), name)

    @property
    def values(self) -> Circuit:
        return self.children[0]

    @property
    def probs_and_group(self) -> Circuit:
        return self.children[1]

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        values, group = self.children
        try:
            if group.rank != 1:
                raise SizeMismatch
            Unifier().unify(values.shape[0], group.shape[0])
        except SizeMismatch:
            raise ShapeError(
                f"DiscreteVar {self.name!r}: values {format_shape(values.shape)} and probabilities "
                f"{format_shape(group.shape)} do not fit",
                hint="probabilities have one axis, of the size of the values' axis 0",
            ) from None
        return values.shape[1:], values.torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        raise ShapeError(
            f"DiscreteVar {self.name!r} cannot be expanded over its values",
            hint="replace the variable itself, or sample it first",
        )

    def _text(self) -> str:
        return ""
