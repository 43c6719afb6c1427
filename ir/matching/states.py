"""The states of iterative matchers: small machines that walk down the paths of a circuit.

At a node a state says whether the node matches, and which state goes on to the children: one for all,
or one each; None ends the path. States are immutable and hashable, so that a walk remembers what it
has done by (node, state).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tapeout.ir.circuit import Circuit
from tapeout.ir.matching.matcher import Atom, Matcher
from tapeout.ir.nodes.module import Module

Possible = Callable[[Matcher], bool]
"""Whether a matcher can match at or below the node in question."""


class State(Protocol):
    def step(self, node: Circuit) -> tuple[bool, Next]:
        """Whether the node matches, and the state for its children."""

    def possible(self, can: Possible) -> bool:
        """False only if nothing at or below the node in question can match."""


Next = State | None | tuple[State | None, ...]
"""The state for all children, one each, or None: nothing below matches."""


def per_child(node: Circuit, following: Next) -> tuple[State | None, ...]:
    """The state for each child of the node."""
    return following if isinstance(following, tuple) else (following,) * len(node.children)


@dataclass(frozen=True, slots=True)
class Everywhere:
    matcher: Matcher

    def step(self, node: Circuit) -> tuple[bool, Next]:
        return self.matcher(node), self

    def possible(self, can: Possible) -> bool:
        return can(self.matcher)


@dataclass(frozen=True, slots=True)
class Filtered:
    inner: State
    start_depth: int
    end_depth: int | None
    term_early_at: Matcher | None
    term_if_matches: bool

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, following = self.inner.step(node)
        found = found and self.start_depth <= 0 and (self.end_depth is None or self.end_depth > 0)
        ends = (
            (self.end_depth is not None and self.end_depth <= 1)
            or (found and self.term_if_matches)
            or (self.term_early_at is not None and self.term_early_at(node))
        )
        return found, None if ends else _map_next(following, self._below)

    def _below(self, inner: State) -> State:
        end = None if self.end_depth is None else self.end_depth - 1
        return Filtered(inner, max(0, self.start_depth - 1), end, self.term_early_at, self.term_if_matches)

    def possible(self, can: Possible) -> bool:
        return self.inner.possible(can)


@dataclass(frozen=True, slots=True)
class Chains:
    """Alternatives, each a sequence of states to be satisfied one at or below the other."""

    chains: frozenset[tuple[State, ...]]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, todo, below = False, list(self.chains), list[tuple[Next, tuple[State, ...]]]()
        seen = set(todo)
        while todo:
            head, *tail = todo.pop()
            matched, following = head.step(node)
            if following is not None:
                below.append((following, tuple(tail)))
            if matched and tail and (rest := tuple(tail)) not in seen:
                seen.add(rest)
                todo.append(rest)
            found = found or (matched and not tail)
        return found, _per_child(node, below)

    def possible(self, can: Possible) -> bool:
        return any(all(state.possible(can) for state in chain) for chain in self.chains)


def _per_child(node: Circuit, heads: list[tuple[Next, tuple[State, ...]]]) -> Next:
    if not heads:
        return None
    if not any(isinstance(head, tuple) for head, _ in heads):
        return Chains(frozenset((head, *tail) for head, tail in heads))  # type: ignore[arg-type]
    out = list[State | None]()
    for states in zip(*(per_child(node, head) for head, _ in heads), strict=True):
        alive = frozenset((head, *tail) for head, (_, tail) in zip(states, heads, strict=True) if head is not None)
        out.append(Chains(alive) if alive else None)
    return tuple(out)


@dataclass(frozen=True, slots=True)
class AnyOf:
    states: tuple[State, ...]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        results = [state.step(node) for state in self.states]
        return any(found for found, _ in results), _combine(node, [n for _, n in results], AnyOf, drop_ended=True)

    def possible(self, can: Possible) -> bool:
        return any(state.possible(can) for state in self.states)


@dataclass(frozen=True, slots=True)
class AllOf:
    states: tuple[State, ...]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        results = [state.step(node) for state in self.states]
        return all(found for found, _ in results), _combine(node, [n for _, n in results], AllOf, drop_ended=False)

    def possible(self, can: Possible) -> bool:
        return all(state.possible(can) for state in self.states)


def _combine(node: Circuit, nexts: list[Next], make: Callable[[tuple[State, ...]], State], drop_ended: bool) -> Next:
    def join(states: Sequence[State | None]) -> State | None:
        alive = tuple(state for state in states if state is not None)
        return make(alive) if alive and (drop_ended or len(alive) == len(states)) else None

    if not any(isinstance(following, tuple) for following in nexts):
        return join(nexts)  # type: ignore[arg-type]
    return tuple(map(join, zip(*(per_child(node, following) for following in nexts), strict=True)))


@dataclass(frozen=True, slots=True)
class ChildrenOf:
    """Matches chosen children of whatever `inner` matches."""

    inner: State | None
    choose: Callable[[Circuit], frozenset[int]]
    chosen: bool = False

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, following = (False, None) if self.inner is None else self.inner.step(node)
        picks = self.choose(node) if found else frozenset()
        return self.chosen, tuple(
            ChildrenOf(state, self.choose, i in picks) if state is not None or i in picks else None
            for i, state in enumerate(per_child(node, following))
        )

    def possible(self, can: Possible) -> bool:
        return self.chosen or (self.inner is not None and self.inner.possible(can))


def _map_next(following: Next, f: Callable[[State], State]) -> Next:
    if isinstance(following, tuple):
        return tuple(None if state is None else f(state) for state in following)
    return None if following is None else f(following)


@dataclass(frozen=True, slots=True)
class OutsideSpecs:
    """What `inner` matches, but nothing inside the bodies of modules."""

    inner: State

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, following = self.inner.step(node)
        below = _map_next(following, OutsideSpecs)
        if not isinstance(node, Module):
            return found, below
        return found, (None, *per_child(node, below)[1:])

    def possible(self, can: Possible) -> bool:
        return self.inner.possible(can)


@dataclass(frozen=True, slots=True)
class Stepping:
    """What a function says at each node: whether it matches, and the state for the children (`SAME` for this one)."""

    function: Callable[[Circuit], tuple[bool, Next]]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, following = self.function(node)
        if isinstance(following, tuple):
            return found, tuple(self if state is SAME else state for state in following)
        return found, self if following is SAME else following

    def possible(self, can: Possible) -> bool:
        return True


def atoms(state: State) -> Iterator[Atom]:
    """The questions of which a match answers each with yes, unless something was misspelt (see `Matcher.validate`)."""
    match state:
        case Everywhere():
            yield from state.matcher.atoms()
        case Filtered() | OutsideSpecs():
            yield from atoms(state.inner)
        case AnyOf():
            for each in state.states:
                yield from atoms(each)
        case Chains():
            for chain in state.chains:
                yield from atoms(chain[-1])


SAME = Stepping(lambda _: (False, None))
"""Stands for the state itself in what the function of `Stepping` gives."""
