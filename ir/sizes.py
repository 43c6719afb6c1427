"""Sizes of axes: plain integers, and symbolic sizes that unify with them.

A symbolic size is an integer factor times a product of named dimensions (`SEQ`, `2*HALF`). The
dimension `?` is a wildcard: it says that nothing is known, and agrees with everything.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from tapeout.ir.errors import ShapeError
from tapeout.ir.quote import quote

_WILDCARD = "?"
_PLAIN_DIM = re.compile(r"(?![0-9]+$)\w+")


@dataclass(frozen=True, slots=True)
class SymbolicSize:
    """`factor` times the product of the named dimensions in `dims` (sorted)."""

    factor: int
    dims: tuple[str, ...]

    @property
    def is_unknown(self) -> bool:
        return _WILDCARD in self.dims

    def __str__(self) -> str:
        if self.is_unknown:
            return _WILDCARD
        names = [name if _PLAIN_DIM.fullmatch(name) else quote(name) for name in self.dims]
        return "*".join(([] if self.factor == 1 else [str(self.factor)]) + names)

    __repr__ = __str__

    def __mul__(self, other: Size) -> Size:
        return multiply((self, other))

    __rmul__ = __mul__


Size = int | SymbolicSize
Shape = tuple[Size, ...]
SizeIn = Size | None
"""What a user may write for a size: `None` is the wildcard."""


def dim(name: str) -> SymbolicSize:
    """A symbolic size of one named dimension, such as `dim("SEQ")`."""
    return SymbolicSize(1, (name,))


UNKNOWN = dim(_WILDCARD)
BATCH, SEQ, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, MLP, VOCAB = map(
    dim, ("BATCH", "SEQ", "HIDDEN", "HEADS", "KV_HEADS", "HEAD_SIZE", "MLP", "VOCAB")
)


def symbolic_sizes(count: int = 26) -> list[SymbolicSize]:
    """Numbered symbolic sizes `0s`, `1s`, ...: distinct dimensions without a meaning of their own."""
    return [dim(f"{number}s") for number in range(count)]


def as_shape(shape: Iterable[SizeIn]) -> Shape:
    """The shape with `None` read as the wildcard size.

    Raises:
        ShapeError: if a size is negative or no integer.
    """
    return tuple(
        [UNKNOWN if size is None else size if isinstance(size, SymbolicSize) else _whole(size) for size in shape]
    )


def _whole(size: int) -> int:
    if type(size) is int and size >= 0:
        return size
    if not isinstance(size, SupportsIndex) or isinstance(size, bool) or operator.index(size) < 0:
        raise ShapeError(
            f"not a size: {size!r}", hint="a size is an integer from 0, a symbolic size, or None for unknown"
        )
    return operator.index(size)


def format_shape(shape: Sequence[Size]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def is_concrete(shape: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in shape)


def multiply(sizes: Iterable[Size]) -> Size:
    factor, dims = 1, list[str]()
    for size in sizes:
        if isinstance(size, int):
            factor *= size
        else:
            factor *= size.factor
            dims += size.dims
    if _WILDCARD in dims:
        return UNKNOWN
    return SymbolicSize(factor, tuple(sorted(dims))) if dims else factor


def add(left: Size, right: Size) -> Size:
    """The sum, or the wildcard where it is no product of dimensions (`SEQ + 1`)."""
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    if left == 0 or right == 0:
        return right if left == 0 else left
    if isinstance(left, SymbolicSize) and isinstance(right, SymbolicSize) and left.dims == right.dims:
        return UNKNOWN if left.is_unknown else SymbolicSize(left.factor + right.factor, left.dims)
    return UNKNOWN


def divide(size: Size, divisor: Size) -> Size | None:
    """`size / divisor`, the wildcard where that is unknown, or None where it cannot be whole."""
    if size == UNKNOWN or divisor == UNKNOWN:
        return UNKNOWN
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if divisor and size % divisor == 0 else None
    if isinstance(size, int):
        return UNKNOWN
    factor, dims = (divisor, ()) if isinstance(divisor, int) else (divisor.factor, divisor.dims)
    rest = list(size.dims)
    for name in dims:
        if name not in rest:
            return UNKNOWN
        rest.remove(name)
    if factor == 0 or size.factor % factor:
        return None
    quotient = size.factor // factor
    return SymbolicSize(quotient, tuple(rest)) if rest else quotient


class SizeMismatch(Exception):
    """Two sizes that cannot be equal; whoever asked turns it into a ShapeError with the facts."""


class Unifier:
    """Equalities between sizes inside one node: what is learnt of a dimension holds for all its axes."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[str, Size] = {}

    def resolve(self, size: Size) -> Size:
        """The size with everything filled in that has been learnt."""
        if isinstance(size, int) or not self.known:
            return size
        while isinstance(size, SymbolicSize) and any(name in self.known for name in size.dims):
            size = multiply([size.factor, *(self.known.get(name, dim(name)) for name in size.dims)])
        return size

    def unify(self, left: Size, right: Size) -> Size:
        """The more specific of two sizes that must be equal.

        Raises:
            SizeMismatch: if they cannot be equal.
        """
        if isinstance(right, int) and isinstance(left, SymbolicSize) and left.factor == 1 and len(left.dims) == 1:
            (name,) = left.dims  # by far the most frequent: a dimension of which nothing is known yet
            if name not in self.known and name != _WILDCARD:
                self.known[name] = right
                return right
        if left == right:
            return left
        left, right = self.resolve(left), self.resolve(right)
        if left == right or right == UNKNOWN:
            return left
        if left == UNKNOWN:
            return right
        if isinstance(left, int):
            left, right = right, left
        if isinstance(left, int):
            raise SizeMismatch
        return self._learn(left, right)

    def _learn(self, left: SymbolicSize, right: Size) -> Size:
        """Binds a dimension of `left`, now known to equal `right`, if only one is open."""
        if isinstance(right, SymbolicSize) and len(left.dims) > 1 and len(right.dims) == 1:
            left, right = right, left
        if isinstance(right, SymbolicSize) and len(left.dims) > 1:
            if left.dims == right.dims and left.factor != right.factor:
                raise SizeMismatch
            return right
        if len(left.dims) > 1:
            return right
        if isinstance(right, SymbolicSize) and len(right.dims) == 1 and right.factor < left.factor:
            left, right = right, left  # HEADS and 3*KV_HEADS: it is HEADS that is learnt
        quotient = divide(right, left.factor)
        if quotient is None or (isinstance(right, SymbolicSize) and left.dims == right.dims):
            raise SizeMismatch
        if quotient != UNKNOWN and left.dims[0] not in getattr(quotient, "dims", ()):
            self.known[left.dims[0]] = quotient
        return right
