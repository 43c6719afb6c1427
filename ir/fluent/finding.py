"""What a matcher can be asked to do with a circuit: both sorts of matchers have these methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapeout.ir.circuit import Circuit
    from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn
    from tapeout.ir.matching.matcher import MatcherIn
    from tapeout.ir.rust_names.objects import BoundAnyFound, BoundGetter, BoundUpdater


class Finding:
    """Searches and updates by a matcher, and matchers made of it. `m.get(circuit)` is `circuit.get(m)`."""

    __slots__ = ()

    # -- searches

    def get(self, circuit: Circuit, fancy_validate: bool = False) -> set[Circuit]:
        """See `Circuit.get`."""
        return circuit.get(self, fancy_validate)

    def get_unique(self, circuit: Circuit, fancy_validate: bool = False) -> Circuit:
        """See `Circuit.get_unique`."""
        return circuit.get_unique(self, fancy_validate)

    def get_unique_op(self, circuit: Circuit, fancy_validate: bool = False) -> Circuit | None:
        """See `Circuit.get_unique_op`."""
        return circuit.get_unique_op(self, fancy_validate)

    def get_paths(self, circuit: Circuit) -> dict[Circuit, list[Circuit]]:
        """See `Circuit.get_paths`."""
        return circuit.get_paths(self)

    def get_all_paths(self, circuit: Circuit) -> dict[Circuit, list[list[Circuit]]]:
        """See `Circuit.get_all_paths`."""
        return circuit.get_all_paths(self)

    def get_all_circuits_in_paths(self, circuit: Circuit) -> list[Circuit]:
        """See `Circuit.get_all_circuits_in_paths`."""
        return circuit.get_all_circuits_in_paths(self)

    def are_any_found(self, circuit: Circuit) -> bool:
        """Whether a node at or below the circuit matches."""
        return circuit.are_any_found(self)

    def validate(self, circuit: Circuit) -> None:
        """Checks that each name, kind, regex and predicate that this is made of finds something.

        Raises:
            MatchError: if one finds nothing.
        """
        self.validate_matched(self.get(circuit))

    def validate_matched(self, matched: Set[Circuit]) -> None:
        """See `validate`; `matched` is what was found."""
        from tapeout.ir.matching.search import validate_matched

        validate_matched(self, matched)

    def update(
        self,
        circuit: Circuit,
        transform: Callable[[Circuit], Circuit],
        fancy_validate: bool = False,
        assert_found: bool | int = False,
        assert_different: bool = False,
    ) -> Circuit:
        """See `Circuit.update`."""
        return circuit.update(self, transform, fancy_validate, assert_found, assert_different)

    # -- the same as objects

    def getter(self, default_fancy_validate: bool = False) -> BoundGetter:
        from tapeout.ir.rust_names.objects import Getter

        return Getter(default_fancy_validate).bind(self)

    def any_found(self) -> BoundAnyFound:
        from tapeout.ir.rust_names.objects import AnyFound

        return AnyFound().bind(self)

    def updater(self, transform: Callable[[Circuit], Circuit], **defaults: Any) -> BoundUpdater:
        """An `Updater` with this matcher; `defaults` are its options."""
        from tapeout.ir.rust_names.objects import Updater

        return Updater(transform, **defaults).bind(self)

    # -- matchers made of this one

    def to_iterative_matcher(self) -> IterativeMatcher:
        from tapeout.ir.matching.iterative import IterativeMatcher

        return IterativeMatcher(self)

    def chain(self, *rest: IterativeMatcherIn, must_be_sub: bool = False) -> IterativeMatcher:
        """Matches what the last matcher finds at or below what the one before finds, and so on up to this one.

        Args:
            rest: the further matchers.
            must_be_sub: whether each must match below, not at, the node that the one before matched.
        """
        return self.chain_many(rest, must_be_sub=must_be_sub)

    def chain_many(self, *rest: Sequence[IterativeMatcherIn], must_be_sub: bool = False) -> IterativeMatcher:
        """Several chains that begin with this matcher, any of which may match."""
        from tapeout.ir.matching.iterative import IterativeMatcher

        return IterativeMatcher.new_chain_many(*((self, *matchers) for matchers in rest), must_be_sub=must_be_sub)

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

        Raises:
            MatchError: if no depth is left.
        """
        from tapeout.ir.matching.iterative import restrict

        return restrict(self, term_if_matches, start_depth, end_depth, term_early_at)

    restrict = filter

    def filter_module_spec(self, enable: bool = True) -> IterativeMatcher:
        """Matches nothing inside the bodies of modules."""
        from tapeout.ir.matching.iterative import outside_module_specs

        return outside_module_specs(self) if enable else self.to_iterative_matcher()

    def children_matcher(self, child_numbers: Set[int]) -> IterativeMatcher:
        """Matches the children of these numbers of what this matches; MatchError if there is none."""
        from tapeout.ir.matching.iterative import IterativeMatcher

        return IterativeMatcher.new_children_matcher(self, child_numbers)

    def spec_circuit_matcher(self) -> IterativeMatcher:
        """Matches the body of the modules that this matches."""
        from tapeout.ir.matching.iterative import IterativeMatcher

        return IterativeMatcher.new_spec_circuit_matcher(self)

    def module_arg_matcher(self, arg_sym_matcher: MatcherIn) -> IterativeMatcher:
        """Matches those arguments of the modules matched whose symbols match `arg_sym_matcher`."""
        from tapeout.ir.matching.iterative import IterativeMatcher

        return IterativeMatcher.new_module_arg_matcher(self, arg_sym_matcher)
