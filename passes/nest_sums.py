"""Nest sums: sums that have summands in common share the additions.

A flattened residual stream is one long sum before every sublayer, each with all of the one before in it.
Sums of one shape are compared as multisets of summands. Summands that occur in the same sums (the heads
of a layer) become one sum; then each sum is the largest others contained in it and the rest. Nested sums
that nobody else reads are taken apart first and after each round, so that it does not matter how the
summands were nested; what a step adds to a shared sum is a sum of its own again at the end.

Each step that shares something lowers the number of additions, and taking apart keeps it: this ends.
Sums are looked up by their summands; they are never compared all with all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tapeout.ir import Add, Circuit, postorder
from tapeout.ir.errors import PassError
from tapeout.ir.sizes import Shape
from tapeout.ir.walk import depth_first
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots


@register(
    "nest_sums",
    requires="nodes without names, modules inlined",
    ensures="no sum contains another sum of its shape, and no two sums of one shape share two summands that "
    "occur in the same sums",
)
@dataclass(frozen=True)
class NestSums(ExecutionPass):
    """Sums that have summands in common share the additions, and the residual stream becomes a chain.

    A sum that differs from another by one summand is never written as that sum plus (new - old): the old summand
    would be in the result twice, with both signs, which leaves rounding errors where a patched head should have no
    influence at all, and infinities do not cancel.
    """

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        order = list(postorder(*roots))
        table = _Table(roots, order)
        if not table.sums:
            return roots
        table.nest()
        while table.part_steps():
            table.nest()
        new = table.rebuilt(roots, order, origins)
        return roots if new == roots else new


class _Sum:
    """A sum while it is rewritten.

    Attributes:
        node: the Add that it stands for; None for one that was made here.
        shape: its shape.
        terms: its summands, in order.
        exposed: whether something reads it that is not a sum of its shape.
        same: the equal sum that takes its place, if there is one.
        built: the node that it became.
    """

    __slots__ = ("built", "exposed", "node", "same", "shape", "terms")

    def __init__(self, node: Circuit | None, shape: Shape, terms: list[_Term]) -> None:
        self.node = node
        self.shape = shape
        self.terms = terms
        self.exposed = False
        self.same: _Sum | None = None
        self.built: Circuit | None = None


_Term = Circuit | _Sum
_Key = tuple[_Term, int]
"""A summand and its number among equal ones: sets of keys are multisets of summands."""


class _Table:
    """The sums of a circuit."""

    def __init__(self, roots: Roots, order: Sequence[Circuit]) -> None:
        self.sums: dict[Circuit, _Sum] = {}
        self.read_elsewhere: set[Circuit] = set(roots)
        for node in order:
            if isinstance(node, Add) and len(node.children) > 1:
                terms: list[_Term] = [self._term(child, node.shape) for child in node.children]
                self.sums[node] = _Sum(node, node.shape, terms)
                read = [child for child, term in zip(node.children, terms, strict=True) if child in self.sums]
                self.read_elsewhere.update(child for child in read if child.shape != node.shape)
            else:
                self.read_elsewhere.update(node.children)
        for node, found in self.sums.items():
            found.exposed = node in self.read_elsewhere

    def _term(self, child: Circuit, shape: Shape) -> _Term:
        return self.sums.get(child, child) if child.shape == shape else child

    # -- sharing

    def nest(self) -> None:
        """Shares what can be shared, until nothing changes."""
        changed = True
        while changed:
            changed = False
            for same_shape in _by_shape(_without_copies(self._taken_apart())):
                changed |= _share_groups(same_shape)
                changed |= _share_contained(same_shape)

    def _live(self) -> list[_Sum]:
        """The sums that are read, each after those in it."""
        return list(_sums_below(each for each in self.sums.values() if each.exposed and each.same is None))

    def _taken_apart(self) -> list[_Sum]:
        """The sums that are read, with the summands of those in them that nobody else reads."""
        live = self._live()
        uses = Counter(term for each in live for term in each.terms if isinstance(term, _Sum))
        inner = {each for each in live if not each.exposed and uses[each] == 1}
        for each in live:
            if each not in inner and not inner.isdisjoint(each.terms):
                each.terms = _spelt_out(each.terms, inner)
        return [each for each in live if each not in inner]

    # -- the end

    def part_steps(self) -> bool:
        """What is shared comes first in each sum, and what is added to it is a sum of its own.

        Whether two of these are equal: then there is more to share.
        """
        steps: dict[tuple[Shape, frozenset[_Key]], _Sum] = {}
        equal = False
        live = self._live()
        uses = Counter(term for each in live for term in set(each.terms))
        for each in live:
            shared = [term for term in each.terms if self._is_shared(term, each.shape, uses)]
            # A head that is read elsewhere too stays with the other heads, if there is a stream without it.
            shared = [term for term in shared if isinstance(term, _Sum)] or shared
            rest = _without(each.terms, shared)
            if shared and len(rest) > 1 and _has_shape(rest, each.shape):
                key = each.shape, frozenset(_keys(rest))
                equal |= key in steps
                rest = [steps.setdefault(key, _Sum(None, each.shape, rest))]
            each.terms = shared + rest
        return equal

    def _is_shared(self, term: _Term, shape: Shape, uses: Counter[_Term]) -> bool:
        elsewhere = term.exposed if isinstance(term, _Sum) else term in self.read_elsewhere
        return term.shape == shape and (elsewhere or uses[term] > 1)

    def rebuilt(self, roots: Roots, order: Sequence[Circuit], origins: Origins) -> Roots:
        """The circuit over the new sums."""
        live = set(self._live())
        memo: dict[Circuit, Circuit] = {}
        for node in order:
            found = self.sums.get(node)
            if found is None:
                new = node.with_children(tuple([memo[child] for child in node.children]))
            elif _standing_for(found) in live:
                new = _build(_standing_for(found), memo, origins)
            else:
                continue  # nothing reads it any more
            memo[node] = origins.hand_on(new, node)
        return tuple(memo[root] for root in roots)


def _standing_for(each: _Sum) -> _Sum:
    """The sum, or the equal one that takes its place."""
    while each.same is not None:
        each = each.same
    return each


def _same(term: _Term) -> _Term:
    return _standing_for(term) if isinstance(term, _Sum) else term


def _sums_below(sums: Iterable[_Sum]) -> Iterator[_Sum]:
    """The sums and those in them, each after those in it; those that are built are not entered."""
    return depth_first(sums, lambda each: () if each.built is not None else _summed(each))


def _summed(each: _Sum) -> Iterator[_Sum]:
    """The sums in a sum."""
    return (term for term in each.terms if isinstance(term, _Sum))


def _spelt_out(terms: Sequence[_Term], inner: set[_Sum]) -> list[_Term]:
    """The summands, with those of a sum in `inner` in place of the sum."""
    out: list[_Term] = []
    stack = list(reversed(terms))
    while stack:
        term = stack.pop()
        if isinstance(term, _Sum) and term in inner:
            stack += reversed(term.terms)
        else:
            out.append(term)
    return out


def _without(terms: Sequence[_Term], gone: Sequence[_Term]) -> list[_Term]:
    left_out = set(gone)
    return [term for term in terms if term not in left_out]


def _keys(terms: Sequence[_Term]) -> list[_Key]:
    if len(set(terms)) == len(terms):
        return [(term, 0) for term in terms]
    counts: Counter[_Term] = Counter()
    keys: list[_Key] = []
    for term in terms:
        keys.append((term, counts[term]))
        counts[term] += 1
    return keys


def _by_shape(sums: Iterable[_Sum]) -> Iterable[list[_Sum]]:
    shapes: dict[Shape, list[_Sum]] = defaultdict(list)
    for each in sums:
        shapes[each.shape].append(each)
    return shapes.values()


def _without_copies(live: Sequence[_Sum]) -> list[_Sum]:
    """The sums, of equal ones the first."""
    first: dict[tuple[Shape, frozenset[_Key]], _Sum] = {}
    for each in live:
        each.terms = [_same(term) for term in each.terms]
        found = first.setdefault((each.shape, frozenset(_keys(each.terms))), each)
        if found is not each:
            each.same = found
            found.exposed |= each.exposed
    return list(first.values())


def _share_groups(sums: Sequence[_Sum]) -> bool:
    """Summands that occur in the same sums become one sum in these; whether there were any."""
    keys = [_keys(each.terms) for each in sums]
    places: dict[_Key, list[int]] = defaultdict(list)
    for i, found in enumerate(keys):
        for key in found:
            places[key].append(i)
    members: dict[tuple[int, ...], list[_Key]] = defaultdict(list)
    for key, where in places.items():
        members[tuple(where)].append(key)
    replaced: dict[int, dict[_Key, _Key]] = defaultdict(dict)
    for readers, together in members.items():
        terms = [term for term, _ in together]
        if len(readers) < 2 or len(terms) < 2 or not _has_shape(terms, sums[0].shape):
            continue
        group = next((sums[i] for i in readers if len(keys[i]) == len(terms)), None)
        group = group or _Sum(None, sums[0].shape, terms)
        for i in readers:
            if sums[i] is not group:
                replaced[i].update(dict.fromkeys(together, (group, -1)))  # beside any (group, 0)
    for i, new in replaced.items():
        sums[i].terms = [term for term, _ in dict.fromkeys(new.get(key, key) for key in keys[i])]
    return bool(replaced)


def _share_contained(sums: Sequence[_Sum]) -> bool:
    """Each sum becomes the largest others contained in it, and the rest; whether any did."""
    keys = {each: _keys(each.terms) for each in sums}
    sets = {each: frozenset(found) for each, found in keys.items()}
    frequency = Counter(key for found in keys.values() for key in found)
    by_rarest: dict[_Key, list[_Sum]] = defaultdict(list)
    for each in sums:
        by_rarest[min(keys[each], key=frequency.__getitem__)].append(each)
    changed: list[tuple[_Sum, list[_Term]]] = []
    for each in sums:
        remaining = set(sets[each])
        candidates = [other for key in keys[each] for other in by_rarest.get(key, ()) if other is not each]
        candidates.sort(key=lambda other: -len(sets[other]))
        parts: list[_Term] = []
        for other in candidates:
            if sets[other] <= remaining and len(sets[other]) < len(sets[each]):  # equal ones: see _without_copies
                remaining -= sets[other]
                parts.append(other)
        if parts:
            changed.append((each, parts + [key[0] for key in keys[each] if key in remaining]))
    for each, terms in changed:
        each.terms = terms
    return bool(changed)


def _has_shape(terms: Sequence[_Term], shape: Shape) -> bool:
    """Whether the sum of the terms has that shape."""
    if any(term.shape == shape for term in terms):
        return True
    return Add(*(term for term in terms if isinstance(term, Circuit)), name=None).shape == shape


def _build(root: _Sum, memo: dict[Circuit, Circuit], origins: Origins) -> Circuit:
    """The node for a sum, and for those in it."""
    for each in _sums_below([root]):
        if each.built is None:
            nodes = [_node_of(term, memo) for term in each.terms]
            each.built = Add(*nodes, name=None if each.node is None else each.node.op_name)
            if each.node is not None:
                origins.hand_on(each.built, each.node)
    return _node_of(root, memo)


def _node_of(term: _Term, memo: dict[Circuit, Circuit]) -> Circuit:
    node = memo[term] if isinstance(term, Circuit) else term.built
    if node is None:
        raise PassError("nest_sums read a sum before it was built", hint="this is a mistake in the pass")
    return node
