"""Push gathers: of a product of which only a few rows are looked up, only these rows are computed.

`gen_index(Einsum(x, W), labels)` becomes an Einsum of x with rows of W: the logits of a whole vocabulary are
not computed when two of them are asked for. Planned from the roots down, built from the leaves up.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from tapeout.ir import Add, Circuit, Einsum, GeneralFunction, Scalar, postorder
from tapeout.ir.nodes.functions import Cast, Elementwise, GenIndex
from tapeout.ir.nodes.general_function import function_of
from tapeout.ir.nodes.rearrange import arranged
from tapeout.ir.sizes import Size
from tapeout.ir.trampoline import memoised
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots, until_unchanged
from tapeout.passes.merge_gathered import merge_gathered

ASSUMED_SIZE = 128
"""What a symbolic size (a batch) is taken for when costs are compared."""


@register(
    "push_gather",
    requires="nodes without names, modules inlined (the body of a module is left alone)",
    ensures="no product or sum is computed of which fewer entries along an axis are looked up than there are",
)
@dataclass(frozen=True)
class PushGather(ExecutionPass):
    """Pushes gen_index through products, sums and elementwise functions to the rows of weights."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        pushed = until_unchanged(_pushed, roots, origins)  # a look-up in what a look-up gives needs another round
        return merge_gathered(pushed, origins)


@dataclass(frozen=True, slots=True)
class _Gather:
    """A look-up in a node, whose result has the axes of the index first and then what is left of the node's.

    Attributes:
        axis: the axis of the node that is looked up.
        index: the node of integers.
        aligned: for each axis of the index the axis of the node that runs with it, or None.
        check: whether the integers are checked.
    """

    axis: int
    index: Circuit
    aligned: tuple[int | None, ...]
    check: bool

    @property
    def is_mixed(self) -> bool:
        """Whether some axes of the index run with the node's and some do not: no gen_index does that."""
        return None in self.aligned and any(axis is not None for axis in self.aligned)

    def left(self, rank: int) -> list[int]:
        """The axes of the node that are left behind the axes of the index."""
        return [axis for axis in range(rank) if axis != self.axis and axis not in self.aligned]

    def cost(self, node: Circuit) -> float:
        """The part of the node that has to be computed, 1 for all of it."""
        picked = 1.0
        for size, axis in zip(self.index.shape, self.aligned, strict=True):
            picked *= 1 if axis is not None else _number(size)
        return picked / max(1, _number(node.shape[self.axis]))


Part = tuple[Circuit, _Gather | None]
"""A node, and what is looked up in it; None for all of it."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of which something is looked up: what it is made of then, and how."""

    parts: tuple[Part, ...]
    build: Callable[[tuple[Circuit, ...]], Circuit]


def _number(size: Size) -> int:
    return size if isinstance(size, int) else ASSUMED_SIZE


def _pushed(roots: Roots, origins: Origins) -> Roots:
    order = list(postorder(*roots))
    steps = _plan(roots, order)
    if not steps:
        return roots
    built: dict[Circuit, Circuit] = {}

    @memoised
    def value(part: tuple[Circuit, _Gather]) -> Generator[tuple[Circuit, _Gather], Circuit, Circuit]:
        node, gather = part
        if part not in steps:
            return origins.hand_on(_look_up(built[node], gather, built[gather.index]))
        children = []
        for child, below in steps[part].parts:
            if below is None:
                children.append(built[child])
            else:
                children.append((yield child, below))
        return steps[part].build(tuple(children))

    pushed = {node for node, _ in steps}
    for node in order:
        if node in pushed:
            continue
        function = function_of(node, GenIndex)
        if function is not None and node.children[0] in pushed:
            gather = _gather_of(node, function)
            new = _as_asked(value((node.children[0], gather)), function, gather)
        else:
            new = node.with_children(tuple([built[child] for child in node.children]))
        built[node] = origins.hand_on(new, node)
    return tuple(built[root] for root in roots)


# -- the plan


def _plan(roots: Roots, order: Sequence[Circuit]) -> dict[tuple[Circuit, _Gather], _Step]:
    """For every look-up that enters a node, how; none for the nodes that are computed in full."""
    wanted: dict[Circuit, dict[_Gather, None] | None] = dict.fromkeys(roots)
    steps: dict[tuple[Circuit, _Gather], _Step] = {}
    for node in reversed(order):
        if node not in wanted:
            continue
        entered = _steps(node, wanted[node])
        steps.update({(node, gather): step for gather, step in entered.items()})
        parts = [part for step in entered.values() for part in step.parts] or _parts_in_full(node)
        for child, gather in parts:
            if gather is None:
                wanted[child] = None
            elif (known := wanted.setdefault(child, {})) is not None:
                known[gather] = None
            if gather is not None:
                wanted[gather.index] = None
    return steps


def _steps(node: Circuit, wanted: dict[_Gather, None] | None) -> dict[_Gather, _Step]:
    """How all that is wanted of a node enters it; nothing if some does not, or if that is no cheaper."""
    if not wanted or sum(gather.cost(node) for gather in wanted) >= 1:
        return {}
    steps: dict[_Gather, _Step] = {}
    for gather in wanted:
        step = _through(node, gather)
        if step is None or any(below is not None and below.is_mixed for _, below in step.parts):
            return {}
        steps[gather] = step
    return steps


