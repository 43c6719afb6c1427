"""Finding nodes: `get`, `get_unique`, paths."""

from __future__ import annotations

from collections.abc import Iterator, Set

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError
from tapeout.ir.labels import labels, names_in
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn
from tapeout.ir.matching.matcher import Matcher
from tapeout.ir.matching.states import Next, Possible, State, atoms, per_child

_SHOWN = 8


class Prune:
    """Remembers, for one root, which labels each matcher needs."""

    __slots__ = ("below", "masks")

    def __init__(self, root: Circuit) -> None:
        self.below = labels(root)
        self.masks: dict[Matcher, int | None] = {}

    def mask(self, matcher: Matcher) -> int | None:
        if matcher not in self.masks:
            self.masks[matcher] = matcher.mask(self.below)
        return self.masks[matcher]

    def at(self, node: Circuit) -> Possible:
        def can(matcher: Matcher) -> bool:
            mask = self.mask(matcher)
            return mask is None or bool(mask & node._labels)

        return can


def _visit(root: Circuit, matcher: IterativeMatcher) -> Iterator[Circuit]:
    """The matching nodes, some perhaps more than once."""
    prune = Prune(root)
    seen: set[tuple[Circuit, State]] = set()
    stack: list[tuple[Circuit, State]] = [(root, matcher.state)]
    while stack:
        item = stack.pop()
        node, state = item
        if item in seen or not state.possible(prune.at(node)):
            continue
        seen.add(item)
        found, following = state.step(node)
        if found:
            yield node
        stack += _going_on(node, following)


def _going_on(node: Circuit, following: Next) -> Iterator[tuple[Circuit, State]]:
    """The children at which paths go on, with their states."""
    states = zip(node.children, per_child(node, following), strict=True)
    return ((child, state) for child, state in states if state is not None)


def _visit_plain(root: Circuit, matcher: Matcher) -> Iterator[Circuit]:
    """The matching nodes, never looking where no matching name or kind is."""
    mask = matcher.mask(labels(root))
    seen = {root}
    stack = [root] if mask is None or mask & root._labels else []
    while stack:
        node = stack.pop()
        if matcher(node):
            yield node
        for child in node.children:
            if child not in seen and (mask is None or mask & child._labels):
                seen.add(child)
                stack.append(child)


def matches(circuit: Circuit, matcher: IterativeMatcherIn) -> Iterator[Circuit]:
    """The nodes that match, one after another; with a matcher that looks at paths some perhaps more than once."""
    iterative = IterativeMatcher(matcher)
    plain = iterative.plain
    return _visit(circuit, iterative) if plain is None else _visit_plain(circuit, plain)


def get(circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> set[Circuit]:
    """The nodes that match; with `fancy_validate` every part of the matcher must find something."""
    found = set(matches(circuit, matcher))
    if fancy_validate:
        validate_matched(matcher, found)
    return found


def validate_matched(matcher: IterativeMatcherIn, matched: Set[Circuit]) -> None:
    """Checks that each name, kind, regex and predicate of the matcher is satisfied by one of these nodes.

    Raises:
        MatchError: if not.
    """
    parts = atoms(IterativeMatcher(matcher).state)
    missing = [text for text, satisfied in parts if not any(map(satisfied, matched))]
    if missing:
        raise MatchError(
            f"nothing was found for {', '.join(missing[:_SHOWN])}"
            + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""),
            facts=[f"{len(matched)} nodes match {matcher!r}"],
            hint="every name, kind and regex of a validated matcher must find a node: mend or leave out these",
        )


def are_any_found(circuit: Circuit, matcher: IterativeMatcherIn) -> bool:
    return next(matches(circuit, matcher), None) is not None


def get_unique_op(circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit | None:
    """The one node that matches, or None.

    Raises:
        MatchError: if several match.
    """
    found = get(circuit, matcher, fancy_validate)
    if len(found) > 1:
        names = sorted(map(repr, found))
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise MatchError(
            f"{len(found)} nodes match {matcher!r} below {circuit!r}, where one was asked for",
            facts=names[:_SHOWN] + more,
            hint="use a longer name, chain matchers, or get() for all of them",
        )
    return next(iter(found), None)


def get_unique(circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit:
    """The one node that matches.

    Raises:
        MatchError: if none or several match.
    """
    found = get_unique_op(circuit, matcher, fancy_validate)
    if found is None:
        raise MatchError(
            f"no node matches {matcher!r} below {circuit!r}",
            facts=_similar_names(circuit, matcher),
            hint="names change when modules are substituted or renamed; look with circuit.print()",
        )
    return found


def _similar_names(circuit: Circuit, matcher: IterativeMatcherIn) -> list[str]:
    from difflib import get_close_matches

    if not isinstance(matcher, str):
        return []
    close = get_close_matches(matcher, list(names_in(labels(circuit))), n=_SHOWN)
    return [f"similar names: {', '.join(close)}"] if close else []


def get_paths(circuit: Circuit, matcher: IterativeMatcherIn) -> dict[Circuit, list[Circuit]]:
    """For each matching node one path: the node first, `circuit` last."""
    iterative = IterativeMatcher(matcher)
    prune = Prune(circuit)
    start = (circuit, iterative.state)
    came_from: dict[tuple[Circuit, State], tuple[Circuit, State] | None] = {start: None}
    out: dict[Circuit, list[Circuit]] = {}
    stack = [start]
    while stack:
        item = stack.pop()
        node, state = item
        if not state.possible(prune.at(node)):
            continue
        found, following = state.step(node)
        if found and node not in out:
            out[node] = _trace(item, came_from)
        for below in _going_on(node, following):
            if below not in came_from:
                came_from[below] = item
                stack.append(below)
    return out


def _trace(
    item: tuple[Circuit, State], came_from: dict[tuple[Circuit, State], tuple[Circuit, State] | None]
) -> list[Circuit]:
    path = []
    at: tuple[Circuit, State] | None = item
    while at is not None:
        path.append(at[0])
        at = came_from[at]
    return path


def get_all_paths(circuit: Circuit, matcher: IterativeMatcherIn) -> dict[Circuit, list[list[Circuit]]]:
    """For each matching node every path to it; there can be exponentially many."""
    prune = Prune(circuit)
    out: dict[Circuit, list[list[Circuit]]] = {}
    stack: list[tuple[Circuit, State, tuple[Circuit, ...]]] = [(circuit, IterativeMatcher(matcher).state, ())]
    while stack:
        node, state, above = stack.pop()
        if not state.possible(prune.at(node)):
            continue
        found, following = state.step(node)
        path = (node, *above)
        if found:
            out.setdefault(node, []).append(list(path))
        stack += ((child, below, path) for child, below in _going_on(node, following))
    return out


def get_all_circuits_in_paths(circuit: Circuit, matcher: IterativeMatcherIn) -> list[Circuit]:
    """The nodes on any path from the circuit to a node that matches, children before parents."""
    prune = Prune(circuit)
    start = (circuit, IterativeMatcher(matcher).state)
    leads: dict[tuple[Circuit, State], bool] = {}
    out: dict[Circuit, None] = {}
    stack = [start]
    while stack:
        item = stack[-1]
        node, state = item
        if item in leads:
            stack.pop()
            continue
        if not state.possible(prune.at(node)):
            leads[item] = False
            continue
        found, following = state.step(node)
        below = list(_going_on(node, following))
        pending = [pair for pair in below if pair not in leads]
        if pending:
            stack.extend(reversed(pending))
            continue
        stack.pop()
        leads[item] = found or any(leads[pair] for pair in below)
        if leads[item]:
            out[node] = None
    return list(out)
