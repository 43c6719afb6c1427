"""`IterativeMatcher`: a question about a node and the path that led to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError, TypeMismatchError
from tapeout.ir.fluent.finding import Finding
from tapeout.ir.matching.matcher import Matcher, MatcherIn
from tapeout.ir.matching.states import (
    SAME,
    AllOf,
    AnyOf,
    Chains,
    ChildrenOf,
    Everywhere,
    Filtered,
    Next,
    OutsideSpecs,
    State,
    Stepping,
)
from tapeout.ir.nodes.module import Module

IterativeMatcherIn = Any
"""An IterativeMatcher, or anything that a Matcher can be made of."""


class Finished:
    """The path ends: nothing below matches. There is one, `FINISHED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "FINISHED"


FINISHED = Finished()


@dataclass(frozen=True, slots=True)
class IterateMatchResults:
    """What an iterative matcher says at a node.

    Attributes:
        updated: the matcher for the children: None for the same one, `FINISHED` for none, or a list with one
            of these for each child.
        found: whether the node matches.
    """

    updated: Any = None
    found: bool = False

    @staticmethod
    def new_finished(found: bool = False) -> IterateMatchResults:
        return IterateMatchResults(FINISHED, found)

    def to_tup(self) -> tuple[Any, bool]:
        return self.updated, self.found


class IterativeMatcher(Finding):
    """A matcher that also looks at the path from the root to a node. Several inputs mean "any of them".

    Args:
        inps: iterative matchers, or anything that a `Matcher` can be made of.
    """

    __slots__ = ("state",)

    state: State

    def __init__(self, *inps: IterativeMatcherIn) -> None:
        iterative = [inp for inp in inps if isinstance(inp, IterativeMatcher)]
        plain = [inp for inp in inps if not isinstance(inp, IterativeMatcher)]
        states = [inp.state for inp in iterative] + ([Everywhere(Matcher(*plain))] if plain or not inps else [])
        self.state = states[0] if len(states) == 1 else AnyOf(tuple(states))

    @classmethod
    def of_state(cls, state: State) -> IterativeMatcher:
        """The matcher that begins in a state."""
        out = object.__new__(cls)
        out.state = state
        return out

    @property
    def plain(self) -> Matcher | None:
        """The plain matcher that this is, if it does not look at paths."""
        return self.state.matcher if isinstance(self.state, Everywhere) else None

    def match_iterate(self, circuit: Circuit) -> IterateMatchResults:
        """One step: whether this node matches, and the matcher for its children."""

        def matcher(state: State | None) -> IterativeMatcher | Finished | None:
            return FINISHED if state is None else None if state is self.state else IterativeMatcher.of_state(state)

        found, following = self.state.step(circuit)
        updated = list(map(matcher, following)) if isinstance(following, tuple) else matcher(following)
        return IterateMatchResults(updated, found)

    @staticmethod
    def any(*matchers: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher(*matchers)

    @staticmethod
    def all(*matchers: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher.of_state(AllOf(tuple(IterativeMatcher(matcher).state for matcher in matchers)))

    def new_or(self, *others: IterativeMatcherIn) -> IterativeMatcher:
        """`self | other | ...`"""
        return IterativeMatcher(self, *others)

    @staticmethod
    def noop_traversal() -> IterativeMatcher:
        """Matches every node."""
        return IterativeMatcher(True)

    @staticmethod
    def term(match_next: bool = False) -> IterativeMatcher:
        """Ends at once; matches the node it is given if `match_next`."""
        return IterativeMatcher(match_next).filter(end_depth=1)

    @staticmethod
    def new_func(f: Callable[[Circuit], IterateMatchResults]) -> IterativeMatcher:
        """The matcher that does at each node what `f` says."""

        def state(updated: Any) -> State | None:
            return None if updated is FINISHED else SAME if updated is None else IterativeMatcher(updated).state

        def step(node: Circuit) -> tuple[bool, Next]:
            result = f(node)
            if not isinstance(result.updated, (list, tuple)):
                return result.found, state(result.updated)
            if len(result.updated) != len(node.children):
                raise MatchError(
                    f"a function of an iterative matcher gives {len(result.updated)} matchers for the "
                    f"{len(node.children)} children of {node!r}",
                    hint="give one matcher for all children, or a list with one for each",
                )
            return result.found, tuple(map(state, result.updated))

        return IterativeMatcher.of_state(Stepping(step))

    @staticmethod
    def new_chain(
        first: IterativeMatcherIn, *matchers: IterativeMatcherIn, must_be_sub: bool = False
    ) -> IterativeMatcher:
        """See `chain`."""
        return IterativeMatcher.new_chain_many((first, *matchers), must_be_sub=must_be_sub)

    @staticmethod
    def new_chain_many(*chains: Sequence[IterativeMatcherIn], must_be_sub: bool = False) -> IterativeMatcher:
        """Several chains, any of which may match.

        Raises:
            MatchError: if a chain is empty.
        """
        if not all(chains):
            raise MatchError("a chain of no matchers", hint="a chain has at least one matcher")

        def states(first: IterativeMatcherIn, *rest: IterativeMatcherIn) -> tuple[State, ...]:
            below = [restrict(matcher, start_depth=1) if must_be_sub else matcher for matcher in rest]
            return tuple(IterativeMatcher(matcher).state for matcher in (first, *below))

        return IterativeMatcher.of_state(Chains(frozenset(states(*chain) for chain in chains)))

    @staticmethod
    def new_children_matcher(first_match: IterativeMatcherIn, child_numbers: Set[int]) -> IterativeMatcher:
        """See `children_matcher`."""
        numbers = frozenset(child_numbers)
        return _children(first_match, lambda node: _existing(node, numbers))

    @staticmethod
    def new_spec_circuit_matcher(first_match: IterativeMatcherIn) -> IterativeMatcher:
        """See `spec_circuit_matcher`."""
        return _children(first_match, lambda node: frozenset((0,)) if _module(node) else frozenset())

    @staticmethod
    def new_module_arg_matcher(module_matcher: IterativeMatcherIn, arg_sym_matcher: MatcherIn) -> IterativeMatcher:
        """See `module_arg_matcher`."""
        wanted = Matcher(arg_sym_matcher)

        def choose(node: Circuit) -> frozenset[int]:
            specs = _module(node).arg_specs
            return frozenset(i + 1 for i, spec in enumerate(specs) if wanted(spec.symbol))

        return _children(module_matcher, choose)

    def __repr__(self) -> str:
        return f"IterativeMatcher({self.state})"

    def __or__(self, other: IterativeMatcherIn) -> IterativeMatcher:
        return self.new_or(other)

    def __and__(self, other: IterativeMatcherIn) -> IterativeMatcher:
        return IterativeMatcher.all(self, other)

    __ror__, __rand__ = __or__, __and__

    def __bool__(self) -> bool:
        raise TypeMismatchError("a matcher has no truth value", hint="combine matchers with & and |, not with and / or")


def _children(matcher: IterativeMatcherIn, choose: Callable[[Circuit], frozenset[int]]) -> IterativeMatcher:
    return IterativeMatcher.of_state(ChildrenOf(IterativeMatcher(matcher).state, choose))


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


def outside_module_specs(matcher: IterativeMatcherIn) -> IterativeMatcher:
    """See `IterativeMatcher.filter_module_spec`."""
    return IterativeMatcher.of_state(OutsideSpecs(IterativeMatcher(matcher).state))


def restrict(
    matcher: IterativeMatcherIn,
    term_if_matches: bool = False,
    start_depth: int | None = None,
    end_depth: int | None = None,
    term_early_at: MatcherIn = False,
) -> IterativeMatcher:
    """See `IterativeMatcher.filter`."""
    if end_depth is not None and start_depth is not None and end_depth <= start_depth:
        raise MatchError(
            f"start_depth {start_depth} is not above end_depth {end_depth}: nothing can match",
            hint="start_depth is inclusive, end_depth exclusive",
        )
    inner = IterativeMatcher(matcher).state
    early = None if term_early_at is False else Matcher(term_early_at)
    return IterativeMatcher.of_state(Filtered(inner, start_depth or 0, end_depth, early, term_if_matches))


def restrict_sl(
    matcher: IterativeMatcherIn,
    term_if_matches: bool = False,
    depth_slice: slice = slice(None),
    term_early_at: MatcherIn = False,
) -> IterativeMatcher:
    """See `IterativeMatcher.filter`; the depths are given as a slice, `I[1:3]`.

    Raises:
        MatchError: if the slice has a step, or no depth is left.
    """
    if depth_slice.step is not None:
        raise MatchError(f"depths with a step: {depth_slice}", hint="depths are from start to stop")
    return restrict(matcher, term_if_matches, depth_slice.start, depth_slice.stop, term_early_at)


def new_traversal(
    start_depth: int | None = None, end_depth: int | None = None, term_early_at: MatcherIn = False
) -> IterativeMatcher:
    """Matches every node of the part of the circuit described (see `IterativeMatcher.filter`)."""
    return restrict(True, False, start_depth, end_depth, term_early_at)


def traverse_until_depth(depth: int | None) -> IterativeMatcher:
    """Matches every node down to this depth, which is included (the root has depth 0); None for all."""
    return new_traversal(end_depth=None if depth is None else depth + 1)
