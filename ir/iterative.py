"""`IterativeMatcher`: a question about a node and the path that led to it.

It is a small state machine. At a node it says whether the node matches, and which state goes on to
the children (one for all, or one each; None ends the path). States are immutable and hashable, so
that a walk remembers what it has done by (node, state).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError, TypeMismatchError
from tapeout.ir.matcher import Matcher, MatcherIn
from tapeout.ir.module import Module

IterativeMatcherIn = Any
"""An IterativeMatcher, or anything that a Matcher can be made of."""

Possible = Callable[[Matcher], bool]
"""Whether a matcher can match at or below the node in question."""


class State(Protocol):
    def step(self, node: Circuit) -> tuple[bool, Next]:
        """Whether the node matches, and the state for its children."""

    def possible(self, can: Possible) -> bool:
        """False only if nothing at or below the node in question can match."""


Next = State | None | tuple[State | None, ...]


@dataclass(frozen=True, slots=True)
class _Everywhere:
    matcher: Matcher

    def step(self, node: Circuit) -> tuple[bool, Next]:
        return self.matcher(node), self

    def possible(self, can: Possible) -> bool:
        return can(self.matcher)


@dataclass(frozen=True, slots=True)
class _Filtered:
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
        return _Filtered(inner, max(0, self.start_depth - 1), end, self.term_early_at, self.term_if_matches)

    def possible(self, can: Possible) -> bool:
        return self.inner.possible(can)


@dataclass(frozen=True, slots=True)
class _Chains:
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
        return _Chains(frozenset((head, *tail) for head, tail in heads))  # type: ignore[arg-type]
    out = list[State | None]()
    for i in range(len(node.children)):
        mine = [((head[i] if isinstance(head, tuple) else head), tail) for head, tail in heads]
        alive = frozenset((head, *tail) for head, tail in mine if head is not None)
        out.append(_Chains(alive) if alive else None)
    return tuple(out)


@dataclass(frozen=True, slots=True)
class _AnyOf:
    states: tuple[State, ...]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        results = [state.step(node) for state in self.states]
        return any(found for found, _ in results), _combine(node, [n for _, n in results], _AnyOf, drop_ended=True)

    def possible(self, can: Possible) -> bool:
        return any(state.possible(can) for state in self.states)


@dataclass(frozen=True, slots=True)
class _AllOf:
    states: tuple[State, ...]

    def step(self, node: Circuit) -> tuple[bool, Next]:
        results = [state.step(node) for state in self.states]
        return all(found for found, _ in results), _combine(node, [n for _, n in results], _AllOf, drop_ended=False)

    def possible(self, can: Possible) -> bool:
        return all(state.possible(can) for state in self.states)


def _combine(node: Circuit, nexts: list[Next], make: Callable[[tuple[State, ...]], State], drop_ended: bool) -> Next:
    def join(states: list[State | None]) -> State | None:
        alive = tuple(state for state in states if state is not None)
        return make(alive) if alive and (drop_ended or len(alive) == len(states)) else None

    if not any(isinstance(following, tuple) for following in nexts):
        return join(nexts)  # type: ignore[arg-type]
    count = len(node.children)
    return tuple(join([n[i] if isinstance(n, tuple) else n for n in nexts]) for i in range(count))


@dataclass(frozen=True, slots=True)
class _ChildrenOf:
    """Matches chosen children of whatever `inner` matches."""

    inner: State | None
    choose: Callable[[Circuit], frozenset[int]]
    chosen: bool = False

    def step(self, node: Circuit) -> tuple[bool, Next]:
        found, following = (False, None) if self.inner is None else self.inner.step(node)
        picks = self.choose(node) if found else frozenset()
        below = list[State | None]()
        for i in range(len(node.children)):
            state = following[i] if isinstance(following, tuple) else following
            picked = i in picks
            below.append(_ChildrenOf(state, self.choose, picked) if state is not None or picked else None)
        return self.chosen, tuple(below)

    def possible(self, can: Possible) -> bool:
        return self.chosen or (self.inner is not None and self.inner.possible(can))


def _map_next(following: Next, f: Callable[[State], State]) -> Next:
    if isinstance(following, tuple):
        return tuple(None if state is None else f(state) for state in following)
    return None if following is None else f(following)


class IterativeMatcher:
    """A matcher that also looks at the path from the root to a node. Several inputs mean "any of them".

    Args:
        inps: iterative matchers, or anything that a `Matcher` can be made of.
    """

    __slots__ = ("state",)

    state: State

    def __init__(self, *inps: IterativeMatcherIn) -> None:
        iterative = [inp for inp in inps if isinstance(inp, IterativeMatcher)]
        plain = [inp for inp in inps if not isinstance(inp, IterativeMatcher)]
        states = [inp.state for inp in iterative] + ([_Everywhere(Matcher(*plain))] if plain or not inps else [])
        self.state = states[0] if len(states) == 1 else _AnyOf(tuple(states))

    @classmethod
    def of_state(cls, state: State) -> IterativeMatcher:
        """The matcher that begins in a state."""
        out = object.__new__(cls)
        out.state = state
        return out

    @property
    def plain(self) -> Matcher | None:
        """The plain matcher that this is, if it does not look at paths."""
        return self.state.matcher if isinstance(self.state, _Everywhere) else None

    @staticmethod
    def any(*matchers: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher(*matchers)

    @staticmethod
    def all(*matchers: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher.of_state(_AllOf(tuple(IterativeMatcher(matcher).state for matcher in matchers)))

    @staticmethod
    def noop_traversal() -> IterativeMatcher:
        """Matches every node."""
        return IterativeMatcher(True)

    @staticmethod
    def term(match_next: bool = False) -> IterativeMatcher:
        """Ends at once; matches the node it is given if `match_next`."""
        return IterativeMatcher(match_next).filter(end_depth=1)

    @staticmethod
    def new_chain(
        first: IterativeMatcherIn, *matchers: IterativeMatcherIn, must_be_sub: bool = False
    ) -> IterativeMatcher:
        return IterativeMatcher(first).chain(*matchers, must_be_sub=must_be_sub)

    def chain(self, *rest: IterativeMatcherIn, must_be_sub: bool = False) -> IterativeMatcher:
        """Matches what the last matcher finds at or below what the one before finds, and so on up to this one.

        Args:
            rest: the further matchers.
            must_be_sub: whether each must match below, not at, the node that the one before matched.
        """
        states = [self.state]
        for matcher in rest:
            following = IterativeMatcher(matcher)
            states.append((following.filter(start_depth=1) if must_be_sub else following).state)
        return IterativeMatcher.of_state(_Chains(frozenset((tuple(states),))))

    def chain_many(self, *rest: Any, must_be_sub: bool = False) -> IterativeMatcher:
        """Several chains that begin with this matcher, any of which may match."""
        chains = [self.chain(*matchers, must_be_sub=must_be_sub).state for matchers in rest]
        return IterativeMatcher.of_state(_AnyOf(tuple(chains)))

    def filter(
        self,
        term_if_matches: bool = False,
        start_depth: int | None = None,
        end_depth: int | None = None,
        term_early_at: MatcherIn = False,
    ) -> IterativeMatcher:
        """Matches less.

        Args:
            term_if_matches: do not look below a match.
            start_depth: do not match above this depth (the root has depth 0).
            end_depth: do not match at this depth or below.
            term_early_at: do not look below nodes that match this; they themselves may match.
        """
        if end_depth is not None and start_depth is not None and end_depth <= start_depth:
            raise MatchError(
                f"start_depth {start_depth} is not above end_depth {end_depth}: nothing can match",
                hint="start_depth is inclusive, end_depth exclusive",
            )
        early = None if term_early_at is False else Matcher(term_early_at)
        return IterativeMatcher.of_state(_Filtered(self.state, start_depth or 0, end_depth, early, term_if_matches))

    restrict = filter

    def children_matcher(self, child_numbers: set[int]) -> IterativeMatcher:
        """Matches the children of these numbers of what this matcher matches; MatchError if there is none."""
        numbers = frozenset(child_numbers)
        return self._children(lambda node: _existing(node, numbers))

    def spec_circuit_matcher(self) -> IterativeMatcher:
        """Matches the body of the modules that this matcher matches."""
        return self._children(lambda node: frozenset((0,)) if isinstance(_module(node), Module) else frozenset())

    def module_arg_matcher(self, arg_sym_matcher: MatcherIn) -> IterativeMatcher:
        """Matches those arguments of the modules matched whose symbols match `arg_sym_matcher`."""
        wanted = Matcher(arg_sym_matcher)

        def choose(node: Circuit) -> frozenset[int]:
            specs = _module(node).arg_specs
            return frozenset(i + 1 for i, spec in enumerate(specs) if wanted(spec.symbol))

        return self._children(choose)

    def _children(self, choose: Callable[[Circuit], frozenset[int]]) -> IterativeMatcher:
        return IterativeMatcher.of_state(_ChildrenOf(self.state, choose))

    def __repr__(self) -> str:
        return f"IterativeMatcher({self.state})".replace("(_", "(").replace("=_", "=")

    def get(self, circuit: Circuit) -> set[Circuit]:
        return circuit.get(self)

    def get_unique(self, circuit: Circuit) -> Circuit:
        return circuit.get_unique(self)

    def update(self, circuit: Circuit, transform: Callable[[Circuit], Circuit]) -> Circuit:
        return circuit.update(self, transform)

    def __or__(self, other: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher(self, other)

    __ror__ = __or__

    def __and__(self, other: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher.all(self, other)

    __rand__ = __and__

    def __bool__(self) -> bool:
        raise TypeMismatchError("a matcher has no truth value", hint="combine matchers with & and |, not with and / or")


def _existing(node: Circuit, numbers: frozenset[int]) -> frozenset[int]:
    for number in sorted(numbers):
        if not 0 <= number < len(node.children):
            raise MatchError(
                f"{node!r} has no child {number}", hint=f"it has {len(node.children)} children, numbered from 0"
            )
    return numbers


def _module(node: Circuit) -> Module:
    if not isinstance(node, Module):
        raise MatchError(
            f"{node!r} is no Module", hint="let the matcher before match modules only (`Matcher & Module`)"
        )
    return node


def restrict(
    matcher: IterativeMatcherIn,
    term_if_matches: bool = False,
    start_depth: int | None = None,
    end_depth: int | None = None,
    term_early_at: MatcherIn = False,
) -> IterativeMatcher:
    """See `IterativeMatcher.filter`."""
    return IterativeMatcher(matcher).filter(term_if_matches, start_depth, end_depth, term_early_at)


def new_traversal(
    start_depth: int | None = None, end_depth: int | None = None, term_early_at: MatcherIn = False
) -> IterativeMatcher:
    """Matches every node of the part of the circuit described (see `IterativeMatcher.filter`)."""
    return IterativeMatcher(True).filter(False, start_depth, end_depth, term_early_at)
