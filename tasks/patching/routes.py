"""Routes: which ways through a circuit a set of paths means, as one state machine.

A path is a sequence of parts from a sender to a last receiver, `a5.h5 -> a8.h6.q -> final.input`. Its routes are
the ways from the circuit's output down to the sender that meet the receivers in this order: any way to the last
receiver, and from each receiver to the part before it either the direct ones, which pass no other head or MLP
("frozen": these have their baseline values), or all ("recomputed").

The paths of a set share their beginnings, so that they are one tree of *arrivals* (a part reached by a certain way)
and the searches that begin there. The tree is a state of an `IterativeMatcher`, which then matches the senders on
these routes and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tapeout.ir import Circuit, IterativeMatcher, Matcher
from tapeout.ir.matching.search import Prune
from tapeout.ir.matching.states import Next, Possible, State, per_child
from tapeout.models.parts.names import NameIn, Site, parse_site

ARROW = "->"


@dataclass(frozen=True, slots=True)
class Path:
    """A path by names.

    Attributes:
        steps: the sender, then the receivers in the direction of data flow. A path of the sender alone means all
            routes from it.
    """

    steps: tuple[Site, ...]

    def __str__(self) -> str:
        return f" {ARROW} ".join(map(str, self.steps))


def parse_path(path: str | Path | Sequence[NameIn]) -> Path:
    """The path that a text ("a9.h6 -> final.input") or a sequence of names stands for.

    Raises:
        ParseError: if a step is no name of a part.
    """
    if isinstance(path, Path):
        return path
    return Path(tuple(map(parse_site, map(str.strip, path.split(ARROW)) if isinstance(path, str) else path)))


@dataclass(eq=False)
class Arrival:
    """A part, reached by a certain way.

    Attributes:
        site: the part.
        paths: the paths that end here: it is their sender.
        searches: where their routes go on to, for all others.
        below: the arrivals after it.
    """

    site: Site | None
    paths: list[Path] = field(default_factory=list)
    searches: tuple[Search, ...] = ()
    below: dict[Site, Arrival] = field(default_factory=dict)


@dataclass(eq=False)
class Search:
    """The next parts that are looked for from an arrival.

    Attributes:
        targets: for the parts' nodes the arrivals there.
        stops: nodes below which is not looked.
        names: matches the targets' names, so that nothing is searched that does not hold them.
    """

    targets: Mapping[Circuit, Sequence[Arrival]]
    stops: frozenset[Circuit]
    names: Matcher


@dataclass(frozen=True, slots=True)
class Searching:
    """The state of the matcher: the searches under way."""

    searches: frozenset[Search]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        arrivals = self.arrivals(node)
        going = {search for search in self.searches if node not in search.stops}
        for arrival in arrivals:
            going.update(arrival.searches)
        found = any(arrival.paths for arrival in arrivals)
        return found, Searching(frozenset(going)) if going else None

    def arrivals(self, node: Circuit) -> list[Arrival]:
        """What is reached at a node."""
        return [arrival for search in self.searches for arrival in search.targets.get(node, ())]

    def possible(self, can: Possible) -> bool:
        return any(can(search.names) for search in self.searches)


def tree_of(paths: Iterable[Path]) -> Arrival:
    """The paths as one tree, from the circuit's output."""
    root = Arrival(None)
    for path in paths:
        at = root
        for site in reversed(path.steps):
            at = at.below.setdefault(site, Arrival(site))
        at.paths.append(path)
    return root


def arrivals_of(root: Arrival) -> list[Arrival]:
    """All arrivals of a tree, each before those below it."""
    out = [root]
    for arrival in out:
        out.extend(arrival.below.values())
    return out


def matcher_of(
    root: Arrival, nodes: Mapping[Site, Sequence[Circuit]], stops: Mapping[tuple[Site, Site], frozenset[Circuit]]
) -> IterativeMatcher:
    """The matcher of a tree's senders, each on its routes.

    Args:
        root: the tree.
        nodes: for every site its nodes.
        stops: for every site and the one that reads it the nodes that a direct way between them may not pass.
    """
    for arrival in arrivals_of(root):
        groups: dict[frozenset[Circuit], dict[Circuit, list[Arrival]]] = {}
        for site, below in arrival.below.items():
            targets = groups.setdefault(frozenset() if arrival.site is None else stops[site, arrival.site], {})
            for node in nodes[site]:
                targets.setdefault(node, []).append(below)
        arrival.searches = tuple(
            Search(found, barred, Matcher({node.name for node in found})) for barred, found in groups.items()
        )
    return IterativeMatcher.of_state(Searching(frozenset(root.searches)))


@dataclass(frozen=True)
class Survey:
    """What a matcher meets in a circuit.

    Attributes:
        visited: every node with the state that it was met in.
        below_one_another: pairs of matching nodes of which the second is met below the first, on its route.
    """

    visited: list[tuple[Circuit, State]]
    below_one_another: list[tuple[Circuit, Circuit]]

    @property
    def reached(self) -> set[Arrival]:
        """The arrivals of a tree that happen."""
        states = [(node, state) for node, state in self.visited if isinstance(state, Searching)]
        return {arrival for node, state in states for arrival in state.arrivals(node)}


def survey(circuit: Circuit, matcher: IterativeMatcher) -> Survey:
    """Walks the routes of a matcher."""
    first: dict[tuple[Circuit, State], Circuit | None] = {}  # a match at or below an item
    pairs: list[tuple[Circuit, Circuit]] = []
    stack: list[tuple[Circuit, State]] = [(circuit, matcher.state)]
    prune = Prune(circuit)
    while stack:
        item = stack[-1]
        node, state = item
        if item in first:
            stack.pop()
            continue
        found, following = state.step(node)
        below = [
            (child, after)
            for child, after in zip(node.children, per_child(node, following), strict=True)
            if after is not None and after.possible(prune.at(child))
        ]
        pending = [pair for pair in below if pair not in first]
        if pending:
            stack += pending
            continue
        stack.pop()
        lower = next((hit for pair in below if (hit := first[pair]) is not None), None)
        if found and lower is not None:
            pairs.append((node, lower))
        first[item] = node if found else lower
    return Survey(list(first), pairs)
