"""Replacing nodes: `update`."""

from __future__ import annotations

from collections.abc import Callable

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError, TypeMismatchError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.labels import labels
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn
from tapeout.ir.matching.matcher import Matcher
from tapeout.ir.matching.search import Prune, get
from tapeout.ir.matching.states import State, per_child
from tapeout.ir.nodes.module import Module
from tapeout.ir.symbol import Symbol

Transform = Callable[[Circuit], Circuit]


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
        check_found(circuit, matcher, assert_found)
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


def check_found(circuit: Circuit, matcher: IterativeMatcherIn, wanted: bool | int) -> None:
    """Raises MatchError unless so many nodes match, or for True any."""
    count = len(get(circuit, matcher))
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
