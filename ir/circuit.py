"""`Circuit`, the base of every node: identity, types, names.

Nodes are immutable and interned: building the same thing twice gives the same object, so `==` is
`is` and a walk can memoise by identity. A node is its kind, the kind's attributes, its children and
its name. The table of nodes holds them weakly. Its keys are identities; an entry is valid exactly
while its node lives, because a living node keeps its attributes and children alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from tapeout.ir.fluent.building import _AUTONAME as _AUTONAME
from tapeout.ir.fluent.methods import CircuitMethods
from tapeout.ir.labels import label_over
from tapeout.ir.rust_names.kinds import CircuitKinds
from tapeout.ir.sizes import Shape, Size, multiply

if TYPE_CHECKING:
    from tapeout.ir.index_rules import AxisIndices, Pushed
    from tapeout.ir.sizes import Unifier
    from tapeout.ir.symbol import Symbol

_allocate = object.__new__
_nodes: dict[tuple[Any, ...], weakref.ref[Circuit]] = {}
_sweep_at = 1 << 14


class _Variety:
    """A kind with attributes: what distinguishes nodes beside children and name. Interned, compared by identity."""

    __slots__ = ("__weakref__", "attributes")

    def __init__(self, attributes: tuple[Any, ...]) -> None:
        self.attributes = attributes


_varieties: weakref.WeakValueDictionary[tuple[type, tuple[Any, ...]], _Variety] = weakref.WeakValueDictionary()


def _variety(kind: type, attributes: tuple[Any, ...]) -> _Variety:
    key = (kind, attributes)
    found = _varieties.get(key)
    if found is None:
        found = _varieties[key] = _Variety(attributes)
    return found


def _remember(key: tuple[Any, ...], node: Circuit) -> None:
    """Enters a node into the table, and sweeps the dead when the table has doubled."""
    global _sweep_at
    _nodes[key] = weakref.ref(node)
    if len(_nodes) > _sweep_at:
        for dead in [k for k, reference in _nodes.items() if reference() is None]:
            del _nodes[dead]
        _sweep_at = max(1 << 14, 2 * len(_nodes))


class Circuit(CircuitMethods, CircuitKinds):
    """A node of a circuit, which is at the same time the circuit below it.

    Attributes:
        children: the nodes that this one reads.
        attributes: the kind's own values (axes, an index, a function, ...).
        op_name: the name, or None; `name` is the same with "" for none.
        shape: one size an axis; an int or a symbolic size.
        torch_dtype: the dtype, or None while it is undetermined.
    """

    __slots__ = (
        "__weakref__",
        "_free",
        "_labels",
        "_memo",
        "_variety",
        "attributes",
        "children",
        "op_name",
        "shape",
        "torch_dtype",
    )

    kind: ClassVar[str] = "Circuit"
    children: tuple[Circuit, ...]
    attributes: tuple[Any, ...]
    op_name: str | None
    shape: Shape
    torch_dtype: torch.dtype | None
    _free: frozenset[Symbol] | None
    _memo: dict[Any, Any] | None
    _labels: int
    _variety: _Variety

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__

    # -- construction

    @classmethod
    def _make(cls, attributes: tuple[Any, ...], children: tuple[Circuit, ...], name: str | None) -> Self:
        """The node with these parts: the existing one, or a new one whose types are checked."""
        return cls._intern(_variety(cls, attributes), children, name, None)

    @classmethod
    def _intern(cls, variety: _Variety, children: tuple[Circuit, ...], name: str | None, like: Circuit | None) -> Self:
        """The node with these parts; its types are those of `like` where the children's types are the same."""
        key = (id(variety), name, *map(id, children))
        reference = _nodes.get(key)
        if reference is not None:
            found = reference()
            if found is not None:
                return found  # type: ignore[return-value]
        node = object.__new__(cls)
        node._variety = variety
        node.attributes = variety.attributes
        node.children = children
        node.op_name = name
        node._labels = 0
        node._free = None
        node._memo = None
        if like is None or not _same_types(children, like.children):
            node.shape, node.torch_dtype = node._infer()
        else:
            node.shape = like.shape
            node.torch_dtype = like.torch_dtype
        _remember(key, node)
        return node

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        """Shape and dtype from attributes and children; raises if they do not fit together."""
        raise TypeError(f"{self.kind} has no type rule")

    # -- the same node with something else in it

    def rename(self, name: str | None) -> Self:
        """The same node under another name (None for none)."""
        return self.rebuilt(self.children, name)

    def with_children(self, children: tuple[Circuit, ...]) -> Circuit:
        """The same kind of node over other children, under the same name; axes are not added.

        Raises:
            ShapeError, TypeMismatchError: if the children do not fit.
        """
        return self.rebuilt(children, self.op_name)

    def rebuilt(self, children: tuple[Circuit, ...], name: str | None) -> Self:
        """The same kind of node over other children and under another name.

        Raises:
            ShapeError, TypeMismatchError: if the children do not fit.
        """
        if name == self.op_name and children == self.children:
            return self
        new = self._intern(self._variety, children, name, self)
        if not children:
            new._adopt(self)
        return new

    def _over(self, children: tuple[Circuit, ...]) -> Circuit:
        """The node over children of the same types as its own: nothing is checked. Known labels are handed on.

        What `with_children` does, for rewrites that rebuild hundreds of thousands of nodes under new names.
        """
        variety = self._variety
        key = (id(variety), self.op_name, *map(id, children))
        reference = _nodes.get(key)
        if reference is not None:
            found = reference()
            if found is not None:
                return found
        node = _allocate(self.__class__)
        node._variety = variety
        node.attributes = self.attributes
        node.children = children
        node.op_name = self.op_name
        node.shape = self.shape
        node.torch_dtype = self.torch_dtype
        node._free = node._memo = None
        node._labels = label_over(self, children)
        _remember(key, node)
        return node

    def expand(self, children: tuple[Circuit, ...]) -> Circuit:
        """The node over children that may have grown leading batch axes, and with them grows its own.

        The batch axes of different children are aligned on the right. Sizes may change too
        (symbolic ones become concrete). The name stays.

        Raises:
            ShapeError: if the batch axes do not agree.
        """
        for new, old in zip(children, self.children, strict=True):
            if len(new.shape) != len(old.shape):
                return self._expand(children)
        return self.with_children(children)

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        raise TypeError(f"{self.kind} has no expansion rule")

    def push_index(self, index: AxisIndices) -> Pushed | None:
        """How an index (in canonical form, see `index_rules`) of this node becomes indices of its children.

        None where no part of an index can enter: leaves, and kinds without a rule.
        """
        return None

    def with_sizes(self, learnt: Unifier) -> Circuit:
        """The same node with what has been learnt of symbolic sizes filled into its attributes."""
        return self

    def _adopt(self, original: Circuit) -> None:
        """Takes over from the node that this one is a renamed copy of what interning does not compare."""

    # -- what is known of a node

    @property
    def name(self) -> str:
        """The name, "" if there is none."""
        return self.op_name or ""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Size:
        """The number of elements, symbolic where the shape is."""
        return multiply(self.shape)

    @property
    def num_children(self) -> int:
        return len(self.children)

    @property
    def dtype(self) -> str | None:
        """The dtype's name ("float32"), or None while it is undetermined."""
        return None if self.torch_dtype is None else str(self.torch_dtype).removeprefix("torch.")

    @property
    def free_symbols(self) -> frozenset[Symbol]:
        """The symbols below that no module binds."""
        if self._free is None:
            _fill_free_symbols(self)
        return self._free  # type: ignore[return-value]

    def _own_free_symbols(self) -> frozenset[Symbol]:
        """The free symbols, given the children's."""
        out: frozenset[Symbol] = frozenset()
        for child in self.children:
            free = child._free
            if free and free is not out:
                out = out | free if out else free
        return out

    def _text(self) -> str:
        """The kind's own part of the node's line of text."""
        return ""

    def __repr__(self) -> str:
        return f"<{self.name or self.kind} {list(self.shape)} {self.kind}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a Circuit is not pickled: print it as text, or save it with its tensors")


