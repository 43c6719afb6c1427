"""Searches and updates as objects: `Getter`, `AnyFound`, `Updater`, `Transform`, and each with a matcher bound to it.

rust_circuit's cache what they have found. Here nodes carry what a search needs, so only `Updater` remembers
something: what its transform has made of each node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tapeout.ir.circuit import Circuit
from tapeout.ir.matching import search
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn
from tapeout.ir.rewriting.update import update

TransformIn = Callable[[Circuit], Circuit]
"""A function from a node to a node, or a `Transform`."""


@dataclass(frozen=True, slots=True)
class Transform:
    """A function from a node to a node."""

    run: TransformIn

    def __call__(self, circuit: Circuit) -> Circuit:
        return self.run(circuit)

    @staticmethod
    def ident() -> Transform:
        return Transform(lambda circuit: circuit)

    def updater(self) -> Updater:
        return Updater(self)


@dataclass(frozen=True, slots=True)
class Getter:
    """`get` and its relatives as an object.

    Args:
        default_fancy_validate: whether every part of a matcher must find something (see `Matcher.validate`).
    """

    default_fancy_validate: bool = False

    def get(self, circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool | None = None) -> set[Circuit]:
        """See `Circuit.get`."""
        return search.get(circuit, matcher, self._validates(fancy_validate))

    __call__ = get

    def get_unique(self, circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool | None = None) -> Circuit:
        """See `Circuit.get_unique`."""
        return search.get_unique(circuit, matcher, self._validates(fancy_validate))

    def get_unique_op(
        self, circuit: Circuit, matcher: IterativeMatcherIn, fancy_validate: bool | None = None
    ) -> Circuit | None:
        """See `Circuit.get_unique_op`."""
        return search.get_unique_op(circuit, matcher, self._validates(fancy_validate))

    def get_paths(self, circuit: Circuit, matcher: IterativeMatcherIn) -> dict[Circuit, list[Circuit]]:
        return search.get_paths(circuit, matcher)

    def get_all_paths(self, circuit: Circuit, matcher: IterativeMatcherIn) -> dict[Circuit, list[list[Circuit]]]:
        return search.get_all_paths(circuit, matcher)

    def get_all_circuits_in_paths(self, circuit: Circuit, matcher: IterativeMatcherIn) -> list[Circuit]:
        return search.get_all_circuits_in_paths(circuit, matcher)

    def validate(self, circuit: Circuit, matcher: IterativeMatcherIn) -> None:
        IterativeMatcher(matcher).validate(circuit)

    def bind(self, matcher: IterativeMatcherIn) -> BoundGetter:
        return BoundGetter(self, IterativeMatcher(matcher))

    def _validates(self, fancy_validate: bool | None) -> bool:
        return self.default_fancy_validate if fancy_validate is None else fancy_validate


@dataclass(frozen=True, slots=True)
class BoundGetter:
    """A `Getter` with a matcher."""

    getter: Getter
    matcher: IterativeMatcherIn

    def get(self, circuit: Circuit, fancy_validate: bool | None = None) -> set[Circuit]:
        return self.getter.get(circuit, self.matcher, fancy_validate)

    __call__ = get

    def get_unique(self, circuit: Circuit, fancy_validate: bool | None = None) -> Circuit:
        return self.getter.get_unique(circuit, self.matcher, fancy_validate)

    def get_unique_op(self, circuit: Circuit, fancy_validate: bool | None = None) -> Circuit | None:
        return self.getter.get_unique_op(circuit, self.matcher, fancy_validate)

    def get_paths(self, circuit: Circuit) -> dict[Circuit, list[Circuit]]:
        return self.getter.get_paths(circuit, self.matcher)

    def get_all_paths(self, circuit: Circuit) -> dict[Circuit, list[list[Circuit]]]:
        return self.getter.get_all_paths(circuit, self.matcher)

    def validate(self, circuit: Circuit) -> None:
        self.getter.validate(circuit, self.matcher)


@dataclass(frozen=True, slots=True)
class AnyFound:
    """`are_any_found` as an object."""

    def are_any_found(self, circuit: Circuit, matcher: IterativeMatcherIn) -> bool:
        return search.are_any_found(circuit, matcher)

    __call__ = are_any_found

    def bind(self, matcher: IterativeMatcherIn) -> BoundAnyFound:
        return BoundAnyFound(self, matcher)


@dataclass(frozen=True, slots=True)
class BoundAnyFound:
    """An `AnyFound` with a matcher: a predicate on circuits, so that a Matcher can be made of it."""

    any_found: AnyFound
    matcher: IterativeMatcherIn

    def are_any_found(self, circuit: Circuit) -> bool:
        return self.any_found(circuit, self.matcher)

    __call__ = are_any_found


@dataclass(frozen=True, slots=True)
class Updater:
    """`update` with a fixed transform, applied once to each distinct node over all calls.

    Args:
        transform: from a node, its children already updated, to its replacement.
        default_fancy_validate, default_assert_found, default_assert_different: see `Circuit.update`.
    """

    transform: TransformIn
    default_fancy_validate: bool = False
    default_assert_found: bool | int = False
    default_assert_different: bool = False
    _results: dict[Circuit, Circuit] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _transformed(self, circuit: Circuit) -> Circuit:
        if circuit not in self._results:
            self._results[circuit] = self.transform(circuit)
        return self._results[circuit]

    def update(
        self,
        circuit: Circuit,
        matcher: IterativeMatcherIn,
        fancy_validate: bool | None = None,
        assert_found: bool | int | None = None,
        assert_different: bool | None = None,
    ) -> Circuit:
        """See `Circuit.update`."""
        return update(
            circuit,
            matcher,
            self._transformed,
            self.default_fancy_validate if fancy_validate is None else fancy_validate,
            self.default_assert_found if assert_found is None else assert_found,
            self.default_assert_different if assert_different is None else assert_different,
        )

    __call__ = update

    def bind(self, matcher: IterativeMatcherIn) -> BoundUpdater:
        return BoundUpdater(self, matcher)


@dataclass(frozen=True, slots=True)
class BoundUpdater:
    """An `Updater` with a matcher."""

    updater: Updater
    matcher: IterativeMatcherIn

    def update(
        self,
        circuit: Circuit,
        fancy_validate: bool | None = None,
        assert_found: bool | int | None = None,
        assert_different: bool | None = None,
    ) -> Circuit:
        """See `Circuit.update`."""
        return self.updater.update(circuit, self.matcher, fancy_validate, assert_found, assert_different)

    __call__ = update