def _parts_in_full(node: Circuit) -> list[Part]:
    function = function_of(node, GenIndex)
    if function is None:
        return [(child, None) for child in node.children]
    return [(node.children[0], _gather_of(node, function))]


def _gather_of(node: Circuit, function: GenIndex) -> _Gather:
    """The look-up that a gen_index makes in its first child."""
    index = node.children[1]
    both = function.batch_x and function.batch_index
    aligned = tuple(range(index.rank)) if both else (None,) * index.rank
    return _Gather(function.axis_of(node), index, aligned, function.check_index_ints)


# -- how a look-up enters a node


def _through(node: Circuit, gather: _Gather) -> _Step | None:
    if isinstance(node, Einsum):
        return _through_einsum(node, gather)
    if isinstance(node, Add):
        return _through_add(node, gather)
    if isinstance(node, GeneralFunction):
        function = node.spec
        if isinstance(function, Cast) or (isinstance(function, Elementwise) and not function.acts_on_last):
            return _Step(((node.children[0], gather),), node.with_children)
    return None


def _through_einsum(node: Einsum, gather: _Gather) -> _Step | None:
    """Into every operand that has the axis.

    gen_index(Einsum(bh,vh->bv; x, W), labels [b]) --> Einsum(bh,bh->b; x, gen_index(W, labels))
    """
    out, fresh = node.out_axes, node.next_axis()
    letter = out[gather.axis]
    letters = tuple(fresh + i if axis is None else out[axis] for i, axis in enumerate(gather.aligned))
    special = (letter, *letters)
    if any(axes.count(axis) > 1 for axes in (*node.in_axes, out) for axis in special):
        return None
    parts: list[Part] = []
    in_axes: list[tuple[int, ...]] = []
    for child, axes in node.args:
        if letter not in axes:
            parts.append((child, None))
            in_axes.append(axes)
            continue
        aligned = tuple(axes.index(axis) if axis in axes else None for axis in letters)
        parts.append((child, _Gather(axes.index(letter), gather.index, aligned, gather.check)))
        in_axes.append(letters + tuple(axis for axis in axes if axis not in special))
    out = letters + tuple(axis for axis in out if axis not in special)

    def build(children: tuple[Circuit, ...]) -> Circuit:
        return Einsum(*zip(children, in_axes, strict=True), out_axes=out, name=None)

    return _Step(tuple(parts), build)


def _through_add(node: Add, gather: _Gather) -> _Step:
    """Into every summand that has the axis; the others lose it, if it is there at all, for it is of size 1.

    gen_index(Add(x [b,v], bias [v]), labels [b]) --> Add(gen_index(x, labels), gen_index(bias, labels))
    """
    parts, layouts = zip(*(_summand(node, child, gather) for child in node.children), strict=True)

    def build(children: tuple[Circuit, ...]) -> Circuit:
        return Add(*map(_arranged, children, layouts), name=None)

    return _Step(parts, build)


def _summand(node: Add, child: Circuit, gather: _Gather) -> tuple[Part, tuple[int | None, ...]]:
    """What is looked up in a summand, and which of its axes are then those of the result (None: none)."""
    start = node.rank - child.rank

    def own(axis: int | None) -> int | None:
        return None if axis is None or axis < start else axis - start

    def runs(axis: int | None) -> bool:
        place = own(axis)
        return place is not None and (child.shape[place] != 1 or node.shape[place + start] == 1)

    left = gather.left(node.rank)
    if not runs(gather.axis):
        return (child, None), tuple(own(axis) for axis in (*gather.aligned, *left))
    aligned = tuple(own(axis) if runs(axis) else None for axis in gather.aligned)
    below = _Gather(gather.axis - start, gather.index, aligned, gather.check)
    count = len(aligned)
    places = {axis: count + i for i, axis in enumerate(below.left(child.rank))}
    rest = tuple(None if (place := own(axis)) is None else places[place] for axis in left)
    return (child, below), (*range(count), *rest)


# -- what is built


def _look_up(node: Circuit, gather: _Gather, index: Circuit) -> Circuit:
    """The look-up in a node that is computed in full."""
    batched = [axis for axis in gather.aligned if axis is not None]
    others = [axis for axis in range(node.rank) if axis not in batched]
    if isinstance(node, Scalar):
        return node.evolve_shape(index.shape + tuple(node.shape[axis] for axis in gather.left(node.rank)))
    node = _arranged(node, (*batched, *others))
    dim = others.index(gather.axis)
    spec = GenIndex(dim, bool(batched), True, gather.check)
    return GeneralFunction(node, index, spec=spec, name=None)


def _as_asked(value: Circuit, function: GenIndex, gather: _Gather) -> Circuit:
    """The axes of a look-up in the order in which the gen_index has them."""
    if function.batch_index:
        return value
    count = len(gather.aligned)
    rest = range(count, value.rank)
    return _arranged(value, (*rest[: gather.axis], *range(count), *rest[gather.axis :]))


def _arranged(node: Circuit, layout: Sequence[int | None]) -> Circuit:
    """The node with its axes in the order of `layout`, None for a new one of size 1 (left out in front).

    Axes of the node that are not named are of size 1 and vanish.
    """
    while layout and layout[0] is None:
        layout = layout[1:]
    return arranged(node, [axis if axis in layout else None for axis in range(node.rank)], layout)
