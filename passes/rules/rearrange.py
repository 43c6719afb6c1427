"""Rules of rearrangements: one canonical form for each, and one node for several in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from tapeout.ir import Circuit, Rearrange, RearrangeSpec, Scalar
from tapeout.ir.nodes.rearrange_spec import Groups
from tapeout.ir.sizes import UNKNOWN, Shape, Size, SymbolicSize, divide, multiply


def rearrange_of_scalar(node: Rearrange) -> Circuit | None:
    """`rearrange(2[n]) --> 2[m]`"""
    return Scalar(node.node.value, node.shape) if isinstance(node.node, Scalar) else None


def rearrange_of_rearrange(node: Rearrange) -> Circuit | None:
    """`rearrange(rearrange(x, a b -> b a), b a -> (b a)) --> rearrange(x, a b -> (b a))`"""
    inner = node.node
    if not isinstance(inner, Rearrange):
        return None
    spec = composed_spec(inner.spec, node.spec, inner.node.shape)
    return None if spec is None else Rearrange(inner.node, spec, name=None)


def rearrange_canonical(node: Rearrange) -> Circuit | None:
    """`a (b c) 1 -> a 1 (b c) --> a b 1 -> a 1 b`: no part that is never apart, none of size 1"""
    spec = canonical_spec(node.spec, node.node.shape)
    return None if spec is None or spec == node.spec else Rearrange(node.node, spec, name=None)


def rearrange_identity(node: Rearrange) -> Circuit | None:
    """`rearrange(x, a b -> a b) --> x`"""
    return node.node if node.spec.is_identity() else None


@lru_cache(maxsize=4096)
def canonical_spec(spec: RearrangeSpec, shape: Shape) -> RearrangeSpec | None:
    """The spec in the one form that all specs have that do the same to that shape.

    Elementary axes are numbered as they occur, have not size 1, and do not stay together on both sides.
    None where sizes are unknown.
    """
    sizes = spec.sizes(shape)
    inputs, outputs = _without_ones(spec.input_ints, sizes), _without_ones(spec.output_ints, sizes)
    everything = [number for group in outputs for number in group]
    if UNKNOWN in sizes or len(set(everything)) < len(everything):
        return None
    runs = _runs(inputs, outputs)
    return _numbered(
        tuple(tuple(number for number in group if number in runs) for group in inputs),
        tuple(tuple(number for number in group if number in runs) for group in outputs),
        {first: multiply(sizes[number] for number in run) for first, run in runs.items()},
    )


def _without_ones(groups: Groups, sizes: Sequence[Size]) -> Groups:
    return tuple(tuple(number for number in group if sizes[number] != 1) for group in groups)


def _runs(inputs: Groups, outputs: Groups) -> dict[int, list[int]]:
    """Elementary axes that are neighbours wherever they are, in one list each, by the first of them."""
    after = dict(pair for group in inputs for pair in pairwise(group))
    read = {number for group in inputs for number in group}
    runs: dict[int, list[int]] = {}
    for group in outputs:
        first = -1
        for previous, number in zip((-1, *group), group, strict=False):
            together = after.get(previous) == number if number in read else previous not in read
            if previous != -1 and together:
                runs[first].append(number)
            else:
                first = number
                runs[first] = [number]
    return runs


def _numbered(inputs: Groups, outputs: Groups, sizes: dict[int, Size]) -> RearrangeSpec:
    """The spec with axes numbered as they occur, and sizes where the input's shape does not tell them."""
    told = {group[0] for group in inputs if len(group) == 1}
    for group in inputs:
        symbolic = [number for number in group if isinstance(sizes[number], SymbolicSize)]
        if len(symbolic) == 1:
            told.add(symbolic[0])
    open_sizes = (None if number in told else sizes.get(number) for number in range(max(sizes, default=-1) + 1))
    return RearrangeSpec(inputs, outputs, tuple(open_sizes)).numbered()


@lru_cache(maxsize=4096)
def composed_spec(inner: RearrangeSpec, outer: RearrangeSpec, shape: Shape) -> RearrangeSpec | None:
    """What `inner` does to that shape and then `outer`.

    None where they split an axis between them in ways that no one spec expresses, or sizes are unknown.
    """
    inner_sizes = inner.sizes(shape)
    middle = tuple(multiply(inner_sizes[number] for number in group) for group in inner.output_ints)
    outer_sizes = outer.sizes(middle)
    if UNKNOWN in inner_sizes or UNKNOWN in outer_sizes:
        return None
    pieces: list[Size] = []
    below: dict[int, list[int]] = {}
    above: dict[int, list[int]] = {}
    for left, right in zip(inner.output_ints, outer.input_ints, strict=True):
        parts = [(below.setdefault(number, []), inner_sizes[number]) for number in left]
        others = [(above.setdefault(number, []), outer_sizes[number]) for number in right]
        if not _split_alike(parts, others, pieces):
            return None
    for number in (number for group in outer.output_ints for number in group):
        if number not in above:
            pieces.append(outer_sizes[number])
            above[number] = [len(pieces) - 1]
    spec = RearrangeSpec(_spelt(inner.input_ints, below), _spelt(outer.output_ints, above), tuple(pieces))
    return canonical_spec(spec, shape)


def _split_alike(
    left: Iterable[tuple[list[int], Size]], right: Iterable[tuple[list[int], Size]], pieces: list[Size]
) -> bool:
    """Splits two lists of parts of one axis into common pieces, entered into the lists.

    False if there are no such pieces.
    """
    lefts = [part for part in reversed(list(left)) if part[1] != 1]
    rights = [part for part in reversed(list(right)) if part[1] != 1]
    while lefts and rights:
        (into_left, a), (into_right, b) = lefts.pop(), rights.pop()
        more, less = divide(a, b), divide(b, a)
        if more is not None and more != UNKNOWN:
            pieces.append(b)
            if more != 1:
                lefts.append((into_left, more))
        elif less is not None and less != UNKNOWN:
            pieces.append(a)
            rights.append((into_right, less))
        else:
            return False
        into_left.append(len(pieces) - 1)
        into_right.append(len(pieces) - 1)
    return not lefts and not rights


def _spelt(groups: Groups, parts: dict[int, list[int]]) -> Groups:
    return tuple(tuple(piece for number in group for piece in parts.get(number, ())) for group in groups)


REARRANGE_RULES = (rearrange_of_scalar, rearrange_of_rearrange, rearrange_canonical, rearrange_identity)
