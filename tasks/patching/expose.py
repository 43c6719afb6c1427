"""Expose: every part and position that an edit speaks of becomes a node of its own, and nothing else changes.

In a circuit as it was split, not everything that has a name is a node that all its readers read:

- the residual stream before layer 5 is a sum; later sums are flat and repeat its summands. They become
  `Add(a5.input, ...)`;
- the query of a head is called like that of any other, and a key that heads share is one node. What one head
  reads becomes `Index(key, [:])` called `a8.h6.k`;
- a position of a part becomes a row of a `Concat`, `a9_h6_t5`, as `split_to_concat` makes it, unless there is
  one already.

Then a part is a node, a path is a sequence of nodes, and an edit is the replacement of nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tapeout.ir import Add, Circuit, Index, Symbol, postorder
from tapeout.ir.errors import DataError, MatchError, ShapeError, TypeMismatchError
from tapeout.ir.gc_pause import without_gc
from tapeout.models.parts.names import NodeName, Site
from tapeout.models.parts.places import Place, locate
from tapeout.passes import split_to_concat


@dataclass(frozen=True)
class Exposed:
    """A circuit in which parts are nodes.

    Attributes:
        circuit: the circuit, of the same value as before.
        nodes: for every site its nodes: the part itself, or one a position.
    """

    circuit: Circuit
    nodes: Mapping[Site, tuple[Circuit, ...]]


@without_gc
def expose(circuit: Circuit, sites: Iterable[Site]) -> Exposed:
    """The circuit with a node for every site.

    Args:
        circuit: of one row, split by head (`models.split_circuit`).
        sites: parts of the model, at some positions or whole.

    Raises:
        DataError: if the circuit's tokens are bound already.
        MatchError: for a part that is not there.
        ShapeError: for a position outside of the sequence.
    """
    check_one_row(circuit)
    wanted = tuple(dict.fromkeys(sites))
    places = locate(circuit, dict.fromkeys(site.name for site in wanted))
    positions = {site: None if site.positions is None else _positions(site, places[site.name].node) for site in wanted}
    exposer = _Exposer(circuit, places, positions)
    rebuilt = rebuild(circuit, exposer.change, first=exposer.streams)
    return Exposed(rebuilt[circuit], exposer.nodes(rebuilt))


def check_one_row(circuit: Circuit) -> Symbol:
    """The symbol `tokens` of a circuit of one row.

    Raises:
        DataError: if the tokens are bound.
        MatchError: if the circuit has none.
        TypeMismatchError: if it is no circuit.
    """
    if not isinstance(circuit, Circuit):
        raise TypeMismatchError(
            f"a {type(circuit).__name__} stands where a circuit is to be patched",
            hint="give the metric's circuit first: logit_diff_circuit(split_circuit(circuits, info, length)[0])",
        )
    if not circuit.are_any_found("tokens"):
        raise MatchError(
            f"{circuit!r} does not read the symbol tokens of one prompt",
            hint="split the model first: split_circuit(circuits, info, length) gives a circuit that does",
        )
    tokens = circuit.get_unique("tokens")
    if not isinstance(tokens, Symbol):
        raise DataError(
            f"the tokens of {circuit!r} are bound already: {tokens!r}",
            hint="patch the circuit of one row, whose tokens are a symbol, and bind data after that",
        )
    return tokens


def _positions(site: Site, node: Circuit) -> tuple[int, ...]:
    """A site's positions, counted from 0 and in order.

    Raises:
        ShapeError: if one is outside of the sequence.
    """
    length = node.shape[0] if node.shape else 1
    if not isinstance(length, int):
        raise ShapeError(
            f"{site}: the number of positions of {node!r} is the symbolic size {length}",
            hint="conform the circuit first (conform_all_modules), as models.split_circuit does",
        )
    outside = [position for position in site.positions or () if not -length <= position < length]
    if outside or not site.positions:
        raise ShapeError(
            f"{site}: {f'position {outside[0]} is outside of the sequence' if outside else 'there is no position'}",
            facts=[f"{site.name} is {node!r}"],
            hint=f"positions are 0 to {length - 1}, or from the end, END to {-length}",
        )
    return tuple(sorted({position % length for position in site.positions}))


class _Exposer:
    def __init__(
        self, circuit: Circuit, places: Mapping[NodeName, Place], positions: Mapping[Site, tuple[int, ...] | None]
    ) -> None:
        self.places, self.positions = places, positions
        self.wanted: dict[NodeName, set[int]] = {}
        for site, at in positions.items():
            self.wanted.setdefault(site.name, set()).update(at or ())
        self.rows = _existing_rows(circuit, {places[name]: at for name, at in self.wanted.items()})
        streams = [place.node for name, place in places.items() if name.is_residual and isinstance(place.node, Add)]
        self.streams = tuple(sorted(dict.fromkeys(streams), key=lambda node: len(node.children)))
        self.operands: dict[Circuit, list[Place]] = {}
        self.splits: dict[Circuit, NodeName] = {}
        for name, place in places.items():
            if place.reader is not None:
                self.operands.setdefault(place.reader, []).append(place)
            elif self._cuts(name):
                self._split_once(place)
        self.made: dict[Circuit | NodeName, Circuit] = {}  # an old node, or a part that is an operand: what it became
        self.new_rows: dict[NodeName, dict[int, Circuit]] = {}

    def _split_once(self, place: Place) -> None:
        other = self.splits.setdefault(place.node, place.name)
        if other != place.name:
            raise MatchError(
                f"{place.name} and {other} are the same node, and some of its positions are asked for under both names",
                hint=f"call it {other} everywhere",
            )

    def _cuts(self, name: NodeName) -> list[int]:
        """The positions of a part that are to be rows and are not."""
        wanted = self.wanted[name]
        return sorted(wanted) if wanted - set(self.rows.get(name, ())) else []

    def change(self, old: Circuit, new: Circuit, rebuilt: Mapping[Circuit, Circuit]) -> Circuit:
        """What stands for a node, given the same over the new children."""
        if isinstance(old, Add):
            new = self._nested(old, new, rebuilt)
        for place in self.operands.get(old, ()):
            operand = place.operand or 0
            read = Index(new.children[operand], (slice(None),), name=str(place.name))
            self.made[place.name] = read
            children = list(new.children)
            children[operand] = self._split(place.name, read)
            new = new.with_children(tuple(children))
        self.made[old] = new
        return self._split(self.splits[old], new) if old in self.splits else new

    def _nested(self, old: Add, new: Circuit, rebuilt: Mapping[Circuit, Circuit]) -> Circuit:
        """`a + b + c --> stream + c` for the longest stream `a + b` that the sum holds."""
        count = Counter(old.children)
        for stream in reversed(self.streams):
            inside = Counter(stream.children)
            if stream is not old and inside <= count:
                rest = list((count - inside).elements())
                return Add(rebuilt[stream], *(rebuilt[child] for child in rest), name=old.op_name)
        return new

    def _split(self, name: NodeName, node: Circuit) -> Circuit:
        """The node as a concatenation of the rows asked for and of what is between them; itself if none are."""
        cuts = self._cuts(name)
        if not cuts:
            return node
        size = int(node.shape[0])  # type: ignore[arg-type]
        edges = sorted({0, size, *cuts, *(cut + 1 for cut in cuts)})
        spans = [slice(start, stop) for start, stop in pairwise(edges)]
        row = Site(name).row_name(0).removesuffix("0")
        split = split_to_concat(node, 0, spans, index_name=f"{row}{{part}}", concat_name=f"{name}_by_pos")
        self.new_rows[name] = {
            span.start: part for span, part in zip(spans, split.children, strict=True) if span.start in cuts
        }
        return split

    def nodes(self, rebuilt: Mapping[Circuit, Circuit]) -> dict[Site, tuple[Circuit, ...]]:
        """For every site its nodes in the rebuilt circuit."""
        out = dict[Site, tuple[Circuit, ...]]()
        for site, at in self.positions.items():
            place = self.places[site.name]
            if at is None:
                out[site] = (self.made[site.name if place.reader is not None else place.node],)
            elif site.name in self.new_rows:
                out[site] = tuple(self.new_rows[site.name][position] for position in at)
            else:
                out[site] = tuple(rebuilt[self.rows[site.name][position]] for position in at)
        return out


def _existing_rows(circuit: Circuit, wanted: Mapping[Place, Iterable[int]]) -> dict[NodeName, dict[int, Circuit]]:
    """The rows that a split by position has given parts already."""
    names = {Site(place.name).row_name(p): (place, p) for place, positions in wanted.items() for p in positions}
    rows: dict[NodeName, dict[int, Circuit]] = {}
    for node in circuit.get(set(names)) if names else ():
        place, p = names[node.name]
        if node is Index(place.node, (slice(p, p + 1),), name=node.op_name):
            rows.setdefault(place.name, {})[p] = node
    return rows


Change = Callable[[Circuit, Circuit, Mapping[Circuit, Circuit]], Circuit]
"""From a node, the same over its new children, and all new nodes so far, to what stands for it."""


def rebuild(root: Circuit, change: Change, first: tuple[Circuit, ...] = ()) -> dict[Circuit, Circuit]:
    """For every node what stands for it, children first; `first` and what is below them before all others."""
    rebuilt: dict[Circuit, Circuit] = {}
    for node in postorder(*first, root):
        new = node.with_children(tuple([rebuilt[child] for child in node.children]))
        rebuilt[node] = change(node, new, rebuilt)
    return rebuilt
