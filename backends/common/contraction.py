"""Einsums taken apart into what backends compute: elementwise products, sums, diagonals, products of two operands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from opt_einsum import contract_path

from tapeout.ir.errors import UnsupportedError
from tapeout.ir.nodes.einsum import Axes, write_einsum
from tapeout.ir.sizes import Size

V = TypeVar("V")
Operand = tuple[V, Axes]
Sizes = Mapping[int, Size]

_GUESSED_BATCH = 64
"""How long the batch axis is taken to be where nobody says."""


class Products(ABC, Generic[V]):
    """Einsums of a backend's values: what is common is here, single steps are the backend's.

    Products of many operands go two at a time, in the cheapest order: torch would choose the order anew at each call,
    TorchScript goes from left to right, Inductor cannot choose while the batch has no size, and ONNX has no such
    operator that is fast.

    Args:
        rows: a typical length of the batch axis; None for a guess.
    """

    def __init__(self, rows: int | None) -> None:
        self.rows = rows

    @abstractmethod
    def permuted(self, value: V, order: Sequence[int]) -> V:
        """The value with its axes in another order."""

    @abstractmethod
    def aligned(self, value: V, axes: Axes, out: Axes) -> V:
        """The value with its axes in the order of the result and size 1 where it lacks one, left out in front."""

    @abstractmethod
    def times(self, left: V, right: V) -> V:
        """The product entry by entry of values that broadcast."""

    @abstractmethod
    def sum_over(self, value: V, places: list[int]) -> V:
        """The sum over some axes, which go away."""

    @abstractmethod
    def of_two(self, first: Operand[V], second: Operand[V], out: Axes, sizes: Sizes) -> V:
        """A product of two operands in which some axes are summed."""

    @abstractmethod
    def diagonal(self, value: V, first: int, second: int) -> V:
        """The entries at equal places of two axes; these are one, the last."""

    @abstractmethod
    def on_diagonal(self, value: V) -> V:
        """The last axis on the diagonal of two, zeros elsewhere."""

    def einsum(self, operands: Sequence[Operand[V]], out: Axes, sizes: Sizes) -> V:
        """The product of at least one operand, summed over the axes that the result lacks."""
        axes = [own for _, own in operands]
        if any(len(set(own)) < len(own) for own in (*axes, out)):
            return self._with_diagonals(operands, out, sizes)
        if set(out).issuperset(axis for own in axes for axis in own):
            return self.elementwise(operands, out)
        if len(operands) == 1:
            value, own = self.summed(operands[0], set(out))
            return self.permuted(value, [own.index(axis) for axis in out])
        if len(operands) == 2:
            return self.of_two(operands[0], operands[1], out, sizes)
        left = list(operands)
        for places, kept in in_pairs(axes, out, sizes, self.rows):
            chosen = [left.pop(i) for i in reversed(places)][::-1]
            left.append((self.einsum(chosen, kept, sizes), kept))
        return left[0][0]

    def elementwise(self, operands: Sequence[Operand[V]], out: Axes) -> V:
        """The product of operands of which the result has all axes."""
        product, *factors = [self.aligned(value, axes, out) for value, axes in operands]
        for factor in factors:
            product = self.times(product, factor)
        return product

    def summed(self, operand: Operand[V], kept: set[int]) -> Operand[V]:
        """The operand summed over the axes that are not kept."""
        value, axes = operand
        gone = [i for i, axis in enumerate(axes) if axis not in kept]
        if not gone:
            return operand
        return self.sum_over(value, gone), tuple(axis for axis in axes if axis in kept)

    def _with_diagonals(self, operands: Sequence[Operand[V]], out: Axes, sizes: Sizes) -> V:
        plain = [self._diagonals(value, axes) for value, axes in operands]
        unique = tuple(dict.fromkeys(out))
        value = self.einsum(plain, unique, sizes)
        have = list(unique)
        for axis in unique:
            for _ in range(out.count(axis) - 1):
                last = [i for i, each in enumerate(have) if i != have.index(axis)] + [have.index(axis)]
                value = self.on_diagonal(self.permuted(value, last))
                have = [*(have[i] for i in last), axis]
        positions: dict[int, list[int]] = {}
        for i, axis in enumerate(have):
            positions.setdefault(axis, []).append(i)
        return self.permuted(value, [positions[axis].pop(0) for axis in out])

    def _diagonals(self, value: V, axes: Axes) -> Operand[V]:
        """The operand with one axis for each that occurs twice."""
        while len(set(axes)) < len(axes):
            twice = next(axis for axis in axes if axes.count(axis) > 1)
            first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
            value = self.diagonal(value, first, second)
            axes = (*(axis for i, axis in enumerate(axes) if i not in (first, second)), twice)
        return value, axes


def in_pairs(
    operands: Sequence[Axes], out: Axes, sizes: Sizes, rows: int | None = None
) -> Iterator[tuple[tuple[int, ...], Axes]]:
    """The cheapest order: again and again the places of operands that go, and the axes of what is put last for them.

    Args:
        operands: the axes of each, none twice.
        out: the axes of the result, none twice.
        sizes: the size of each axis.
        rows: a typical length of the batch axis; None for a guess.

    Raises:
        UnsupportedError: for more than 52 axes.
    """
    guess = {axis: size if isinstance(size, int) else rows or _GUESSED_BATCH for axis, size in sizes.items()}
    shapes = [tuple(guess[axis] for axis in axes) for axes in operands]
    path, _ = contract_path(einsum_text(operands, out), *shapes, shapes=True)
    left = list(operands)
    for step in path:
        places = tuple(sorted(step))
        chosen = [left[i] for i in places]
        left = [axes for i, axes in enumerate(left) if i not in places]
        needed = set(out).union(*left)
        seen = dict.fromkeys(axis for axes in chosen for axis in axes)
        kept = tuple([axis for axis in out if axis in seen] + [axis for axis in seen if axis in needed - set(out)])
        left.append(kept)
        yield places, kept


def einsum_text(operands: Sequence[Axes], out: Axes) -> str:
    """The product as a string for einsum.

    Raises:
        UnsupportedError: for more than 52 axes.
    """
    number = {axis: i for i, axis in enumerate(dict.fromkeys(axis for axes in operands for axis in axes))}
    if len(number) > 52:
        raise UnsupportedError(f"an einsum of {len(number)} axes", hint="torch.einsum has letters for 52")
    return write_einsum(
        tuple(tuple(number[axis] for axis in axes) for axes in operands), tuple(number[axis] for axis in out)
    )
