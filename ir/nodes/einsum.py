"""`Einsum`: products and sums over named axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

import torch

from tapeout.ir.axis_index import FULL
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name
from tapeout.ir.dtypes import join_dtypes
from tapeout.ir.errors import ParseError, ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed, without_integers
from tapeout.ir.nodes.scalar import Scalar
from tapeout.ir.sizes import Shape, Size, SizeMismatch, Unifier, format_shape

Axes = tuple[int, ...]


class Einsum(Circuit):
    """An einsum. Axes are integers; axes equal across operands run together, those not in the output are summed.

    A repeated axis in an operand takes a diagonal, a repeated axis in the output makes one.
    Sizes of one axis must be equal: size 1 does not broadcast. An empty Einsum is 1.

    Args:
        args: pairs of a node and its axes.
        out_axes: the axes of the result, each of which must occur in an operand.
        name: the node's name.

    Raises:
        ShapeError: if ranks or sizes do not fit, or an output axis has no operand.
        TypeMismatchError: if two known dtypes differ.
    """

    __slots__ = ()

    def __new__(
        cls, *args: tuple[Circuit, Sequence[int]], out_axes: Sequence[int], name: str | None = _AUTONAME
    ) -> Einsum:
        nodes = tuple(node for node, _ in args)
        return cls._build(nodes, tuple(tuple(axes) for _, axes in args), tuple(out_axes), name)

    @classmethod
    def _build(cls, nodes: tuple[Circuit, ...], in_axes: tuple[Axes, ...], out_axes: Axes, name: str | None) -> Einsum:
        return cls._make((in_axes, out_axes), nodes, auto_name(name, nodes, joiner=" * ", bracketed=("Add", "Concat")))

    @staticmethod
    def from_einsum_string(string: str, *nodes: Circuit, name: str | None = _AUTONAME) -> Einsum:
        """An einsum written with one letter an axis: `"qd,cd->qc"`.

        Raises:
            ParseError: if the string is no einsum.
            ShapeError: if it does not fit the nodes.
        """
        left, arrow, right = string.replace(" ", "").partition("->")
        operands = left.split(",") if left or nodes else []
        if not arrow or not all(part.isalpha() or part == "" for part in [*operands, right]):
            raise ParseError(f"not an einsum: {string!r}", hint='write one letter an axis, such as "qd,cd->qc"')
        in_axes = _as_many(string, tuple(map(read_axes, operands)), nodes)
        return Einsum._build(nodes, in_axes, read_axes(right), name)

    @staticmethod
    def from_fancy_string(string: str, *nodes: Circuit, name: str | None = _AUTONAME) -> Einsum:
        """An einsum written with a word an axis, the words apart: `"query dim, key dim -> query key"`.

        Raises:
            ParseError: if the string is no einsum.
            ShapeError: if it does not fit the nodes.
        """
        left, arrow, right = string.partition("->")
        operands = [part.split() for part in left.split(",")] if left.strip() or nodes else []
        if not arrow or not all(word.isidentifier() for part in [*operands, right.split()] for word in part):
            raise ParseError(
                f"not an einsum: {string!r}", hint='write one word an axis, such as "query dim, key dim -> query key"'
            )
        numbers: dict[str, int] = {}
        in_axes, (out_axes,) = (
            tuple(tuple(numbers.setdefault(word, len(numbers)) for word in part) for part in side)
            for side in (operands, [right.split()])
        )
        return Einsum._build(nodes, _as_many(string, in_axes, nodes), out_axes, name)

    @staticmethod
    def from_nodes_ints(
        nodes: Sequence[Circuit],
        input_axes: Sequence[Sequence[int]],
        output_ints: Sequence[int],
        name: str | None = _AUTONAME,
    ) -> Einsum:
        """The same as the constructor, with nodes and axes apart.

        Raises:
            ShapeError: if there are not as many axes as nodes, or see the constructor.
        """
        if len(nodes) != len(input_axes):
            raise ShapeError(
                f"an Einsum of {len(nodes)} nodes and {len(input_axes)} tuples of axes",
                hint="give the axes of each node",
            )
        return Einsum(*zip(nodes, input_axes, strict=True), out_axes=output_ints, name=name)

    @staticmethod
    def scalar_mul(
        node: Circuit, scalar: float, name: str | None = _AUTONAME, scalar_name: str | None = None
    ) -> Einsum:
        """`scalar * node`."""
        axes = tuple(range(node.rank))
        return Einsum._build((node, Scalar(scalar, (), scalar_name)), (axes, ()), axes, name)

    @staticmethod
    def elementwise_broadcasted(*nodes: Circuit, name: str | None = _AUTONAME) -> Einsum:
        """The elementwise product, broadcasting: aligned on the right, axes of size 1 expand."""
        rank = max((node.rank for node in nodes), default=0)
        full = {i for node in nodes for i, size in enumerate(node.shape, rank - node.rank) if size != 1}
        fresh = count(rank)
        axes = tuple(
            tuple(next(fresh) if size == 1 and i in full else i for i, size in enumerate(node.shape, rank - node.rank))
            for node in nodes
        )
        return Einsum._build(nodes, axes, tuple(range(rank)), name)

    @staticmethod
    def identity(node: Circuit, name: str | None = _AUTONAME) -> Einsum:
        """The einsum that returns its one operand."""
        axes = tuple(range(node.rank))
        return Einsum._build((node,), (axes,), axes, name)

    @staticmethod
    def empty(name: str | None = _AUTONAME) -> Einsum:
        """The einsum without operands: 1."""
        return Einsum(out_axes=(), name=name)

    @staticmethod
    def new_outer_product(
        *nodes: Circuit, name: str | None = _AUTONAME, out_axes_permutation: Sequence[int] | None = None
    ) -> Einsum:
        """The outer product; the axes of the nodes one after another, or in another order."""
        axes: list[Axes] = []
        start = 0
        for node in nodes:
            axes.append(tuple(range(start, start + node.rank)))
            start += node.rank
        out_axes = range(start) if out_axes_permutation is None else out_axes_permutation
        return Einsum._build(nodes, tuple(axes), tuple(out_axes), name)

    @staticmethod
    def new_diag(node: Circuit, ints: Sequence[int], name: str | None = _AUTONAME) -> Einsum:
        """The node on the diagonals of a larger one: `ints` are the axes of the result, equal ones run together."""
        return Einsum._build((node,), (tuple(dict.fromkeys(ints)),), tuple(ints), name)

    @staticmethod
    def new_trace(node: Circuit, ints: Sequence[int], name: str | None = _AUTONAME) -> Einsum:
        """Diagonals of the node: `ints` are its axes, of which equal ones run together."""
        return Einsum._build((node,), (tuple(ints),), tuple(dict.fromkeys(ints)), name)

    @property
    def args(self) -> list[tuple[Circuit, Axes]]:
        return list(zip(self.children, self.in_axes, strict=True))

    @property
    def in_axes(self) -> tuple[Axes, ...]:
        return self.attributes[0]  # type: ignore[no-any-return]

    @property
    def out_axes(self) -> Axes:
        return self.attributes[1]  # type: ignore[no-any-return]

    def without_numbers(self) -> tuple[float, list[tuple[Circuit, Axes]]]:
        """The product of the operands that are plain numbers (Scalars of shape []), and the other operands."""
        factor, operands = 1.0, list[tuple[Circuit, Axes]]()
        for child, axes in self.args:
            if isinstance(child, Scalar) and not axes:
                factor *= child.value
            else:
                operands.append((child, axes))
        return factor, operands

    def all_input_axes(self) -> list[Axes]:
        return list(self.in_axes)

    def reduced_axes(self) -> set[int]:
        """The axes that are summed."""
        return {axis for axes in self.in_axes for axis in axes} - set(self.out_axes)

    def next_axis(self) -> int:
        """An integer that no axis has."""
        return max((axis for axes in (*self.in_axes, self.out_axes) for axis in axes), default=-1) + 1

    def normalize_ints(self) -> Einsum:
        """The same einsum, its axes numbered in the order in which they occur."""
        order = dict.fromkeys(axis for axes in (*self.in_axes, self.out_axes) for axis in axes)
        number = {axis: i for i, axis in enumerate(order)}
        in_axes = tuple(tuple(number[axis] for axis in axes) for axes in self.in_axes)
        return Einsum._build(self.children, in_axes, tuple(number[axis] for axis in self.out_axes), self.op_name)

    def evolve(self, args: Iterable[tuple[Circuit, Axes]] | None = None, out_axes: Axes | None = None) -> Einsum:
        """The same einsum with other operands or other output axes, under the same name."""
        return Einsum(
            *(self.args if args is None else args),
            out_axes=self.out_axes if out_axes is None else out_axes,
            name=self.op_name,
        )

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        in_axes, out_axes = self.attributes
        sizes: dict[int, Size] = {}
        unifier = Unifier()
        for child, axes in zip(self.children, in_axes, strict=True):
            if len(axes) != len(child.shape):
                raise ShapeError(
                    f"Einsum {self.name!r} ({self._text()}) gives {len(axes)} axes to an operand of rank {child.rank}",
                    facts=[repr(child)],
                    hint="write one letter for each axis of the operand",
                )
            for axis, size in zip(axes, child.shape, strict=True):
                known = sizes.get(axis)
                if known is None:
                    sizes[axis] = size
                elif known != size:
                    sizes[axis] = self._unify(unifier, axis, known, size)
        for axis in out_axes:
            if axis not in sizes:
                raise ShapeError(
                    f"Einsum {self.name!r} ({self._text()}) has an output axis that no operand has",
                    hint="an output axis must occur before the arrow; add an axis with Rearrange (repeat)",
                )
        shape = tuple(sizes[axis] for axis in out_axes)
        if unifier.known:
            shape = tuple(map(unifier.resolve, shape))
        return shape, join_dtypes(self, self.children)

    def _unify(self, unifier: Unifier, axis: int, left: Size, right: Size) -> Size:
        try:
            return unifier.unify(left, right)
        except SizeMismatch:
            raise ShapeError(
                f"Einsum {self.name!r} ({self._text()}): axis {axis_letter(axis)!r} has sizes {left} and {right}",
                facts=[f"{child!r}" for child in self.children],
                hint="sizes of one axis must be equal, and size 1 does not broadcast in an einsum; "
                f"operands have shapes {' and '.join(format_shape(child.shape) for child in self.children)}",
            ) from None

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        batch = gained(self, children)
        start = self.next_axis()
        new = tuple(range(start, start + len(batch.shape)))
        in_axes = tuple(new[len(new) - extra :] + axes for extra, axes in zip(batch.ranks, self.in_axes, strict=True))
        return self._make((in_axes, new + self.out_axes), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """To the operands that have the axis; an integer takes the axis out of the einsum. Diagonals take none."""
        once = [self.out_axes.count(axis) == 1 for axis in self.out_axes]
        taken = tuple(entry if ok else FULL for entry, ok in zip(index, once, strict=True))
        entries = dict(zip(self.out_axes, taken, strict=True))
        reads = tuple((child, tuple(entries.get(axis, FULL) for axis in axes)) for child, axes in self.args)
        in_axes = tuple(without_integers(axes, part) for axes, (_, part) in zip(self.in_axes, reads, strict=True))
        attributes = (in_axes, without_integers(self.out_axes, taken))
        return Pushed(taken, reads, lambda children: self._make(attributes, children, self.op_name))

    def _text(self) -> str:
        return write_einsum(self.in_axes, self.out_axes)


def _as_many(string: str, in_axes: tuple[Axes, ...], nodes: tuple[Circuit, ...]) -> tuple[Axes, ...]:
    """The axes, if there are as many operands as nodes."""
    if len(in_axes) != len(nodes):
        raise ParseError(
            f"the einsum {string!r} has {len(in_axes)} operands, but {len(nodes)} nodes were given",
            hint="give one node for each part before the arrow",
        )
    return in_axes


def axis_letter(number: int) -> str:
    """a ... z, A ... Z, then Cyrillic letters, then numbers in braces."""
    if not 0 <= number < 180:
        return f"{{{number}}}"
    if number < 26:
        return chr(ord("a") + number)
    return chr(ord("A") + number - 26) if number < 52 else chr(0x400 + number - 52)


def axis_number(letter: str) -> int:
    """The axis that `axis_letter` writes with that letter."""
    if "a" <= letter <= "z":
        return ord(letter) - ord("a")
    return ord(letter) - ord("A") + 26 if "A" <= letter <= "Z" else ord(letter) - 0x400 + 52


def read_axes(word: str) -> Axes:
    """The axes that a word of letters stands for."""
    return tuple(map(axis_number, word))


def write_einsum(in_axes: tuple[Axes, ...], out_axes: Axes) -> str:
    """The einsum with a letter an axis: `"qd,cd->qc"`."""
    return ",".join(map(write_axes, in_axes)) + "->" + write_axes(out_axes)


def write_axes(axes: Axes) -> str:
    """The letters of the axes."""
    return "".join(map(axis_letter, axes))
