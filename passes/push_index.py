"""Push index: what is read in part only is computed in part only.

Planned from the roots down, built from the leaves up. An index enters a node only as far as all of its
readers, over all roots, take that slice: otherwise a second, smaller copy of the network would grow beside
the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tapeout.ir import Circuit, Index, Scalar, postorder
from tapeout.ir.axis_index import FULL, AxisIndex, Picks
from tapeout.ir.index_rules import AxisIndices, Read, canonical, everything, is_everything
from tapeout.ir.sizes import Shape, Size
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots, until_unchanged


@register(
    "push_index",
    requires="nodes without names, modules inlined (the body of a module is left alone)",
    ensures="no node that an index can enter is read by all of its readers under one and the same index",
)
@dataclass(frozen=True)
class PushIndex(ExecutionPass):
    """Pushes indices towards the leaves: a node of which all readers take the same slice is that slice."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        return until_unchanged(_pushed, roots, origins)  # where a node vanishes, what was stopped there goes on


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a node is computed.

    Attributes:
        taken: the index under which it is computed; its readers apply the rest of what they want.
        reads: what it then reads.
        build: the node from what it reads.
    """

    taken: AxisIndices
    reads: Sequence[Read]
    build: Callable[[tuple[Circuit, ...]], Circuit]


def _pushed(roots: Roots, origins: Origins) -> Roots:
    order = list(postorder(*roots))
    plans = _plans(roots, order)
    built: dict[Circuit, Circuit] = {}
    for node in order:
        if node in plans:
            built[node] = origins.hand_on(_build(node, plans, built), node)
    new = tuple(built[root] for root in roots)
    return roots if new == roots else new


def _plans(roots: Roots, order: Sequence[Circuit]) -> dict[Circuit, _Plan | None]:
    """The plan of every node that is read; None where the node and its children are computed in full."""
    demands: dict[Circuit, AxisIndices | None] = dict.fromkeys(roots)
    plans: dict[Circuit, _Plan | None] = {}
    for node in reversed(order):
        if node not in demands:
            continue
        plan = plans[node] = _plan(node, demands[node])
        if plan is None:
            demands.update(dict.fromkeys(node.children))
            continue
        for child, index in plan.reads:
            demands[child] = _common(demands[child], index) if child in demands else _demand(index)
    return plans


def _plan(node: Circuit, demand: AxisIndices | None) -> _Plan | None:
    if demand is None and not isinstance(node, Index):
        return None
    pushed = node.push_index(_smaller(demand or everything(node), node.shape))
    if pushed is None or (is_everything(pushed.taken) and not isinstance(node, Index)):
        return None
    reads = [(child, canonical(index, child.shape)) for child, index in pushed.reads]
    return _Plan(pushed.taken, reads, pushed.build)


def _build(node: Circuit, plans: dict[Circuit, _Plan | None], built: dict[Circuit, Circuit]) -> Circuit:
    plan = plans[node]
    if plan is None:
        return node.with_children(tuple([built[child] for child in node.children]))
    children = []
    for child, index in plan.reads:
        below = plans[child]
        rest = index if below is None else _rest(index, below.taken)
        children.append(indexed(built[child], rest))
    return plan.build(tuple(children))


def _demand(index: AxisIndices) -> AxisIndices | None:
    """None if everything is wanted."""
    return None if is_everything(index) else index


def _common(one: AxisIndices | None, other: AxisIndices) -> AxisIndices | None:
    """What two readers agree upon, axis by axis."""
    if one is None or one == other:
        return one
    return _demand(tuple(a if a == b else FULL for a, b in zip(one, other, strict=True)))


def _smaller(index: AxisIndices, shape: Shape) -> AxisIndices:
    """The index without the entries that make nothing smaller (tensors that repeat or reorder)."""
    return tuple(entry if _is_smaller(entry, size) else FULL for entry, size in zip(index, shape, strict=True))


def _is_smaller(entry: AxisIndex, size: Size) -> bool:
    return not isinstance(entry, Picks) or (isinstance(size, int) and len(entry.values) < size)


def _rest(index: Iterable[AxisIndex], taken: AxisIndices) -> AxisIndices:
    """What is left of an index, part of which has been taken, for the node that is indexed already."""
    pairs = zip(index, taken, strict=True)
    return tuple(entry if done == FULL else FULL for entry, done in pairs if not isinstance(done, int))


def indexed(node: Circuit, index: AxisIndices) -> Circuit:
    """A part of a node that is computed in full: a smaller number, a part of the part, or an Index."""
    index = canonical(index, node.shape)
    while isinstance(node, Index) and not node.has_tensor_axes() and not is_everything(index):
        pushed = node.push_index(index)
        if pushed.taken != index:
            break
        node, below = pushed.reads[0]
        index = canonical(below, node.shape)
    if is_everything(index):
        return node
    if isinstance(node, Scalar):
        return node.push_index(index).build(())
    return Index(node, index, name=None)
