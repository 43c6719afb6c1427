"""What kind a node is: `is_...`, `cast_...` (or an error), `maybe_...` (or None); and what follows from kinds below.

`cast_module()` tells a type checker, and the reader, what a search has found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tapeout.ir.errors import TypeMismatchError

if TYPE_CHECKING:
    from tapeout.ir.circuit import Circuit
    from tapeout.ir.nodes.add import Add
    from tapeout.ir.nodes.array import Array
    from tapeout.ir.nodes.concat import Concat
    from tapeout.ir.nodes.discrete_var import DiscreteVar
    from tapeout.ir.nodes.einsum import Einsum
    from tapeout.ir.nodes.general_function import GeneralFunction
    from tapeout.ir.nodes.index import Index
    from tapeout.ir.nodes.module import Module
    from tapeout.ir.nodes.rearrange import Rearrange
    from tapeout.ir.nodes.scalar import Scalar
    from tapeout.ir.nodes.scatter import Scatter
    from tapeout.ir.nodes.tag import Tag
    from tapeout.ir.symbol import Symbol

_LEAVES = frozenset(("Array", "Symbol", "Scalar"))


class CircuitKinds:
    """Methods of `Circuit` that ask for its kind."""

    __slots__ = ()

    @property
    def _node(self) -> Circuit:
        return cast("Circuit", self)

    def _cast(self, kind: str) -> Any:
        if self._node.kind != kind:
            raise TypeMismatchError(
                f"{self._node!r} is no {kind}",
                hint=f"it is a {self._node.kind}; look with circuit.print() at what you have",
            )
        return self

    def _maybe(self, kind: str) -> Any:
        return self if self._node.kind == kind else None

    def is_leaf(self) -> bool:
        """Whether it is an Array, a Symbol or a Scalar."""
        return self._node.kind in _LEAVES

    def is_leaf_constant(self) -> bool:
        """Whether it is an Array or a Scalar."""
        return self._node.kind in ("Array", "Scalar")

    def is_irreducible_node(self) -> bool:
        """Whether it is an Array or a Symbol; rewrites never rename these."""
        return self._node.kind in ("Array", "Symbol")

    def is_var(self) -> bool:
        """Whether it is a random variable, a DiscreteVar."""
        return self._node.kind == "DiscreteVar"

    @property
    def is_constant(self) -> bool:
        """Whether there is no random variable; symbols may be free."""
        return not self._node.are_any_found(CircuitKinds.is_var)

    @property
    def is_explicitly_computable(self) -> bool:
        """Whether it can be evaluated: there is no random variable, and no symbol is free."""
        return self.is_constant and self.no_unbound_symbols

    @property
    def can_be_sampled(self) -> bool:
        """Whether it has a value once its random variables are sampled: no symbol is free."""
        return self.no_unbound_symbols

    @property
    def no_unbound_symbols(self) -> bool:
        """Whether no symbol is free."""
        return not self._node.free_symbols

    @property
    def non_free_children(self) -> tuple[Circuit, ...]:
        """The children that are not a body: of a Module its arguments, of another node all."""
        return self._node.children[1:] if self.is_module() else self._node.children

    def is_array(self) -> bool:
        return self._node.kind == "Array"

    def cast_array(self) -> Array:
        return cast("Array", self._cast("Array"))

    def maybe_array(self) -> Array | None:
        return cast("Array | None", self._maybe("Array"))

    def is_scalar(self) -> bool:
        return self._node.kind == "Scalar"

    def cast_scalar(self) -> Scalar:
        return cast("Scalar", self._cast("Scalar"))

    def maybe_scalar(self) -> Scalar | None:
        return cast("Scalar | None", self._maybe("Scalar"))

    def is_symbol(self) -> bool:
        return self._node.kind == "Symbol"

    def cast_symbol(self) -> Symbol:
        return cast("Symbol", self._cast("Symbol"))

    def maybe_symbol(self) -> Symbol | None:
        return cast("Symbol | None", self._maybe("Symbol"))

    def is_einsum(self) -> bool:
        return self._node.kind == "Einsum"

    def cast_einsum(self) -> Einsum:
        return cast("Einsum", self._cast("Einsum"))

    def maybe_einsum(self) -> Einsum | None:
        return cast("Einsum | None", self._maybe("Einsum"))

    def is_add(self) -> bool:
        return self._node.kind == "Add"

    def cast_add(self) -> Add:
        return cast("Add", self._cast("Add"))

    def maybe_add(self) -> Add | None:
        return cast("Add | None", self._maybe("Add"))

    def is_rearrange(self) -> bool:
        return self._node.kind == "Rearrange"

    def cast_rearrange(self) -> Rearrange:
        return cast("Rearrange", self._cast("Rearrange"))

    def maybe_rearrange(self) -> Rearrange | None:
        return cast("Rearrange | None", self._maybe("Rearrange"))

    def is_index(self) -> bool:
        return self._node.kind == "Index"

    def cast_index(self) -> Index:
        return cast("Index", self._cast("Index"))

    def maybe_index(self) -> Index | None:
        return cast("Index | None", self._maybe("Index"))

    def is_concat(self) -> bool:
        return self._node.kind == "Concat"

    def cast_concat(self) -> Concat:
        return cast("Concat", self._cast("Concat"))

    def maybe_concat(self) -> Concat | None:
        return cast("Concat | None", self._maybe("Concat"))

    def is_scatter(self) -> bool:
        return self._node.kind == "Scatter"

    def cast_scatter(self) -> Scatter:
        return cast("Scatter", self._cast("Scatter"))

    def maybe_scatter(self) -> Scatter | None:
        return cast("Scatter | None", self._maybe("Scatter"))

    def is_general_function(self) -> bool:
        return self._node.kind == "GeneralFunction"

    def cast_general_function(self) -> GeneralFunction:
        return cast("GeneralFunction", self._cast("GeneralFunction"))

    def maybe_general_function(self) -> GeneralFunction | None:
        return cast("GeneralFunction | None", self._maybe("GeneralFunction"))

    def is_module(self) -> bool:
        return self._node.kind == "Module"

    def cast_module(self) -> Module:
        return cast("Module", self._cast("Module"))

    def maybe_module(self) -> Module | None:
        return cast("Module | None", self._maybe("Module"))

    def is_tag(self) -> bool:
        return self._node.kind == "Tag"

    def cast_tag(self) -> Tag:
        return cast("Tag", self._cast("Tag"))

    def maybe_tag(self) -> Tag | None:
        return cast("Tag | None", self._maybe("Tag"))

    def is_discrete_var(self) -> bool:
        return self._node.kind == "DiscreteVar"

    def cast_discrete_var(self) -> DiscreteVar:
        return cast("DiscreteVar", self._cast("DiscreteVar"))

    def maybe_discrete_var(self) -> DiscreteVar | None:
        return cast("DiscreteVar | None", self._maybe("DiscreteVar"))
