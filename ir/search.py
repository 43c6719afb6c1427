"""Finding nodes, and replacing them: `get`, `get_unique`, paths, `update`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError, TypeMismatchError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.iterative import IterativeMatcher, IterativeMatcherIn
from tapeout.ir.labels import labels, names_in
from tapeout.ir.match_states import Next, Possible, State, atoms, per_child
from tapeout.ir.matcher import Matcher
from tapeout.ir.module import Module
from tapeout.ir.symbol import Symbol

Transform = Callable[[Circuit], Circuit]
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


# -- update


def update(
    circuit: Circuit,
    matcher: IterativeMatcherIn,
    transform: Transform,
    fancy_validate: bool = False,
    assert_found: bool | int = False,
    assert_different: bool = False,
) -> Circuit:
    """Replaces matching nodes by their transforms, from the leaves up. See `Circuit.update`."""
    iterative = IterativeMatcher(matcher)
    if fancy_validate:
        iterative.validate(circuit)
    if assert_found is not False:
        _check_found(circuit, iterative, matcher, assert_found)
    plain = iterative.plain
    if plain is not None:
        out = _update_plain(circuit, plain, transform)
    else:
        out = _update_iterative(circuit, iterative, transform)
    if assert_different and out is circuit:
        raise MatchError(
            f"the update of {circuit!r} at {matcher!r} changes nothing",
            hint="the transform returned what it was given",
        )
    return out


def _check_found(
    circuit: Circuit, iterative: IterativeMatcher, matcher: IterativeMatcherIn, wanted: bool | int
) -> None:
    count = len(get(circuit, iterative))
    if count == 0 if wanted is True else count != wanted:
        raise MatchError(
            f"{count} nodes match {matcher!r} below {circuit!r}, where "
            f"{'at least one' if wanted is True else wanted} should",
            hint="look with circuit.print(), or leave assert_found out",
        )


@without_gc
def _update_plain(root: Circuit, matcher: Matcher, transform: Transform) -> Circuit:
    """Visits only what has a matching name or kind at or below it."""
    mask = matcher.mask(labels(root))
    accepts = matcher._accepts
    if mask is not None and not mask & root._labels:
        return root
    memo: dict[Circuit, Circuit] = {}
    same_types = True  # as long as no replacement has another type, nothing above needs checking
    stack = [root]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        pending = [c for c in node.children if c not in memo and (mask is None or mask & c._labels)]
        if pending:
            stack += pending
            continue
        stack.pop()
        new = node
        if node.children:
            children = tuple([memo.get(c, c) for c in node.children])
            if children != node.children:
                if same_types and not isinstance(node, Module):
                    new = node._over(children)
                else:
                    new = _rebuild(node, children, memo)
                    labels(new)
        if accepts(node):
            old, new = new, _transformed(transform, new)
            labels(new)
            same_types = same_types and new.shape == old.shape and new.torch_dtype is old.torch_dtype
        memo[node] = new
    return memo[root]


def _transformed(transform: Transform, node: Circuit) -> Circuit:
    new = transform(node)
    if not isinstance(new, Circuit):
        raise TypeMismatchError(
            f"the update of {node!r} gives {new!r}, which is no circuit", hint="a transform returns a circuit"
        )
    return new


def _rebuild(node: Circuit, children: tuple[Circuit, ...], memo: dict[Circuit, Circuit]) -> Circuit:
    """The node over new children; a module also over what has become of the symbols that it binds."""
    if isinstance(node, Module) and any(
        memo.get(spec.symbol, spec.symbol) is not spec.symbol for spec in node.arg_specs
    ):
        return node.with_mapped_children(children, [memo.get(spec.symbol, spec.symbol) for spec in node.arg_specs])
    return node.with_children(children)


@without_gc
def _update_iterative(root: Circuit, matcher: IterativeMatcher, transform: Transform) -> Circuit:
    prune = Prune(root)
    transformed: dict[Circuit, Circuit] = {}
    memo: dict[tuple[Circuit, State | None], Circuit] = {}
    images: dict[Circuit, set[Circuit]] = {}
    stack: list[tuple[Circuit, State | None]] = [(root, matcher.state)]
    while stack:
        item = stack[-1]
        node, state = item
        if item in memo:
            stack.pop()
            continue
        if state is None or not state.possible(prune.at(node)):
            memo[item] = node
            stack.pop()
            continue
        found, following = state.step(node)
        below = list(zip(node.children, per_child(node, following), strict=True))
        pending = [pair for pair in below if pair not in memo]
        if pending:
            stack += pending
            continue
        stack.pop()
        children = tuple(memo[pair] for pair in below)
        new = node if children == node.children else _rebuild(node, children, _bound_images(node, children[0], images))
        if found:
            if new not in transformed:
                transformed[new] = _transformed(transform, new)
            new = transformed[new]
            if isinstance(node, Symbol):
                images.setdefault(node, set()).add(new)
        memo[item] = new
    return memo[root, matcher.state]


def _bound_images(node: Circuit, body: Circuit, images: dict[Circuit, set[Circuit]]) -> dict[Circuit, Circuit]:
    """What has become of the symbols that a module binds, where its new body does not hold them any more."""
    out: dict[Circuit, Circuit] = {}
    if isinstance(node, Module):
        for spec in node.arg_specs:
            found = images.get(spec.symbol, set())
            if found and spec.symbol in node.children[0].free_symbols and spec.symbol not in body.free_symbols:
                out[spec.symbol] = next((image for image in found if image in body.free_symbols), min(found, key=id))
    return out
