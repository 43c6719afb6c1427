"""`RearrangeSpec`: which elementary axes make up the axes of the input and of the output of a Rearrange."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from tapeout.ir.axis_index import FULL, AxisIndex, indexed_size
from tapeout.ir.errors import ParseError
from tapeout.ir.index_rules import AxisIndices, without_integers
from tapeout.ir.nodes.einsum import axis_letter
from tapeout.ir.sizes import UNKNOWN, Shape, Size, SizeIn, SizeMismatch, Unifier, divide, multiply

Groups = tuple[tuple[int, ...], ...]
_GROUPS = re.compile(r"([^()]|\([^()]*\))*")
_TOKEN = re.compile(r"\(|\)|[A-Za-z_]\w*(?::\d+)?|\d+")


@dataclass(frozen=True, slots=True)
class RearrangeSpec:
    """Elementary axes as integers, grouped into the axes of the input and of the output.

    Attributes:
        input_ints: for each axis of the input, the elementary axes that it is the product of.
        output_ints: likewise for the output. An axis of the output alone is a repeat.
        int_sizes: for each elementary axis its size, or None where the input's shape tells it.
    """

    input_ints: Groups
    output_ints: Groups
    int_sizes: tuple[Size | None, ...]

    def __post_init__(self) -> None:
        # Lists are taken too.
        object.__setattr__(self, "input_ints", tuple(map(tuple, self.input_ints)))
        object.__setattr__(self, "output_ints", tuple(map(tuple, self.output_ints)))
        object.__setattr__(self, "int_sizes", tuple(self.int_sizes))

    @staticmethod
    def from_string(string: str) -> RearrangeSpec:
        """Reads einops' notation, with sizes after a colon: `"s (h:12 d) -> h s d"`, `"a b -> a 1 b"`.

        Raises:
            ParseError: if it is not that.
        """
        left, arrow, right = string.partition("->")
        if not arrow:
            raise ParseError(f"not a rearrangement: {string!r}", hint='write it as "a (b c:2) -> b a c"')
        numbers: dict[str, int] = {}
        sizes: list[Size | None] = []
        groups = [_read_side(side, numbers, sizes, string) for side in (left, right)]
        spec = RearrangeSpec(groups[0], groups[1], tuple(sizes))
        if spec.has_repeats():
            raise ParseError(
                f"an axis occurs twice on one side: {string!r}", hint="use Einsum to take or make a diagonal"
            )
        return spec

    @staticmethod
    def permute(order: Sequence[int]) -> RearrangeSpec:
        """Output axis `i` is input axis `order[i]`."""
        return RearrangeSpec(tuple((i,) for i in range(len(order))), tuple((i,) for i in order), (None,) * len(order))

    new_permute = permute

    @staticmethod
    def between(have: Sequence[int | None], want: Sequence[int | None]) -> RearrangeSpec:
        """From axes called `have` to the order `want`; None is an axis of size 1 that goes away, or comes."""
        numbers = {axis: i for i, axis in enumerate(axis for axis in have if axis is not None)}
        inputs, outputs = (tuple(() if axis is None else (numbers[axis],) for axis in side) for side in (have, want))
        return RearrangeSpec(inputs, outputs, (None,) * len(numbers))

    @staticmethod
    def ident(rank: int) -> RearrangeSpec:
        return RearrangeSpec.permute(range(rank))

    @staticmethod
    def flatten(rank: int) -> RearrangeSpec:
        return RearrangeSpec.combine_axes_at_end(rank, range(rank))

    @staticmethod
    def combine_axes_at_end(rank: int, axes: Sequence[int]) -> RearrangeSpec:
        """The given axes become one, in this order, behind the others."""
        kept = tuple((i,) for i in range(rank) if i not in axes)
        return RearrangeSpec(tuple((i,) for i in range(rank)), (*kept, tuple(axes)), (None,) * rank)

    @staticmethod
    def unflatten(shape: Iterable[SizeIn]) -> RearrangeSpec:
        """The one axis becomes several of these sizes."""
        return RearrangeSpec.unflatten_axis(1, 0, shape)

    @staticmethod
    def unflatten_axis(rank: int, axis: int, shape: Iterable[SizeIn]) -> RearrangeSpec:
        """Axis `axis` becomes several axes of the sizes `shape`; at most one of these may be unknown (None)."""
        parts = tuple(shape)
        ints = iter(range(rank + len(parts)))
        groups = tuple(tuple(next(ints) for _ in range(len(parts) if i == axis else 1)) for i in range(rank))
        sizes: list[Size | None] = [None] * (rank - 1 + len(parts))
        sizes[axis : axis + len(parts)] = parts
        return RearrangeSpec(groups, tuple((number,) for group in groups for number in group), tuple(sizes))

    @staticmethod
    def expand_at_axes(rank: int, axes: Sequence[int], counts: Sequence[Size]) -> RearrangeSpec:
        """New axes of sizes `counts` at the positions `axes` of the output (count 1 unsqueezes)."""
        position = dict(zip(axes, range(rank, rank + len(axes)), strict=True))
        old = iter(range(rank))
        output = tuple(
            ((position[i],) if counts[position[i] - rank] != 1 else ()) if i in position else (next(old),)
            for i in range(rank + len(axes))
        )
        return RearrangeSpec(tuple((i,) for i in range(rank)), output, (None,) * rank + tuple(counts))

    @staticmethod
    def unsqueeze(rank: int, axes: int | Sequence[int]) -> RearrangeSpec:
        """New axes of size 1 at the positions `axes` of the output."""
        where = [axes] if isinstance(axes, int) else axes
        return RearrangeSpec.expand_at_axes(rank, where, [1] * len(where))

    @staticmethod
    def prepend_batch_shape(shape: Sequence[Size], old_rank: int) -> RearrangeSpec:
        """Repeats along new axes of these sizes in front."""
        return RearrangeSpec.expand_at_axes(old_rank, range(len(shape)), shape)

    def numbered(self) -> RearrangeSpec:
        """The same with the elementary axes numbered as they occur, without those that occur on no side."""
        order = dict.fromkeys(number for group in self.input_ints + self.output_ints for number in group)
        numbers = {number: i for i, number in enumerate(order)}
        inputs, outputs = (
            tuple(tuple(numbers[number] for number in group) for group in side)
            for side in (self.input_ints, self.output_ints)
        )
        return RearrangeSpec(inputs, outputs, tuple(self.int_sizes[number] for number in order))

    def has_repeats(self) -> bool:
        """Whether an elementary axis occurs more than once on one side; in a valid spec none does."""
        sides = ([n for group in groups for n in group] for groups in (self.input_ints, self.output_ints))
        return any(len(set(side)) < len(side) for side in sides)

    def is_identity(self) -> bool:
        return self.input_ints == self.output_ints

    def is_permute(self) -> bool:
        ins, outs = self.input_ints, self.output_ints
        return all(len(group) == 1 for group in ins + outs) and sorted(ins) == sorted(outs)

    def get_fwd_permutation(self) -> list[int] | None:
        """For each axis of the output the axis of the input that it is; None if this is no permutation."""
        return [self.input_ints.index(group) for group in self.output_ints] if self.is_permute() else None

    def batched(self, count: int) -> RearrangeSpec:
        """The same with `count` more axes in front, left alone."""
        start = len(self.int_sizes)
        front = tuple((start + i,) for i in range(count))
        return RearrangeSpec(front + self.input_ints, front + self.output_ints, self.int_sizes + (None,) * count)

    def takes_index(self, group: tuple[int, ...], entry: AxisIndex) -> bool:
        """Whether an output axis of these parts can take an index: if nothing is split or merged."""
        if len(group) != 1:
            return not group and isinstance(entry, int)
        return all(len(parts) == 1 for parts in self.input_ints if group[0] in parts)

    def indexed(self, index: AxisIndices, entries: Mapping[int, AxisIndex]) -> RearrangeSpec:
        """The spec between the indexed input and output.

        Args:
            index: of the output, each entry one that `takes_index` allows.
            entries: the same by elementary axis.
        """
        outputs = without_integers(self.output_ints, index)
        inputs = tuple(group for group in self.input_ints if not isinstance(entry_of_group(group, entries), int))
        read = {number for group in inputs for number in group}
        sizes = tuple(_indexed_part(size, entries.get(n, FULL), n in read) for n, size in enumerate(self.int_sizes))
        return RearrangeSpec(inputs, outputs, sizes).numbered()

    def sizes(self, shape: Shape) -> tuple[Size, ...]:
        """The size of every elementary axis for an input of that shape.

        Raises:
            SizeMismatch: if it does not fit.
        """
        if len(shape) != len(self.input_ints):
            raise SizeMismatch
        unifier = Unifier()
        sizes: list[Size | None] = list(self.int_sizes)
        for group, total in zip(self.input_ints, shape, strict=True):
            open_ints = [number for number in group if sizes[number] is None]
            if len(open_ints) > 1:
                raise SizeMismatch
            known = multiply(size for number in group if (size := sizes[number]) is not None)
            if not open_ints:
                unifier.unify(known, total)
                continue
            quotient = divide(total, known)
            if quotient is None:
                raise SizeMismatch
            sizes[open_ints[0]] = quotient
        if None in sizes:
            raise SizeMismatch
        return tuple(unifier.resolve(size) for size in sizes if size is not None)

    def steps(self, shape: Shape) -> Steps:
        """What is done to an input of that shape, one operation after the other.

        Raises:
            SizeMismatch: if it does not fit.
        """
        sizes = self.sizes(shape)
        before = [number for group in self.input_ints for number in group]
        after = [number for group in self.output_ints for number in group]
        left = [number for number in before if number in after]
        return Steps(
            split=tuple(sizes[number] for number in left),
            order=tuple(left.index(number) for number in after if number in left),
            new=tuple(i for i, number in enumerate(after) if number not in left),
            full=tuple(sizes[number] for number in after),
            out=tuple(multiply(sizes[number] for number in group) for group in self.output_ints),
        )

    def numbered_text(self) -> str:
        """All that the spec holds: letters stand for numbers, and the axes that occur on no side follow `;`."""

        def axis(number: int) -> str:
            size = self.int_sizes[number]
            return axis_letter(number) + ("" if size is None else f":{size}")

        def side(groups: Groups) -> str:
            words = (" ".join(map(axis, group)) for group in groups)
            return " ".join(
                (word if len(group) == 1 else f"({word})") if group else "1"
                for word, group in zip(words, groups, strict=True)
            )

        used = {number for group in self.input_ints + self.output_ints for number in group}
        rest = " ".join(axis(number) for number in range(len(self.int_sizes)) if number not in used)
        return f"{side(self.input_ints)} -> {side(self.output_ints)} ; {rest}".strip()

    def to_string(self) -> str:
        """In einops' notation with sizes: `"s (h:12 d) -> h s d"`."""
        return str(self)

    def __str__(self) -> str:
        def word(group: tuple[int, ...]) -> str:
            if len(group) == 1:
                return letter(group[0])
            return "(" + " ".join(map(letter, group)) + ")" if group else "1"

        inputs = {number for group in self.input_ints for number in group}
        order = dict.fromkeys(number for group in self.input_ints + self.output_ints for number in group)
        names = {number: axis_letter(i) for i, number in enumerate(order)}

        def letter(number: int) -> str:
            size = self.int_sizes[number]
            if number not in inputs:
                return str(size) if isinstance(size, int) else f"{names[number]}:{size}"
            return names[number] if size is None else f"{names[number]}:{size}"

        return " ".join(map(word, self.input_ints)) + " -> " + " ".join(map(word, self.output_ints))