def _same_types(new: tuple[Circuit, ...], old: tuple[Circuit, ...]) -> bool:
    if len(new) != len(old):
        return False
    for one, other in zip(new, old):  # noqa: B905
        if one is not other and (one.shape != other.shape or one.torch_dtype is not other.torch_dtype):
            return False
    return True


OPERATORS = ("Add", "Einsum", "Concat")
"""Kinds whose automatic names are written with signs between the operands."""


def auto_name(
    name: Any,
    children: Iterable[Circuit],
    make: str | None = None,
    joiner: str = "",
    bracketed: Container[str] = (),
) -> str | None:
    """The name given, or one from the children's: joined by `joiner`, or put for `{}` in `make`.

    A child without a name leaves the result without one. Names of children of the kinds `bracketed`
    stand in brackets.
    """
    if name is not _AUTONAME:
        return name  # type: ignore[no-any-return]
    names = list[str]()
    for child in children:
        if child.op_name is None:
            return None
        names.append(f"({child.op_name})" if child.kind in bracketed else child.op_name)
    joined = joiner.join(names)
    return joined if make is None else make.replace("{}", joined)


def postorder(*roots: Circuit) -> Iterator[Circuit]:
    """Every node below the roots once, children before parents. No recursion: depth does not matter."""
    done: set[Circuit] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack[-1]
        if node in done:
            del stack[-1]
            continue
        children = node.children
        if children and not done.issuperset(children):
            stack += [child for child in reversed(children) if child not in done]
            continue
        del stack[-1]
        done.add(node)
        yield node


def nodes_below(*roots: Circuit) -> set[Circuit]:
    """The roots and every node below them, in no order: three times as fast as `postorder`."""
    frontier = set(roots)
    found = set(frontier)
    while frontier:
        frontier = set[Circuit]().union(*[node.children for node in frontier])
        frontier -= found
        found |= frontier
    return found


def _fill_free_symbols(root: Circuit) -> None:
    stack = [root]
    while stack:
        node = stack[-1]
        if node._free is not None:
            stack.pop()
            continue
        pending = [child for child in node.children if child._free is None]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        node._free = node._own_free_symbols()
