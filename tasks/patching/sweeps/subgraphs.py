"""What lies between one node of an optimised circuit and another, as a graph of its own over a symbol.

Over a *window* of positions it computes these alone. Norms and products take any positions. The keys and
values of attention are those of the earlier positions as they were, and the new ones behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid5

import torch

from tapeout.ir import Add, Array, Circuit, Concat, Einsum, GeneralFunction, Index, Rearrange, Symbol, postorder
from tapeout.ir.axis_index import FULL
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.nodes.functions import Cast, GenIndex
from tapeout.ir.nodes.kernels import Attention, Rotary
from tapeout.ir.sizes import BATCH, SymbolicSize, dim
from tapeout.tasks.patching.sweeps.cuts import NAMESPACE

ROWS, WINDOW, PAST = BATCH, dim("WINDOW"), dim("PAST")
Values = Mapping[Circuit, torch.Tensor]
"""Values of nodes on the prompts: each with the prompts first."""


@dataclass(frozen=True, slots=True)
class Window:
    """Positions start to stop of length ones."""

    start: int
    stop: int
    length: int

    @property
    def is_all(self) -> bool:
        return self.start == 0 and self.stop == self.length


Fetch = Callable[[Values, torch.Tensor, Window], torch.Tensor]
"""The value of a piece's input: from the prompts' values, the prompt of each row, and the window."""


def of_prompt(node: Circuit) -> Fetch:
    """What a row's prompt has."""
    return lambda values, prompts, _: values[node].index_select(0, prompts)


def past_of_prompt(node: Circuit, axis: int) -> Fetch:
    """What a row's prompt has before the window."""
    return lambda values, prompts, window: values[node].narrow(axis, 0, window.start).index_select(0, prompts)


def window_of_prompt(node: Circuit, axis: int) -> Fetch:
    """What a row's prompt has in the window."""
    return lambda values, prompts, window: (
        values[node].narrow(axis, window.start, window.stop - window.start).index_select(0, prompts)
    )


def window_of_constant(value: torch.Tensor, axis: int) -> Fetch:
    """A constant in the window, the same for all rows."""
    return lambda _, __, window: value.narrow(axis, window.start, window.stop - window.start)


@dataclass(frozen=True, slots=True)
class Source:
    """An input of a piece beside the stream.

    Attributes:
        symbol: where it stands in the graph.
        fetch: what it is at a call.
        node: the node of the prompts' values that it reads; None for a constant.
    """

    symbol: Symbol
    fetch: Fetch
    node: Circuit | None


@dataclass(frozen=True, slots=True)
class Graph:
    """What lies between a node and others, over a symbol in its place.

    Attributes:
        roots: the others.
        x: the symbol.
        sources: the further inputs.
    """

    roots: tuple[Circuit, ...]
    x: Symbol
    sources: tuple[Source, ...]


def between(start: Circuit, end: Circuit) -> Graph:
    """What makes `end` of `start`; what else it reads of the data are further inputs."""
    x = Symbol((ROWS, *start.shape[1:]), uuid5(NAMESPACE, "x"), "x", start.torch_dtype)
    memo: dict[Circuit, Circuit] = {start: x}
    sources = dict[Circuit, Source]()
    for node in postorder(end):
        if not any(child in memo for child in node.children) or node is start:
            continue
        children = []
        for child in node.children:
            if child not in memo and child.free_symbols:
                sources.setdefault(child, _source(child, len(sources)))
            children.append(memo[child] if child in memo else sources[child].symbol if child in sources else child)
        memo[node] = node.with_children(tuple(children))
    return Graph((memo[end],), x, tuple(sources.values()))


def _source(node: Circuit, number: int) -> Source:
    symbol = Symbol(node.shape, uuid5(NAMESPACE, f"source {number}"), f"source{number}", node.torch_dtype)
    return Source(symbol, of_prompt(node), node)


# -- windows


def windowed(start: Circuit, end: Circuit, length: int, constant: Callable[[Circuit], torch.Tensor]) -> Graph:
    """What makes `end` of `start` in a window of positions that ends at the last one.

    Raises:
        UnsupportedError: if a node mixes positions in another way than causal attention does.
    """
    return _Windowed(start, length, constant).run(end)


