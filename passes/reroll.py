"""Re-roll: isomorphic siblings become one batched node.

A sum over split heads is a sum of like terms that differ in which slice of a weight they read. Such
terms are found by a signature, computed once from the leaves up: `Index(w, i)` is a hole keyed by `w`
and the axis; a node over holes is keyed by its kind, attributes and its children's keys; everything
else by identity. Terms of equal key are stacked by pushing the stack down: equal children stay shared,
the slices `w[0], w[1], ...` are `w`, a run of them is a slice of `w`, children that repeat in blocks
are stacked once and repeated. What remains is one node expanded over a new leading axis; a sum of such
einsums contracts that axis. Where a term is missing (a patched head), the terms before and behind it are
two groups; a term that something else reads stays by itself, so that nothing is computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tapeout.ir import Add, Array, Circuit, Einsum, Index, Rearrange, RearrangeSpec, Scalar, Symbol, postorder
from tapeout.ir.axis_index import FULL, AxisIndex, Span
from tapeout.ir.walk import depth_first
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots, readers_of

_MIN_GROUP = 2


@register(
    "reroll",
    requires="inlined",
    ensures="like terms of a sum that read slices of shared weights are one batched node",
)
@dataclass(frozen=True)
class Reroll(ExecutionPass):
    """A sum of isomorphic terms that read slices of the same weights becomes one contraction over a head axis."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        readers = readers_of(roots)
        shared = {node for node, by in readers.items() if len(by) + (node in roots) > 1}
        apart = {node for node, by in readers.items() if node in roots or not all(isinstance(each, Add) for each in by)}
        roller = _Roller(origins, set())
        memo: dict[Circuit, Circuit] = {}
        for node in postorder(*roots):
            over = origins.hand_on(node.with_children(tuple([memo[child] for child in node.children])), node)
            roller.apart.update(memo[child] for child in node.children if child in apart)
            new = over if _single(node) in shared else _contracted(over)
            memo[node] = origins.hand_on(roller.roll(new), node)
        return tuple(memo[root] for root in roots)


def _single(node: Circuit) -> Circuit | None:
    """The operand, if the node sums some axes of a single one, perhaps times numbers."""
    if not isinstance(node, Einsum):
        return None
    operands = [child for child in node.children if not isinstance(child, Scalar)]
    return operands[0] if len(operands) == 1 else None


def _contracted(node: Circuit) -> Circuit:
    """`einsum(hsd->sd; einsum(hsv,hvd->hsd)) --> einsum(hsv,hvd->sd)`: a model's own sum over its heads."""
    inner = _single(node)
    if not isinstance(node, Einsum) or not isinstance(inner, Einsum) or len(inner.children) < _MIN_GROUP:
        return node
    axes = node.in_axes[node.children.index(inner)]
    numbers = [child for child in node.children if child is not inner]
    plain = len(set(axes)) == len(axes) and len(set(inner.out_axes)) == len(inner.out_axes)
    if not plain or set(axes) == set(node.out_axes) or any(number.shape for number in numbers):
        return node
    letters = dict(zip(axes, inner.out_axes, strict=True))
    factors = [(number, ()) for number in numbers]
    return Einsum(*inner.args, *factors, out_axes=[letters[axis] for axis in node.out_axes], name=None)


Slot = tuple[Circuit, tuple[AxisIndex | None, ...]]
"""A tensor and what is taken of its axes, None where it is one entry: what slices differ in is which entries."""


