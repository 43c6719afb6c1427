"""The methods that every circuit has beside its identity: arithmetic, reshaping, search, text, evaluation.

They only build nodes and call the modules that do the work, so that a circuit reads well in use:
`circuit.get_unique("a0.h0").index(I[-1])`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from tapeout.ir.errors import MatchError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    from tapeout.ir.add import Add
    from tapeout.ir.circuit import Circuit
    from tapeout.ir.einsum import Einsum
    from tapeout.ir.general_function import GeneralFunction
    from tapeout.ir.html import PrintHtmlOptions
    from tapeout.ir.index import Index
    from tapeout.ir.iterative import IterativeMatcherIn
    from tapeout.ir.print_options import PrintOptions
    from tapeout.ir.rearrange import Rearrange, RearrangeSpec
    from tapeout.ir.sizes import SizeIn

Evaluator = Callable[["Circuit", torch.dtype | str | None], torch.Tensor]
_evaluator: list[Evaluator] = []


def set_evaluator(evaluator: Evaluator) -> None:
    """Says what `circuit.evaluate()` calls; the reference backend does so when it is imported."""
    _evaluator[:] = [evaluator]


def _automatic() -> Any:
    from tapeout.ir.circuit import _AUTONAME

    return _AUTONAME


class CircuitMethods:
    """Methods of `Circuit`; each builds nodes or calls the module that does the work."""

    __slots__ = ()

    @property
    def _self(self) -> Circuit:
        return cast("Circuit", self)

    # -- arithmetic

    def add(self, other: Circuit, name: str | None = None) -> Add:
        from tapeout.ir.add import Add

        return Add(self._self, other, name=_automatic() if name is None else name)

    def sub(self, other: Circuit, name: str | None = None) -> Add:
        from tapeout.ir.add import Add

        return Add.minus(self._self, other, _automatic() if name is None else name)

    def mul(self, other: Circuit, name: str | None = None) -> Einsum:
        """The elementwise product; one may lack leading axes."""
        from tapeout.ir.einsum import Einsum

        return Einsum.elementwise_broadcasted(self._self, other, name=_automatic() if name is None else name)

    def mul_scalar(self, scalar: float, name: str | None = None, scalar_name: str | None = None) -> Einsum:
        from tapeout.ir.einsum import Einsum

        return Einsum.scalar_mul(self._self, scalar, _automatic() if name is None else name, scalar_name)

    def sum(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> Einsum:
        """The sum over some axes, or all."""
        from tapeout.ir.einsum import Einsum

        axes = tuple(range(self._self.rank))
        kept = tuple(a for a in axes if a not in _axes(axis, len(axes), self._self))
        return Einsum((self._self, axes), out_axes=kept, name=_automatic() if name is None else name)

    def mean(
        self, axis: int | Sequence[int] | None = None, name: str | None = None, scalar_name: str | None = None
    ) -> Einsum:
        """The mean over some axes, or all; their sizes must be known."""
        from tapeout.ir.circuit import auto_name
        from tapeout.ir.einsum import Einsum
        from tapeout.ir.scalar import Scalar

        node = self._self
        axes = tuple(range(node.rank))
        reduced = _axes(axis, len(axes), node)
        count = 1
        for a in reduced:
            size = node.shape[a]
            if not isinstance(size, int):
                raise UnsupportedError(
                    f"the mean of {node!r} over an axis of symbolic size {size}",
                    hint="use last_dim_size and reciprocal",
                )
            count *= size
        label = auto_name(_automatic(), [node], "mean_div_{}") if scalar_name is None else scalar_name
        kept = tuple(a for a in axes if a not in reduced)
        args = ((node, axes), (Scalar(1.0 / count, (), label), ()))
        return Einsum(*args, out_axes=kept, name=_automatic() if name is None else name)

    def max(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> GeneralFunction:
        """The maximum over some axes, or all."""
        return self._reduce("max", axis, name)

    def min(self, axis: int | Sequence[int] | None = None, name: str | None = None) -> GeneralFunction:
        """The minimum over some axes, or all."""
        return self._reduce("min", axis, name)

    def reduce(self, op_name: str, axis: int | Sequence[int] | None = None, name: str | None = None) -> Circuit:
        """`sum`, `mean`, or the function of that name over some axes, or all: these become the last one.

        Raises:
            ParseError: if there is no such function.
        """
        if op_name in ("sum", "mean"):
            return self.sum(axis, name) if op_name == "sum" else self.mean(axis, name)
        return self._reduce(op_name, axis, name)

    def _reduce(self, function: str, axis: int | Sequence[int] | None, name: str | None) -> GeneralFunction:
        from tapeout.ir.general_function import GeneralFunction
        from tapeout.ir.rearrange import Rearrange, RearrangeSpec

        node = self._self
        reduced = _axes(axis, node.rank, node)
        last = Rearrange(node, RearrangeSpec.combine_axes_at_end(node.rank, sorted(reduced)))
        return GeneralFunction.new_by_name(last, spec_name=function, name=_automatic() if name is None else name)

    # -- indexing and reshaping

    def index(self, index: Sequence[Any], name: str | None = None) -> Index:
        """See `Index`."""
        from tapeout.ir.index import Index

        return Index(self._self, index, _automatic() if name is None else name)

    def expand_at_axes(
        self, axes: int | Iterable[int], counts: int | Iterable[SizeIn] | None = None, name: str | None = None
    ) -> Rearrange:
        """New axes at the given positions of the result, of the given sizes (1 without `counts`)."""
        from tapeout.ir.rearrange import Rearrange, RearrangeSpec
        from tapeout.ir.sizes import as_shape

        node = self._self
        where = [axes] if isinstance(axes, int) else list(axes)
        sizes = list(
            [1] * len(where) if counts is None else [counts] * len(where) if isinstance(counts, int) else counts
        )
        total = node.rank + len(where)
        if len(_axes(where, total, node)) != len(where) or len(sizes) != len(where):
            raise ShapeError(
                f"cannot expand {node!r} at axes {where} with sizes {sizes}",
                hint="give each new axis once, and as many sizes as axes (or none: they are 1)",
            )
        spec = RearrangeSpec.expand_at_axes(node.rank, [axis % total for axis in where], as_shape(sizes))
        return Rearrange(node, spec, _automatic() if name is None else name)

    def unsqueeze(self, axes: int | Iterable[int], name: str | None = None) -> Rearrange:
        """New axes of size 1 at the given positions of the result."""
        return self.expand_at_axes(axes, None, name)

    def squeeze(self, axes: int | Sequence[int], name: str | None = None) -> Rearrange:
        """Without the given axes, which must be of size 1."""
        from tapeout.ir.rearrange import Rearrange, RearrangeSpec

        node = self._self
        gone = _axes(axes, node.rank, node)
        kept = [axis for axis in range(node.rank) if axis not in gone]
        spec = RearrangeSpec.between([None if axis in gone else axis for axis in range(node.rank)], kept)
        return Rearrange(node, spec, _automatic() if name is None else name)

    def flatten(self, name: str | None = None) -> Rearrange:
        """All axes as one."""
        from tapeout.ir.rearrange import Rearrange, RearrangeSpec

        return Rearrange(self._self, RearrangeSpec.flatten(self._self.rank), _automatic() if name is None else name)

    def unflatten(self, shape: Iterable[SizeIn], name: str | None = None) -> Rearrange:
        """The one axis as several.

        Raises:
            ShapeError: if there is not one axis, or the product of the sizes is another.
        """
        if self._self.rank != 1:
            raise ShapeError(
                f"unflatten takes a node with one axis, not {self._self!r}", hint="use unflatten_axis(axis, shape)"
            )
        return self.unflatten_axis(0, shape, name)

    def unflatten_axis(self, axis: int, shape: Iterable[SizeIn], name: str | None = None) -> Rearrange:
        """One axis as several."""
        from tapeout.ir.rearrange import Rearrange, RearrangeSpec

        (at,) = _axes(axis, self._self.rank, self._self)
        spec = RearrangeSpec.unflatten_axis(self._self.rank, at, shape)
        return Rearrange(self._self, spec, _automatic() if name is None else name)

    def rearrange(self, spec: RearrangeSpec, name: str | None = None) -> Rearrange:
        from tapeout.ir.rearrange import Rearrange

        return Rearrange(self._self, spec, _automatic() if name is None else name)

    def rearrange_str(self, string: str, name: str | None = None) -> Rearrange:
        from tapeout.ir.rearrange import Rearrange

        return Rearrange.from_string(self._self, string, _automatic() if name is None else name)

    # -- search and rewriting

    def get(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> set[Circuit]:
        """The nodes that match.

        Args:
            matcher: which nodes.
            fancy_validate: raise if a name, kind or regex of the matcher finds nothing.

        Raises:
            MatchError: see `fancy_validate`.
        """
        from tapeout.ir import search

        return search.get(self._self, matcher, fancy_validate)

    def get_unique(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit:
        """The one node that matches.

        Raises:
            MatchError: if none does, or several do.
        """
        from tapeout.ir import search

        return search.get_unique(self._self, matcher, fancy_validate)

    def get_unique_op(self, matcher: IterativeMatcherIn, fancy_validate: bool = False) -> Circuit | None:
        """The one node that matches, None if none does.

        Raises:
            MatchError: if several do.
        """
        from tapeout.ir import search

        return search.get_unique_op(self._self, matcher, fancy_validate)

    def get_paths(self, matcher: IterativeMatcherIn) -> dict[Circuit, list[Circuit]]:
        """For each node that matches, one path to it: the node first, this circuit last."""
        from tapeout.ir import search

        return search.get_paths(self._self, matcher)

    def get_all_paths(self, matcher: IterativeMatcherIn) -> dict[Circuit, list[list[Circuit]]]:
        """For each node that matches, every path to it; there can be exponentially many."""
        from tapeout.ir import search

        return search.get_all_paths(self._self, matcher)

    def get_all_circuits_in_paths(self, matcher: IterativeMatcherIn) -> list[Circuit]:
        """The nodes on any path to a node that matches, that one and this circuit included; children first."""
        from tapeout.ir import search

        return search.get_all_circuits_in_paths(self._self, matcher)

    def are_any_found(self, matcher: IterativeMatcherIn) -> bool:
        """Whether a node at or below this one matches."""
        from tapeout.ir import search

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
        from tapeout.ir import search

        return search.update(self._self, matcher, transform, fancy_validate, assert_found, assert_different)

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
        from tapeout.ir.text import circuit_text

        return circuit_text(self._self, options=options)

    def print(self, options: PrintOptions | PrintHtmlOptions | None = None) -> None:
        """Prints the circuit, a line a node."""
        from tapeout.ir.print_options import PrintOptions

        (PrintOptions() if options is None else options).print(self._self)

    def print_html(self, options: PrintHtmlOptions | None = None) -> None:
        """Shows the circuit in the cell of a notebook, as a tree that folds.

        Raises:
            UnsupportedError: if this is no notebook.
        """
        from tapeout.ir.html import PrintHtmlOptions

        (PrintHtmlOptions() if options is None else options).print(self._self)

    def save(self, path: str | Path) -> None:
        """Writes the circuit to a folder: its text, its tensors, and a manifest with their hashes.

        What was saved there before is replaced at once, when everything is written.

        Raises:
            ArtefactError: if something else is at `path`, it cannot be written, or the circuit has a
                function of which the text does not tell what it is.
        """
        from tapeout.ir.store import save_circuit

        save_circuit(self._self, path)

    @staticmethod
    def load(path: str | Path) -> Circuit:
        """The circuit that `save` wrote: the identical one, its tensors on the CPU.

        Raises:
            ArtefactError: if it is missing, altered, truncated or of another version.
        """
        from tapeout.ir.store import load_circuit

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


def _axes(axis: int | Sequence[int] | None, rank: int, node: Circuit) -> set[int]:
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"{node!r} has no axis {axis}", hint=f"axes are from {-rank} to {rank - 1}")
    return {a % rank for a in axes}
