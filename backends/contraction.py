"""The order in which products of many operands are computed, two at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from opt_einsum import contract_path

from tapeout.ir.einsum import Axes, write_einsum
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.sizes import Size

_GUESSED_BATCH = 64
"""How long the batch axis is taken to be where nobody says."""


def in_pairs(
    operands: Sequence[Axes], out: Axes, sizes: Mapping[int, Size], rows: int | None = None
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
