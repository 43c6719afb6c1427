"""Rules of einsums. Operands that are no numbers keep their order, and einsums of einsums stay apart."""

from __future__ import annotations

from math import prod

from tapeout.ir import Circuit, Einsum, Rearrange, RearrangeSpec, Scalar
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.sizes import Size
from tapeout.passes.rules.common import is_float

_Args = list[tuple[Circuit, Axes]]


def einsum_of_nothing(node: Einsum) -> Circuit | None:
    """`einsum(->) --> 1`"""
    return None if node.children else Scalar(1.0)


def einsum_with_zero(node: Einsum) -> Circuit | None:
    """`x * 0 --> 0[n]`"""
    if not _has_numbers(node):
        return None
    zeros = any(isinstance(child, Scalar) and child.is_zero() for child in node.children)
    return Scalar(0.0, node.shape) if zeros and is_float(node) else None


def einsum_of_scalars(node: Einsum) -> Circuit | None:
    """`einsum(a,a->; 2[3], 5[3]) --> 30`"""
    if not _has_numbers(node):
        return None
    scalars, others = _taken_apart(node)
    out = node.out_axes
    factor = _factor(scalars, set(out))
    if others or factor is None or len(set(out)) < len(out):
        return None
    return Scalar(factor, node.shape)


def einsum_repeats(node: Einsum) -> Circuit | None:
    """`einsum(a,b->ab; x, 2[n]) --> rearrange(2 * x, a -> a n)`"""
    if not _has_numbers(node):
        return None
    scalars, others = _taken_apart(node)
    if not scalars or not others:
        return None
    kept = {axis for _, axes in others for axis in axes}
    new = [i for i, axis in enumerate(node.out_axes) if axis not in kept]
    counts = [node.shape[i] for i in new]
    gone = {node.out_axes[i] for i in new}
    if not new or len(gone) < len(new) or not all(isinstance(count, int) for count in counts):
        return None
    args = [*others, *(_without_axes(scalar, axes, gone) for scalar, axes in scalars)]
    smaller = Einsum(*args, out_axes=[axis for axis in node.out_axes if axis in kept], name=None)
    return Rearrange(smaller, RearrangeSpec.expand_at_axes(smaller.rank, new, counts), name=None)


def einsum_scalars_last(node: Einsum) -> Circuit | None:
    """`einsum(,a,a,b->a; 2, x, 3[n], 1[5]) --> einsum(a,->a; x, 30)`"""
    if not _has_numbers(node):
        return None
    scalars, others = _taken_apart(node)
    if not scalars or not others or _is_scalar_last(node, len(scalars)):
        return None
    kept = {axis for _, axes in others for axis in axes}
    factor = _factor(scalars, kept)
    if factor is None or not is_float(node) or not kept.issuperset(node.out_axes):
        return None
    return Einsum(*others, (Scalar(factor), ()), out_axes=node.out_axes, name=None)


def einsum_times_one(node: Einsum) -> Circuit | None:
    """`1 * x --> x`"""
    if not _has_numbers(node):
        return None
    ones = [axes == () and isinstance(child, Scalar) and child.is_one() for child, axes in node.args]
    args = [arg for arg, one in zip(node.args, ones, strict=True) if not one]
    if not args or len(args) == len(node.children) or not is_float(node):
        return None
    return Einsum(*args, out_axes=node.out_axes, name=None)


def einsum_identity(node: Einsum) -> Circuit | None:
    """`einsum(ab->ab; x) --> x`"""
    return node.children[0] if _is_plain(node) and node.in_axes[0] == node.out_axes else None


def einsum_permutes(node: Einsum) -> Circuit | None:
    """`einsum(ab->ba; x) --> rearrange(x, a b -> b a)`"""
    if not _is_plain(node) or sorted(node.in_axes[0]) != sorted(node.out_axes):
        return None
    order = [node.in_axes[0].index(axis) for axis in node.out_axes]
    return Rearrange(node.children[0], RearrangeSpec.permute(order), name=None)