@dataclass(frozen=True, slots=True)
class Steps:
    """A rearrangement as a reshape, a transpose, new axes, a repeat along them, and a reshape.

    Attributes:
        split: the shape of elementary axes, without those of size 1 that the output lacks.
        order: of these axes, as the output has them.
        new: where the output's own axes stand among the others.
        full: the shape after the repeat.
        out: the output's shape.
    """

    split: Shape
    order: tuple[int, ...]
    new: tuple[int, ...]
    full: Shape
    out: Shape


def entry_of_group(group: tuple[int, ...], entries: Mapping[int, AxisIndex]) -> AxisIndex:
    """The index of an axis of these parts, given those of the parts."""
    return entries.get(group[0], FULL) if len(group) == 1 else FULL


def _indexed_part(size: Size | None, entry: AxisIndex, is_read: bool) -> Size | None:
    """The size of an elementary axis after indexing; unsaid where the input's shape tells it."""
    if entry == FULL or size is None:
        return size
    return None if is_read else indexed_size(entry, size, "a repeated axis")


def _read_side(side: str, numbers: dict[str, int], sizes: list[Size | None], string: str) -> Groups:
    groups: list[tuple[int, ...]] = []
    open_group: list[int] | None = None
    if _TOKEN.sub("", side).strip() or not _GROUPS.fullmatch(side):
        raise ParseError(f"not a rearrangement: {string!r}", hint='write it as "a (b c:2) -> b a c"')
    for token in _TOKEN.findall(side):
        if token == "(":
            open_group = []
        elif token == ")":
            groups.append(tuple(open_group or ()))
            open_group = None
        elif token == "1" and open_group is None:
            groups.append(())
        else:
            number = _read_axis(token, numbers, sizes, string)
            if open_group is None:
                groups.append((number,))
            else:
                open_group.append(number)
    return tuple(groups)


