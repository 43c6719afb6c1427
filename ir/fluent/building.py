"""The methods of a circuit that build a node over it: arithmetic, indexing and reshaping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from tapeout.ir.errors import ShapeError, UnsupportedError

if TYPE_CHECKING:
    from tapeout.ir.circuit import Circuit
    from tapeout.ir.nodes.add import Add
    from tapeout.ir.nodes.einsum import Einsum
    from tapeout.ir.nodes.general_function import GeneralFunction
    from tapeout.ir.nodes.index import Index
    from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec
    from tapeout.ir.sizes import SizeIn

_AUTONAME: Any = object()
"""Default of `name=` of every kind: the name is made from the children's names. There `name=None` means no name."""


def _named(name: str | None) -> Any:
    """What a kind is given for a name: these methods have no way to ask for none."""
    return _AUTONAME if name is None else name


class CircuitBuilding:
    """Methods of `Circuit` that build a node; without a `name` it is made from the operands' names."""

    __slots__ = ()

    @property
    def _self(self) -> Circuit:
        return cast("Circuit", self)

    # -- arithmetic

    def add(self, other: Circuit, name: str | None = None) -> Add:
        from tapeout.ir.nodes.add import Add

        return Add(self._self, other, name=_named(name))

    def sub(self, other: Circuit, name: str | None = None) -> Add:
        from tapeout.ir.nodes.add import Add

        return Add.minus(self._self, other, _named(name))

    def mul(self, other: Circuit, name: str | None = None) -> Einsum:
        """The elementwise product; one may lack leading axes."""
        from tapeout.ir.nodes.einsum import Einsum

        return Einsum.elementwise_broadcasted(self._self, other, name=_named(name))

    def mul_scalar(self, scalar: float, name: str | None = None, scalar_name: str | None = None) -> Einsum:
        from tapeout.ir.nodes.einsum import Einsum

        return Einsum.scalar_mul(self._self, scalar, _named(name), scalar_name)

    def sum(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> Einsum:
        """The sum over some axes, or all."""
        from tapeout.ir.nodes.einsum import Einsum

        axes = tuple(range(self._self.rank))
        kept = tuple(a for a in axes if a not in _axes(axis, len(axes), self._self))
        return Einsum((self._self, axes), out_axes=kept, name=_named(name))

    def mean(
        self, axis: int | Sequence[int] | None = None, name: str | None = None, scalar_name: str | None = None
    ) -> Einsum:
        """The mean over some axes, or all; their sizes must be known."""
        from tapeout.ir.circuit import auto_name
        from tapeout.ir.nodes.einsum import Einsum
        from tapeout.ir.nodes.scalar import Scalar

        node = self._self
        axes = tuple(range(node.rank))
        reduced = _axes(axis, len(axes), node)
        count = 1
        for a in reduced:
            size = node.shape[a]
            if not isinstance(size, int):
                raise UnsupportedError(
                    f"the mean of {node!r} over an axis of symbolic size {size}",
                    hint="use last_dim_size and reciprocal",
                )
            count *= size
        label = auto_name(_AUTONAME, [node], "mean_div_{}") if scalar_name is None else scalar_name
        kept = tuple(a for a in axes if a not in reduced)
        args = ((node, axes), (Scalar(1.0 / count, (), label), ()))
        return Einsum(*args, out_axes=kept, name=_named(name))

    def max(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> GeneralFunction:
        """The maximum over some axes, or all."""
        return self._reduce("max", axis, name)

    def min(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> GeneralFunction:
        """The minimum over some axes, or all."""
        return self._reduce("min", axis, name)

    def reduce(self, op_name: str, axis: int | Sequence[int] | None = None, name: str | None = None) -> Circuit:
        """`sum`, `mean`, or the function of that name over some axes, or all: these become the last one.

        Raises:
            ParseError: if there is no such function.
        """
        if op_name in ("sum", "mean"):
            return self.sum(axis, name) if op_name == "sum" else self.mean(axis, name)
        return self._reduce(op_name, axis, name)

    def _reduce(self, function: str, axis: int | Sequence[int] | None, name: str | None) -> GeneralFunction:
        from tapeout.ir.nodes.general_function import GeneralFunction
        from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec

        node = self._self
        reduced = _axes(axis, node.rank, node)
        last = Rearrange(node, RearrangeSpec.combine_axes_at_end(node.rank, sorted(reduced)))
        return GeneralFunction.new_by_name(last, spec_name=function, name=_named(name))

    # -- indexing and reshaping

    def index(self, index: Sequence[Any], name: str | None = None) -> Index:
        """See `Index`."""
        from tapeout.ir.nodes.index import Index

        return Index(self._self, index, _named(name))

    def expand_at_axes(
        self, axes: int | Iterable[int], counts: int | Iterable[SizeIn] | None = None, name: str | None = None
    ) -> Rearrange:
        """New axes at the given positions of the result, of the given sizes (1 without `counts`)."""
        from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec
        from tapeout.ir.sizes import as_shape

        node = self._self
        where = [axes] if isinstance(axes, int) else list(axes)
        sizes = list(
            [1] * len(where) if counts is None else [counts] * len(where) if isinstance(counts, int) else counts
        )
        total = node.rank + len(where)
        if len(_axes(where, total, node)) != len(where) or len(sizes) != len(where):
            raise ShapeError(
                f"cannot expand {node!r} at axes {where} with sizes {sizes}",
                hint="give each new axis once, and as many sizes as axes (or none: they are 1)",
            )
        spec = RearrangeSpec.expand_at_axes(node.rank, [axis % total for axis in where], as_shape(sizes))
        return Rearrange(node, spec, _named(name))

    def unsqueeze(self, axes: int | Iterable[int], name: str | None = None) -> Rearrange:
        """New axes of size 1 at the given positions of the result."""
        return self.expand_at_axes(axes, None, name)

    def squeeze(self, axes: int | Sequence[int], name: str | None = None) -> Rearrange:
        """Without the given axes, which must be of size 1."""
        from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec

        node = self._self
        gone = _axes(axes, node.rank, node)
        kept = [axis for axis in range(node.rank) if axis not in gone]
        spec = RearrangeSpec.between([None if axis in gone else axis for axis in range(node.rank)], kept)
        return Rearrange(node, spec, _named(name))

    def flatten(self, name: str | None = None) -> Rearrange:
        """All axes as one."""
        from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec

        return Rearrange(self._self, RearrangeSpec.flatten(self._self.rank), _named(name))

    def unflatten(self, shape: Iterable[SizeIn], name: str | None = None) -> Rearrange:
        """The one axis as several.

        Raises:
            ShapeError: if there is not one axis, or the product of the sizes is another.
        """
        if self._self.rank != 1:
            raise ShapeError(
                f"unflatten takes a node with one axis, not {self._self!r}", hint="use unflatten_axis(axis, shape)"
            )
        return self.unflatten_axis(0, shape, name)

    def unflatten_axis(self, axis: int, shape: Iterable[SizeIn], name: str | None = None) -> Rearrange:
        """One axis as several."""
        from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec

        (at,) = _axes(axis, self._self.rank, self._self)
        spec = RearrangeSpec.unflatten_axis(self._self.rank, at, shape)
        return Rearrange(self._self, spec, _named(name))

    def rearrange(self, spec: RearrangeSpec, name: str | None = None) -> Rearrange:
        from tapeout.ir.nodes.rearrange import Rearrange

        return Rearrange(self._self, spec, _named(name))

    def rearrange_str(self, string: str, name: str | None = None) -> Rearrange:
        from tapeout.ir.nodes.rearrange import Rearrange

        return Rearrange.from_string(self._self, string, _named(name))


def _axes(axis: int | Sequence[int] | None, rank: int, node: Circuit) -> set[int]:
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"{node!r} has no axis {axis}", hint=f"axes are from {-rank} to {rank - 1}")
    return {a % rank for a in axes}
