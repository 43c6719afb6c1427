"""`Expander`: several replacements at once, whose extra leading axes become batch axes of what stands above."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from uuid import uuid4

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import MatchError, ModuleBindingError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn
from tapeout.ir.matching.states import State
from tapeout.ir.nodes.module import Module
from tapeout.ir.rewriting.binding import map_above, renaming
from tapeout.ir.rewriting.update import check_found
from tapeout.ir.rust_names.objects import TransformIn
from tapeout.ir.substitution import substitute_symbols
from tapeout.ir.symbol import Symbol
from tapeout.ir.trampoline import memoised

States = tuple[State | None, ...]


class Expander:
    """Replaces the nodes that matchers match; nodes above are expanded (see `replace_nodes`).

    The walk goes from the root down. A node is replaced by the transform of the first matcher that matches it,
    which is given the node as it is in the circuit; below it nothing is looked at. Extra leading axes of all
    replacements are aligned on the right and run together: replacements by one Expander are zipped, those of
    Expanders one after another give an outer product, the later one's axes in front.

    Args:
        expanders: pairs of a matcher and a transform.
        ban_multiple_matches_on_node: raise if several matchers match one node.
        default_fancy_validate, default_assert_found, default_assert_different: for each matcher, see `Circuit.update`.
        suffix: what is put, after a `_`, to the names of the nodes above the replaced ones.
    """

    def __init__(
        self,
        *expanders: tuple[IterativeMatcherIn, TransformIn],
        ban_multiple_matches_on_node: bool = False,
        default_fancy_validate: bool = False,
        default_assert_found: bool | int = False,
        default_assert_different: bool = False,
        suffix: str | None = None,
    ) -> None:
        self.matchers = [IterativeMatcher(matcher) for matcher, _ in expanders]
        self.replacements = [transform for _, transform in expanders]
        self.ban_multiple_matches_on_node = ban_multiple_matches_on_node
        self.default_fancy_validate = default_fancy_validate
        self.default_assert_found = default_assert_found
        self.default_assert_different = default_assert_different
        self.suffix = suffix

    def batch(
        self,
        circuit: Circuit,
        fancy_validate: bool | None = None,
        assert_found: bool | int | None = None,
        assert_different: bool | None = None,
    ) -> Circuit:
        """The circuit with its replacements.

        Raises:
            ShapeError: if a replacement does not fit, or batch axes do not agree.
            MatchError: if a node matches twice and this is banned, or see `Circuit.update`.
            ModuleBindingError: if a symbol that a module binds is to be replaced.
        """
        wanted = self.default_assert_found if assert_found is None else assert_found
        for matcher in self.matchers:
            if self.default_fancy_validate if fancy_validate is None else fancy_validate:
                matcher.validate(circuit)
            if wanted is not False:
                check_found(circuit, matcher, wanted)
        out = self._batch(circuit)
        if out is circuit and (self.default_assert_different if assert_different is None else assert_different):
            raise MatchError(f"expanding {circuit!r} changes nothing", hint="nothing matched, or nothing was replaced")
        return out

    __call__ = batch

    @without_gc
    def _batch(self, circuit: Circuit) -> Circuit:
        places: dict[Symbol, Circuit] = {}
        placed: dict[tuple[Circuit, Circuit], Symbol] = {}

        def step(key: tuple[Circuit, States]) -> Generator[Any, Circuit, Circuit]:
            node, states = key
            steps = [(False, None) if state is None else state.step(node) for state in states]
            which = [i for i, (found, _) in enumerate(steps) if found]
            if len(which) > 1 and self.ban_multiple_matches_on_node:
                raise MatchError(
                    f"{len(which)} matchers of an Expander match {node!r}",
                    facts=[repr(self.matchers[i]) for i in which],
                    hint="make the matchers exclude each other, or allow several: the first one wins",
                )
            if which:
                new = self.replacements[which[0]](node)
                if new is node:
                    return node
                if (node, new) not in placed:
                    symbol = placed[node, new] = Symbol(node.shape, uuid4(), node.op_name, node.torch_dtype)
                    places[symbol] = new
                return placed[node, new]
            children = []
            for i, child in enumerate(node.children):
                below = tuple(each[i] if isinstance(each, tuple) else each for _, each in steps)
                children.append((yield child, below) if any(below) else child)
            if isinstance(node, Module):
                _check_body(node, children[0], placed)
            return node.with_children(tuple(children))

        out = memoised(step)((circuit, tuple(matcher.state for matcher in self.matchers)))
        if self.suffix is not None:
            out = map_above(out, places, renaming("", f"_{self.suffix}"))
        return substitute_symbols(out, places, capture=True)


def _check_body(module: Module, body: Circuit, placed: dict[tuple[Circuit, Circuit], Symbol]) -> None:
    """Checks that no symbol that the module binds was replaced."""
    bound = {spec.symbol for spec in module.arg_specs}
    for (node, new), place in placed.items():
        if node in bound and place in body.free_symbols:
            raise ModuleBindingError(
                f"{node!r} is bound by module {module.name!r} and cannot be replaced by {new!r}",
                hint="replace the module's argument, or substitute the module first",
            )