def _read_axis(token: str, numbers: dict[str, int], sizes: list[Size | None], string: str) -> int:
    if token.isdigit():
        sizes.append(int(token))
        return len(sizes) - 1
    name, _, size = token.partition(":")
    if name not in numbers:
        numbers[name] = len(sizes)
        sizes.append(None)
    if size:
        if sizes[numbers[name]] not in (None, int(size)):
            raise ParseError(f"axis {name!r} has two sizes: {string!r}", hint="give its size once")
        sizes[numbers[name]] = int(size)
    return numbers[name]


@lru_cache(maxsize=4096)
def spec_text(spec: RearrangeSpec) -> str:
    """The spec in einops' notation if that reads back as the same spec, else `spec.numbered_text()`."""
    text = str(spec)
    try:
        return text if RearrangeSpec.from_string(text) == spec else spec.numbered_text()
    except ParseError:
        return spec.numbered_text()


def common_factors(source: Shape, target: Shape) -> RearrangeSpec | None:
    """The spec over elementary axes that make both shapes by merging neighbours; None if there are none."""
    bounds: list[Size] = [1]
    ends = [_walls(shape)[1:] for shape in (source, target)]
    while ends[0] or ends[1]:
        first = _first_end(*(side[0] if side else None for side in ends))
        if first is None:
            return None
        if first != bounds[-1]:
            bounds.append(first)
        for side in ends:
            if side and side[0] == first:
                side.pop(0)
    place = {bound: i for i, bound in enumerate(bounds)}

    def groups(shape: Shape) -> Groups:
        return tuple(tuple(range(place[start], place[stop])) for start, stop in pairwise(_walls(shape)))

    sizes = tuple(divide(stop, start) for start, stop in pairwise(bounds))
    return RearrangeSpec(groups(source), groups(target), sizes)


def _walls(shape: Shape) -> list[Size]:
    """The products of the first 0, 1, 2, ... sizes."""
    walls: list[Size] = [1]
    for size in shape:
        walls.append(multiply((walls[-1], size)))
    return walls


def _first_end(left: Size | None, right: Size | None) -> Size | None:
    """Which of two products comes first: the one that divides the other. None if neither is known to."""
    if left is None or right is None or left == right:
        known = right if left is None else left
        return None if known in (0, UNKNOWN) else known
    if divide(right, left) not in (None, UNKNOWN) and right != 0:
        return left
    return right if divide(left, right) not in (None, UNKNOWN) and left != 0 else None
