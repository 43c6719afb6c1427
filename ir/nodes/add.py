"""`Add`: the broadcasting sum."""

from __future__ import annotations

from collections import Counter

import torch

from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name
from tapeout.ir.dtypes import join_dtypes
from tapeout.ir.errors import ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed, broadcast_reads
from tapeout.ir.sizes import Shape, Size, SizeMismatch, Unifier, format_shape


class Add(Circuit):
    """The sum of its children, broadcast against each other as in torch (aligned on the right, size 1 expands).

    An empty Add is 0.

    Raises:
        ShapeError: if the shapes do not broadcast.
        TypeMismatchError: if two known dtypes differ.
    """

    __slots__ = ()

    def __new__(cls, *args: Circuit, name: str | None = _AUTONAME) -> Add:
        return cls._make((), args, auto_name(name, args, joiner=" + ", bracketed=("Concat",)))

    @staticmethod
    def minus(positive: Circuit, negative: Circuit, name: str | None = _AUTONAME) -> Add:
        """`positive - negative`, as a sum with a negated summand."""
        from tapeout.ir.nodes.einsum import Einsum

        negated = Einsum.scalar_mul(negative, -1.0, auto_name(_AUTONAME, [negative], "neg {}"), "neg_1")
        return Add(positive, negated, name=name)

    @staticmethod
    def from_weighted_nodes(*args: tuple[Circuit, float], use_1_weights: bool = False, name: str | None = None) -> Add:
        """The sum of `weight * node`; a weight of 1 is left out unless `use_1_weights`."""
        from tapeout.ir.nodes.einsum import Einsum

        terms = [
            node if weight == 1.0 and not use_1_weights else Einsum.scalar_mul(node, weight) for node, weight in args
        ]
        return Add(*terms, name=name)

    def to_counts(self) -> dict[Circuit, int]:
        """How often each child occurs."""
        return dict(Counter(self.children))

    def nodes_and_rank_differences(self) -> list[tuple[Circuit, int]]:
        """Each child, and how many axes it lacks."""
        return [(child, self.rank - child.rank) for child in self.children]

    def has_broadcast(self) -> bool:
        return any(child.shape != self.shape for child in self.children)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return broadcast_shapes(self), join_dtypes(self, self.children)

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        batch = gained(self, children)
        padded = []
        for child, old, extra in zip(children, self.children, batch.ranks, strict=True):
            missing = self.rank - old.rank
            if extra and missing:  # [s,c] + [c] becomes [h,s,c] + [h,1,c]
                child = child.unsqueeze(range(extra, extra + missing))
            padded.append(child)
        return self._make((), tuple(padded), self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """To all children, but not into axes along which a child broadcasts."""
        return Pushed(index, broadcast_reads(self, index), self.with_children)

    def _text(self) -> str:
        return ""


def broadcast_shapes(node: Circuit) -> Shape:
    """The shape to which the children broadcast.

    Raises:
        ShapeError: if two sizes of an axis differ and neither is 1.
    """
    shapes = [child.shape for child in node.children]
    if not shapes:
        return ()
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    unifier = Unifier()
    out: list[Size] = []
    for position in range(1, max(map(len, shapes)) + 1):
        size: Size = 1
        for shape in shapes:
            other = shape[-position] if len(shape) >= position else 1
            if other == 1:
                continue
            try:
                size = other if size == 1 else unifier.unify(size, other)
            except SizeMismatch:
                raise ShapeError(
                    f"the children of {node.kind} {node.name!r} do not broadcast: sizes {size} and {other} "
                    f"at axis -{position}",
                    facts=[f"{child!r}" for child in node.children],
                    hint=f"shapes are aligned on the right ({' and '.join(map(format_shape, shapes))}) "
                    "and only size 1 expands; "
                    "unsqueeze or rearrange a child first",
                ) from None
        out.append(size)
    return tuple(unifier.resolve(size) for size in reversed(out))