class _Roller:
    def __init__(self, origins: Origins, apart: set[Circuit]) -> None:
        self.origins, self.apart = origins, apart
        self._keys: dict[Circuit, int] = {}
        self._numbers: dict[object, int] = {}
        self._stacks: dict[tuple[Circuit, ...], Circuit | None] = {}

    # -- finding

    def key(self, node: Circuit) -> int:
        """Equal for nodes that differ in the positions of their holes only."""
        known = self._keys.get(node)
        if known is not None:
            return known
        new = depth_first([node], lambda each: [child for child in each.children if child not in self._keys])
        for each in new:
            self._keys[each] = self._numbers.setdefault(self._signature(each), len(self._numbers))
        return self._keys[node]

    def _signature(self, node: Circuit) -> object:
        slot = _hole(node)
        if slot is not None:
            return ("hole", *slot)
        keys = tuple(self._keys[child] for child in node.children)
        if all(key == self._numbers.get(child) for key, child in zip(keys, node.children, strict=True)):
            return node  # no hole below: keyed by itself
        return (type(node), node._variety, keys)

    # -- rolling up

    def roll(self, node: Circuit) -> Circuit:
        """The node, its like summands contracted, if it is a sum of such."""
        if not isinstance(node, Add) or len(node.children) < _MIN_GROUP:
            return node
        groups: dict[int, list[Circuit]] = {}
        for child in node.children:
            groups.setdefault(self.key(child), []).append(child)
        if all(len(group) < _MIN_GROUP for group in groups.values()):
            return node
        terms: list[Circuit] = []
        for group in groups.values():
            terms += self._contract(group)
        if len(terms) == len(node.children):
            return node
        return terms[0] if len(terms) == 1 and terms[0].shape == node.shape else Add(*terms, name=None)

    def _contract(self, group: list[Circuit]) -> list[Circuit]:
        """The sum of like terms, as few nodes as possible."""
        count = Counter(group)
        like = [term for term in group if count[term] == 1 and term not in self.apart]
        if len(like) < _MIN_GROUP:
            return group
        terms = [term for term in group if count[term] > 1 or term in self.apart]
        for run in self._runs(like):
            terms += self._contract_run(run)
        return terms

    def _contract_run(self, run: Sequence[Circuit]) -> Sequence[Circuit]:
        stacked = self.stack(tuple(run)) if len(run) >= _MIN_GROUP else None
        if stacked is None:
            return run
        if isinstance(stacked, Einsum):
            summed: Circuit = Einsum(*stacked.args, out_axes=stacked.out_axes[1:], name=None)
        else:
            axes = tuple(range(run[0].rank + 1))
            summed = Einsum((stacked, axes), out_axes=axes[1:], name=None)
        return [self.origins.hand_on(summed, *run)]

    def _runs(self, members: list[Circuit]) -> list[list[Circuit]]:
        """The members parted into as few lists as possible that can be stacked: each reads runs of entries.

        Where one of twelve heads is patched, the others are two runs.
        """
        places = {member: self._places(member) for member in members}
        if len({len(place) for place in places.values()}) > 1:
            return [[member] for member in members]
        members = sorted(members, key=places.__getitem__)
        columns = [list(column) for column in zip(*(places[member] for member in members), strict=True)]
        if all(map(_is_run, columns)):
            return [members]
        best: list[tuple[int, int]] = [(0, 0)]  # for each count of members: how few runs, and where the last begins
        for stop in range(1, len(members) + 1):
            starts = (start for start in range(stop) if all(_is_run(column[start:stop]) for column in columns))
            best.append(min((best[start][0] + 1, start) for start in starts))
        runs = list[list[Circuit]]()
        stop = len(members)
        while stop:
            start = best[stop][1]
            runs.append(members[start:stop])
            stop = start
        return runs[::-1]

    def _places(self, member: Circuit) -> tuple[int, ...]:
        """The positions of the holes below a node, in the order in which they are met."""
        places: list[int] = []
        seen, stack = set[Circuit](), [member]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            slot = _hole(node)
            if slot is not None:
                places += _entries(node)
            else:
                stack += [child for child in reversed(node.children) if self._keys[child] != self._numbers.get(child)]
        return tuple(places)

    def stack(self, members: tuple[Circuit, ...]) -> Circuit | None:
        """The members along a new leading axis without copying a weight; None if there is no such node.

        Only for members of equal key. Equal members are not stacked: the caller shares them.
        """
        if members in self._stacks:
            return self._stacks[members]
        todo = [members]
        while todo:
            current = todo[-1]
            if current in self._stacks:
                todo.pop()
                continue
            missing = [part for part in self._parts(current) if part not in self._stacks]
            if missing:
                todo.extend(missing)
                continue
            todo.pop()
            result = self._stack_over_parts(current)
            if result is not None:
                self.origins.hand_on(result, *current)
            self._stacks[current] = result
        return self._stacks[members]

    def _parts(self, members: tuple[Circuit, ...]) -> list[tuple[Circuit, ...]]:
        """The tuples that must be stacked before the members can be."""
        if _hole(members[0]) is not None:
            return []
        block = _block(members)
        if block > 1:
            return [members[::block]] if len(members) > block else []
        columns = zip(*(member.children for member in members), strict=True)
        return [column for column in columns if len(set(column)) > 1]

    def _stack_over_parts(self, members: tuple[Circuit, ...]) -> Circuit | None:
        if _hole(members[0]) is not None:
            return _stack_holes(members)
        block = _block(members)
        if block > 1:
            inner = self._stacks[members[::block]]
            return None if inner is None else _repeat_blocks(inner, block)
        children = []
        for column in zip(*(member.children for member in members), strict=True):
            child = self._stacks[column] if len(set(column)) > 1 else column[0]
            if child is None:
                return None
            children.append(child)
        return members[0].expand(tuple(children))


