"""The methods of a circuit that look into it: search, rewriting, text, files, values.

They only call the modules that do the work, so that a circuit reads well in use: `circuit.get_unique("a0.h0")`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tapeout.ir.errors import MatchError, UnsupportedError
from tapeout.ir.fluent.building import CircuitBuilding

if TYPE_CHECKING:
    from tapeout.ir.circuit import Circuit
    from tapeout.ir.matching.iterative import IterativeMatcherIn
    from tapeout.ir.text.html import PrintHtmlOptions
    from tapeout.ir.text.options import PrintOptions

Evaluator = Callable[["Circuit", torch.dtype | str | None], torch.Tensor]
_evaluator: list[Evaluator] = []


def set_evaluator(evaluator: Evaluator) -> None:
    """Says what `circuit.evaluate()` calls; the reference backend does so when it is imported."""
    _evaluator[:] = [evaluator]


class CircuitMethods(CircuitBuilding):
    """Methods of `Circuit`; each calls the module that does the work."""

    __slots__ = ()

    # -- search and rewriting

    def get(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> set[Circuit]:
        """The nodes that match.

        Args:
            matcher: which nodes.
            fancy_validate: raise if a name, kind or regex of the matcher finds nothing.

        Raises:
            MatchError: see `fancy_validate`.
        """
        from tapeout.ir.matching import search

        return search.get(self._self, matcher, fancy_validate)

    def get_unique(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit:
        """The one node that matches.

        Raises:
            MatchError: if none does, or several do.
        """
        from tapeout.ir.matching import search

        return search.get_unique(self._self, matcher, fancy_validate)

    def get_unique_op(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit | None:
        """The one node that matches, None if none does.

        Raises:
            MatchError: if several do.
        """
        from tapeout.ir.matching import search

        return search.get_unique_op(self._self, matcher, fancy_validate)

    def get_paths(self, matcher: IterativeMatcherIn) -> dict[Circuit, list[Circuit]]:
        """For each node that matches, one path to it: the node first, this circuit last."""
        from tapeout.ir.matching import search

        return search.get_paths(self._self, matcher)

    def get_all_paths(self, matcher: IterativeMatcherIn) -> dict[Circuit, list[list[Circuit]]]:
        """For each node that matches, every path to it; there can be exponentially many."""
        from tapeout.ir.matching import search

        return search.get_all_paths(self._self, matcher)

    def get_all_circuits_in_paths(self, matcher: IterativeMatcherIn) -> list[Circuit]:
        """The nodes on any path to a node that matches, that one and this circuit included; children first."""
        from tapeout.ir.matching import search

        return search.get_all_circuits_in_paths(self._self, matcher)

    def are_any_found(self, matcher: IterativeMatcherIn) -> bool:
        """Whether a node at or below this one matches."""
        from tapeout.ir.matching import search

        return search.are_any_found(self._self, matcher)

    def update(
        self,
        matcher: IterativeMatcherIn,
        transform: Callable[[Circuit], Circuit],
        fancy_validate: bool = False,
        assert_found: bool | int = False,
        assert_different: bool = False,
    ) -> Circuit:
        """Every node that matches is replaced by its transform; nodes above are rebuilt.

        Works from the leaves up: a node's children are updated before the node is given to
        `transform`, and what `transform` returns is not searched again.

        Args:
            matcher: which nodes.
            transform: from a node, its children already updated, to its replacement.
            fancy_validate: raise if a name, kind or regex of the matcher finds nothing.
            assert_found: raise if no node (True) or not so many nodes (a number) match.
            assert_different: raise if nothing changes.

        Raises:
            MatchError: see `fancy_validate`, `assert_found`, `assert_different`.
            ShapeError: if a replacement does not fit where it is put.
        """
        from tapeout.ir.rewriting.update import update

        return update(self._self, matcher, transform, fancy_validate, assert_found, assert_different)

    def map_children(self, fn: Callable[[Circuit], Circuit]) -> Circuit:
        """The same node over the images of its children."""
        return self.map_children_enumerate(lambda _, child: fn(child))

    def map_children_enumerate(self, fn: Callable[[int, Circuit], Circuit]) -> Circuit:
        """The same node over the images of its children, of which `fn` is given the number too."""
        return self._self.with_children(tuple(fn(i, child) for i, child in enumerate(self._self.children)))

    def map_child(self, ix: int, x: Callable[[Circuit], Circuit]) -> Circuit:
        """The same node with one child replaced by its image.

        Raises:
            MatchError: if there is no child of that number.
        """
        node = self._self
        if not 0 <= ix < len(node.children):
            raise MatchError(
                f"{node!r} has no child {ix}", hint=f"it has {len(node.children)} children, numbered from 0"
            )
        return self.map_children_enumerate(lambda i, child: x(child) if i == ix else child)

    def add_suffix(self, suffix: str) -> Circuit:
        """The node renamed to `name_suffix`; one without a name stays so."""
        node = self._self
        return node if node.op_name is None else node.rename(f"{node.op_name}_{suffix}")

    def visit(self, f: Callable[[Circuit], None]) -> None:
        """Calls `f` for each node once, children first."""
        from tapeout.ir.circuit import postorder

        for node in postorder(self._self):
            f(node)

    # -- text and values

    def repr(self, options: PrintOptions | None = None) -> str:
        """The circuit as text, a line a node."""
        from tapeout.ir.text.printing import circuit_text

        return circuit_text(self._self, options=options)

    def print(self, options: PrintOptions | PrintHtmlOptions | None = None) -> None:
        """Prints the circuit, a line a node."""
        from tapeout.ir.text.options import PrintOptions

        (PrintOptions() if options is None else options).print(self._self)

    def print_html(self, options: PrintHtmlOptions | None = None) -> None:
        """Shows the circuit in the cell of a notebook, as a tree that folds.

        Raises:
            UnsupportedError: if this is no notebook.
        """
        from tapeout.ir.text.html import PrintHtmlOptions

        (PrintHtmlOptions() if options is None else options).print(self._self)

    def save(self, path: str | Path) -> None:
        """Writes the circuit to a folder: its text, its tensors, and a manifest with their hashes.

        What was saved there before is replaced at once, when everything is written.

        Raises:
            ArtefactError: if something else is at `path`, it cannot be written, or the circuit has a
                function of which the text does not tell what it is.
        """
        from tapeout.ir.files.store import save_circuit

        save_circuit(self._self, path)

    @staticmethod
    def load(path: str | Path) -> Circuit:
        """The circuit that `save` wrote: the identical one, its tensors on the CPU.

        Raises:
            ArtefactError: if it is missing, altered, truncated or of another version.
        """
        from tapeout.ir.files.store import load_circuit

        return load_circuit(path)

    def evaluate(self, dtype: torch.dtype | str | None = None) -> torch.Tensor:
        """The value, by the reference backend.

        Args:
            dtype: a floating dtype to compute in ("float64" is exact enough to define the
                circuit's meaning); None for the constants' own.

        Raises:
            ModuleBindingError: if a symbol is unbound.
            UnsupportedError: if the circuit holds random variables that were not sampled.
        """
        if not _evaluator:
            raise UnsupportedError("no evaluator is loaded", hint="import tapeout")
        return _evaluator[0](self._self, dtype)