def einsum_scales_scaled(node: Einsum) -> Circuit | None:
    """`2 * (3 * x) --> 6 * x`"""
    outer = _scaling(node)
    inner = None if outer is None else _scaling(outer[0])
    if outer is None or inner is None:
        return None
    axes = tuple(range(node.rank))
    return Einsum((inner[0], axes), (Scalar(outer[1] * inner[1]), ()), out_axes=axes, name=None)


def einsum_renumbered(node: Einsum) -> Circuit | None:
    """`einsum(qd,cd->qc) --> einsum(ab,cb->ac)`: axes are numbered as they occur"""
    if _is_numbered(node.in_axes):
        return None
    order = dict.fromkeys(axis for axes in node.in_axes for axis in axes)
    numbers = {axis: i for i, axis in enumerate(order)}
    args = [(child, [numbers[axis] for axis in axes]) for child, axes in node.args]
    return Einsum(*args, out_axes=[numbers[axis] for axis in node.out_axes], name=None)


def _is_numbered(in_axes: tuple[Axes, ...]) -> bool:
    """Whether new axes come in the order 0, 1, 2, ..."""
    count = 0
    for axes in in_axes:
        for axis in axes:
            if axis == count:
                count += 1
            elif not 0 <= axis < count:
                return False
    return True


def _has_numbers(node: Einsum) -> bool:
    return Scalar in map(type, node.children)


def _taken_apart(node: Einsum) -> tuple[list[tuple[Scalar, Axes]], _Args]:
    """The operands that are numbers, and the others."""
    scalars: list[tuple[Scalar, Axes]] = []
    others: _Args = []
    for child, axes in zip(node.children, node.in_axes, strict=True):
        if isinstance(child, Scalar):
            scalars.append((child, axes))
        else:
            others.append((child, axes))
    return scalars, others


def _factor(scalars: list[tuple[Scalar, Axes]], kept: set[int]) -> float | None:
    """The product of the numbers, times the sizes of the axes not in `kept`, which are summed.

    None if such a size is unknown.
    """
    sizes: dict[int, Size] = {}
    for scalar, axes in scalars:
        for axis, size in zip(axes, scalar.shape, strict=True):
            if axis not in kept and not isinstance(sizes.get(axis), int):
                sizes[axis] = size
    factor = prod(scalar.value for scalar, _ in scalars)
    for size in sizes.values():
        if not isinstance(size, int):
            return None
        factor *= size
    return factor


def _is_scalar_last(node: Einsum, count: int) -> bool:
    """Whether the only number of `count` is one without axes, in the last place."""
    return count == 1 and node.in_axes[-1] == () and isinstance(node.children[-1], Scalar)


def _without_axes(scalar: Scalar, axes: Axes, gone: set[int]) -> tuple[Circuit, Axes]:
    kept = [i for i, axis in enumerate(axes) if axis not in gone]
    return Scalar(scalar.value, [scalar.shape[i] for i in kept]), tuple(axes[i] for i in kept)


def _is_plain(node: Einsum) -> bool:
    """Whether there is one operand, without diagonals."""
    return len(node.children) == 1 and len(set(node.in_axes[0])) == len(node.in_axes[0])


def _scaling(node: Circuit) -> tuple[Circuit, float] | None:
    """x and c if the node is `c * x`."""
    if not isinstance(node, Einsum) or len(node.children) != 2:
        return None
    (x, scalar), (axes, none), out = node.children, node.in_axes, node.out_axes
    if not isinstance(scalar, Scalar) or none or axes != out or len(set(axes)) < len(axes):
        return None
    return x, scalar.value


EINSUM_RULES = (
    einsum_of_nothing,
    einsum_with_zero,
    einsum_of_scalars,
    einsum_repeats,
    einsum_scalars_last,
    einsum_times_one,
    einsum_identity,
    einsum_permutes,
    einsum_scales_scaled,
    einsum_renumbered,
)