def _hole(node: Circuit) -> Slot | None:
    """The slot of which the node is a slice, if it is one of a constant or an input."""
    if not isinstance(node, Index) or not isinstance(node.node, Array | Symbol):
        return None
    kept = tuple(None if isinstance(index, int) else index for index in node.axis_indices)
    return (node.node, kept) if None in kept else None


def _entries(node: Circuit) -> list[int]:
    """Which entries a hole takes, one an axis of which it takes one."""
    indices = zip(node.axis_indices, node.children[0].shape, strict=True)  # type: ignore[attr-defined]
    return [index % int(size) for index, size in indices if isinstance(index, int)]  # type: ignore[arg-type]


def _stack_holes(members: Sequence[Circuit]) -> Circuit | None:
    """Slices of one tensor as a view of it; None if not one axis alone is a run, possibly of repeated entries."""
    slot = _hole(members[0])
    if slot is None or any(_hole(member) != slot for member in members):
        return None
    tensor, kept = slot
    columns = [list(column) for column in zip(*map(_entries, members), strict=True)]
    varying = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1 or not _is_run(columns[varying[0]]):
        return None
    entry_axes = [axis for axis, index in enumerate(kept) if index is None]
    axis, positions = entry_axes[varying[0]], columns[varying[0]]
    block = _block(positions)
    run = positions[::block]
    index = list[AxisIndex](0 if entry is None else entry for entry in kept)
    for entry_axis, column in zip(entry_axes, columns, strict=True):
        index[entry_axis] = column[0]
    index[axis] = FULL if len(run) == tensor.shape[axis] else Span(run[0], run[0] + len(run))
    view = tensor if all(entry == FULL for entry in index) else Index(tensor, tuple(index), name=None)
    leading = sum(not isinstance(entry, int) for entry in index[:axis])
    if leading:
        order = [leading, *(i for i in range(view.rank) if i != leading)]
        view = Rearrange(view, RearrangeSpec.permute(order), name=None)
    return _repeat_blocks(view, block) if block > 1 else view


def _is_run(positions: Sequence[int]) -> bool:
    """Whether the positions are neighbours in order, perhaps each repeated: 3, 4, 5 or 3, 3, 4, 4."""
    run = positions[:: _block(positions)]
    return list(run) == list(range(run[0], run[0] + len(run)))


def _block(items: Sequence[object]) -> int:
    """The largest n such that the items come in blocks of n equal ones: 3 for a, a, a, b, b, b."""
    first = 1
    while first < len(items) and items[first] == items[0]:
        first += 1
    if len(items) % first:
        return 1
    starts = range(0, len(items), first)
    same = all(items[start + i] == items[start] for start in starts for i in range(first))
    return first if same else 1


def _repeat_blocks(node: Circuit, block: int) -> Circuit:
    """Each entry of the leading axis `block` times in place."""
    rank = node.rank
    inputs = tuple((i,) for i in range(rank))
    outputs = ((0, rank), *inputs[1:])
    return Rearrange(node, RearrangeSpec(inputs, outputs, (None,) * rank + (block,)), name=None)
