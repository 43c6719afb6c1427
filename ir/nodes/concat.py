"""`Concat`: joins nodes along one axis."""

from __future__ import annotations

import torch

from tapeout.ir.axis_index import FULL, AxisIndex, Span
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.dtypes import join_dtypes
from tapeout.ir.errors import ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed, count_integers
from tapeout.ir.sizes import Shape, Size, SizeMismatch, Unifier, add, format_shape


class Concat(Circuit):
    """Its children, one after another along `axis`; all other sizes must be equal.

    Args:
        args: at least one node.
        axis: the axis, negative ones from the end.
        name: the node's name.

    Raises:
        ShapeError: if there is no child, the axis does not exist, or other sizes differ.
        TypeMismatchError: if two known dtypes differ.
    """

    __slots__ = ()

    def __new__(cls, *args: Circuit, axis: int, name: str | None = _AUTONAME) -> Concat:
        name = auto_name(name, args, joiner=" ++ ", bracketed=OPERATORS)
        if not args:
            raise ShapeError(f"Concat {name!r} has no children", hint="give at least one node")
        rank = args[0].rank
        if not -rank <= axis < rank:
            hint = f"use an axis from {-rank} to {rank - 1}" if rank else "unsqueeze the nodes, or use Concat.stack"
            raise ShapeError(f"Concat {name!r} along axis {axis} of nodes of rank {rank}", hint=hint)
        return cls._make((axis % rank,), args, name)

    @staticmethod
    def stack(*args: Circuit, axis: int, name: str | None = _AUTONAME) -> Concat:
        """Joins nodes along a new axis."""
        rank = args[0].rank + 1 if args else 1
        parts = [
            node.unsqueeze(axis % rank).rename(auto_name(_AUTONAME, [node], "{}_unsqueeze_stack")) for node in args
        ]
        return Concat(*parts, axis=axis, name=name)

    @property
    def axis(self) -> int:
        return self.attributes[0]  # type: ignore[no-any-return]

    def get_sizes_at_axis(self) -> list[Size]:
        return [child.shape[self.axis] for child in self.children]

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        axis, first = self.axis, self.children[0]
        unifier = Unifier()
        sizes = list(first.shape)
        for child in self.children[1:]:
            try:
                if child.rank != first.rank:
                    raise SizeMismatch
                for i, size in enumerate(child.shape):
                    sizes[i] = add(sizes[i], size) if i == axis else unifier.unify(sizes[i], size)
            except SizeMismatch:
                raise ShapeError(
                    f"Concat {self.name!r} along axis {axis}: {format_shape(first.shape)} and "
                    f"{format_shape(child.shape)} do not fit",
                    facts=[f"{first!r}", f"{child!r}"],
                    hint="ranks and all sizes but the one at the axis must be equal",
                ) from None
        return tuple(map(unifier.resolve, sizes)), join_dtypes(self, self.children)

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        batch = gained(self, children)
        full = tuple(
            repeat_to_batch(child, extra, batch.shape) for child, extra in zip(children, batch.ranks, strict=True)
        )
        return self._make((self.axis + len(batch.shape),), full, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """To all children; along the axis itself an integer or a slice chooses those in which it lies."""
        before, after = index[: self.axis], index[self.axis + 1 :]
        parts = _parts(self.children, self.axis, index[self.axis])
        taken = index if parts else (*before, FULL, *after)
        parts = parts or [(child, FULL) for child in self.children]
        reads = tuple((child, (*before, entry, *after)) for child, entry in parts)
        axis = self.axis - count_integers(before)

        def build(children: tuple[Circuit, ...]) -> Circuit:
            return children[0] if len(children) == 1 else self._make((axis,), children, self.op_name)

        return Pushed(taken, reads, build)

    def _text(self) -> str:
        return str(self.axis)


def repeat_to_batch(child: Circuit, extra: int, batch: Shape) -> Circuit:
    """The child, which has the last `extra` of the batch axes, repeated along the others."""
    missing = len(batch) - extra
    if missing == 0:
        return child
    repeated = child.expand_at_axes(range(missing), batch[:missing])
    return repeated.rename(auto_name(_AUTONAME, [child], "{} rep_for_batch"))


def _parts(children: tuple[Circuit, ...], axis: int, entry: AxisIndex) -> list[tuple[Circuit, AxisIndex]]:
    """The children in which an entry of the joined axis lies, each with its own entry; none if it lies in no part."""
    bounds = _bounds(entry)
    start, parts = 0, list[tuple[Circuit, AxisIndex]]()
    for child in children:
        size = child.shape[axis]
        if not isinstance(size, int) or bounds is None:
            return []
        low, high = max(bounds[0] - start, 0), min(bounds[1] - start, size)
        if low < high:
            parts.append((child, low if isinstance(entry, int) else Span(low, high)))
        start += size
    return parts


def _bounds(entry: AxisIndex) -> tuple[int, int] | None:
    """From where to where a canonical entry reaches; None if that is not said."""
    if isinstance(entry, int):
        return entry, entry + 1
    if isinstance(entry, Span) and entry.stop is not None:
        return entry.start or 0, entry.stop
    return None