class _Windowed:
    def __init__(self, start: Circuit, length: int, constant: Callable[[Circuit], torch.Tensor]) -> None:
        self.start, self.length, self.constant = start, length, constant
        self.x = Symbol((ROWS, WINDOW, *start.shape[2:]), uuid5(NAMESPACE, "x window"), "x", start.torch_dtype)
        self.memo: dict[Circuit, Circuit] = {start: self.x}
        self.sources: dict[object, Source] = {}

    def run(self, end: Circuit) -> Graph:
        for node in postorder(end):
            if node is not self.start and any(child in self.memo for child in node.children):
                self.memo[node] = self._rewritten(node)
        return Graph((self.memo[end],), self.x, tuple(self.sources.values()))

    def _rewritten(self, node: Circuit) -> Circuit:
        axes = {child: axis for child in node.children if (axis := self._axis(child)) is not None}
        if not axes:
            return node.with_children(tuple(self._child(child, None) for child in node.children))
        rule = _OF_FUNCTIONS.get(type(node.spec)) if isinstance(node, GeneralFunction) else None
        rule = rule or _RULES.get(type(node))
        if rule is None:
            raise _mixes(node)
        out: Circuit = rule(self, node, axes)
        return out

    def _axis(self, node: Circuit) -> int | None:
        """The axis of a node's positions, if it is rewritten and has one."""
        new = self.memo.get(node)
        if new is None:
            return None
        found = [axis for axis, size in enumerate(new.shape) if size == WINDOW]
        if len(found) > 1 or any(isinstance(size, SymbolicSize) and WINDOW.dims[0] in size.dims and size != WINDOW
                                 for size in new.shape):  # fmt: skip
            raise _mixes(node)
        return found[0] if found else None

    def _child(self, node: Circuit, axis: int | None) -> Circuit:
        """The child as rewritten; what is not is looked up, in the window if `axis` says which axis has positions."""
        if node in self.memo:
            return self.memo[node]
        if axis is None or node.shape[axis] == 1:
            return node if not node.free_symbols else self._input(node, node.shape, of_prompt(node))
        if node.shape[axis] != self.length:
            raise _mixes(node)
        shape = (*node.shape[:axis], WINDOW, *node.shape[axis + 1 :])
        if node.free_symbols:
            return self._input(node, shape, window_of_prompt(node, axis), "window")
        return self._of_constant(node, shape, axis)

    def _input(self, node: Circuit, shape: Any, fetch: Fetch, sort: str = "whole") -> Circuit:
        key = (node, sort)
        if key not in self.sources:
            name = f"source{len(self.sources)}"
            symbol = Symbol(shape, uuid5(NAMESPACE, f"window {name}"), name, node.torch_dtype)
            self.sources[key] = Source(symbol, fetch, node if node.free_symbols else None)
        return self.sources[key].symbol

    def _of_constant(self, node: Circuit, shape: Any, axis: int) -> Circuit:
        return self._input(node, shape, window_of_constant(self.constant(node), axis), "constant")

    # -- rules

    def _attention(self, node: GeneralFunction, axes: Mapping[Circuit, int]) -> Circuit:
        """Over the earlier keys and values too; a query sees what stands before it."""
        q, k, v, *mask = node.children
        spec: Any = node.spec
        moved = axes.get(q)
        if moved is None and (mask or spec.causal):
            raise _mixes(node)
        if moved is not None and (moved != q.rank - 2 or not spec.causal):
            raise _mixes(node)
        children = [self._child(q, None), self._keys(k), self._keys(v)]
        if moved is not None:
            grid = torch.ones(self.length, self.length).tril()
            children.append(self._of_constant(Array(grid), (WINDOW, dim("KEYS")), 0))
        return GeneralFunction(*children, spec=Attention(spec.scale, causal=False), name=None)

    def _keys(self, node: Circuit) -> Circuit:
        """Keys or values: those before the window as they were, and the new ones behind them."""
        axis = self._axis(node)
        if node not in self.memo:
            return self._input(node, node.shape, of_prompt(node))
        if axis != node.rank - 2:
            raise _mixes(node)
        shape = (*node.shape[:axis], PAST, node.shape[-1])
        return Concat(self._input(node, shape, past_of_prompt(node, axis), "past"), self.memo[node], axis=axis)

    def _rotary(self, node: GeneralFunction, axes: Mapping[Circuit, int]) -> Circuit:
        """The tables are those of the window's positions."""
        x, *tables = node.children
        if set(axes) != {x}:
            raise _mixes(node)
        behind = x.rank - axes[x]
        parts = (self._child(table, table.rank - behind if table.rank >= behind else None) for table in tables)
        return node.with_children((self.memo[x], *parts))

    def _function(self, node: GeneralFunction, axes: Mapping[Circuit, int]) -> Circuit:
        """Functions of one entry, or of the last axis, which is none of positions."""
        by_row = not isinstance(node.spec, GenIndex) and all(axis < child.rank - 1 for child, axis in axes.items())
        alone = set(axes) == {node.children[0]} and not any(c.free_symbols for c in node.children[1:])
        if not by_row or not (alone or isinstance(node.spec, Cast)):
            raise _mixes(node)
        return node.with_children((self.memo[node.children[0]], *node.children[1:]))

    def _add(self, node: Add, axes: Mapping[Circuit, int]) -> Circuit:
        (behind,) = {child.rank - axis for child, axis in axes.items()}
        children = (
            self._child(child, child.rank - behind if child.rank >= behind else None) for child in node.children
        )
        return node.with_children(tuple(children))

    def _einsum(self, node: Einsum, axes: Mapping[Circuit, int]) -> Circuit:
        letters = {own[axes[child]] for child, own in node.args if child in axes}
        if len(letters) != 1 or not letters <= set(node.out_axes):
            raise _mixes(node)
        (letter,) = letters
        for child, own in node.args:
            if child in axes and own[axes[child]] != letter:
                raise _mixes(node)
        children = (self._child(child, own.index(letter) if letter in own else None) for child, own in node.args)
        return node.with_children(tuple(children))

    def _rearrange(self, node: Rearrange, axes: Mapping[Circuit, int]) -> Circuit:
        return node.with_children((self.memo[node.children[0]],))

    def _index(self, node: Index, axes: Mapping[Circuit, int]) -> Circuit:
        child = self.memo[node.node]
        axis = axes[node.node]
        entry = node.axis_indices[axis]
        if entry == FULL:
            return node.with_children((child,))
        if not isinstance(entry, int):
            raise _mixes(node)
        index = list(node.axis_indices)
        index[axis] = entry % self.length - self.length
        return Index(child, tuple(index), name=None)


_RULES: dict[type[Circuit], Any] = {
    GeneralFunction: _Windowed._function,
    Add: _Windowed._add,
    Einsum: _Windowed._einsum,
    Rearrange: _Windowed._rearrange,
    Index: _Windowed._index,
}
_OF_FUNCTIONS: dict[type, Any] = {Attention: _Windowed._attention, Rotary: _Windowed._rotary}


def _mixes(node: Circuit) -> UnsupportedError:
    return UnsupportedError(
        f"{node!r} cannot be computed for some positions alone",
        hint="leave positions out, or give variants as circuits",
    )
