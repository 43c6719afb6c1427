"""Share rows: what depends on a token prefix alone is computed once for each distinct prefix.

In a causal model the value at (row, position) depends on the tokens of the row up to that position. With the
tokens bound, rows that begin alike share those values. Everything done position by position is done on
the distinct prefixes (the nodes of the prefix tree of the rows); only attention sees dense rows, which are
gathered for it and of which one representative of each prefix is kept.

The plan is made from the tokens alone. No value is computed here: every call computes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, Index, Rearrange, RearrangeSpec, postorder
from tapeout.ir.axis_index import FULL
from tapeout.ir.nodes.functions import Elementwise, GenIndex
from tapeout.ir.nodes.general_function import function_of
from tapeout.ir.nodes.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary
from tapeout.ir.nodes.rearrange import arranged
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots

T = TypeVar("T")

_WORTH = 0.95  # shared rows must be at most this part of all rows


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The distinct prefixes of rows of tokens.

    Attributes:
        number: [rows, positions], the prefix that ends at a place.
        place: for each prefix the first place where it ends, as row * positions + position.
        position: for each prefix the position where it ends.
    """

    number: torch.Tensor
    place: torch.Tensor
    position: torch.Tensor

    @staticmethod
    def of(tokens: torch.Tensor) -> _Prefixes:
        rows, length = tokens.shape
        numbers = torch.empty(rows, length, dtype=torch.int64)
        places: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        for row, line in enumerate(tokens.tolist()):
            before = -1
            for position, token in enumerate(line):
                key = (before, token)
                if key not in seen:
                    seen[key] = len(places)
                    places.append(row * length + position)
                before = numbers[row, position] = seen[key]
                before = int(before)
        place = torch.tensor(places, dtype=torch.int64)
        return _Prefixes(numbers, place, place % length)

    def __len__(self) -> int:
        return len(self.place)


@register(
    "share_rows",
    requires="kernels recognised",
    ensures="position-wise work on bound prompts is done once a distinct prefix",
)
@dataclass(frozen=True)
class ShareRows(ExecutionPass):
    """Work that depends on a prefix of bound tokens alone is done once for each distinct prefix."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        for tokens in _bound_tokens(roots):
            prefixes = _Prefixes.of(tokens.value.cpu())
            if len(prefixes) <= _WORTH * prefixes.number.numel():
                roots = _Sharing(tokens, prefixes, origins).run(roots)
        return roots


def _bound_tokens(roots: Roots) -> list[Array]:
    """Integer arrays [rows, positions] that index a table of embeddings."""
    found = dict.fromkeys(
        node.children[1]
        for node in postorder(*roots)
        if (function := function_of(node, GenIndex)) and not function.batch_x
    )
    return [node for node in found if isinstance(node, Array) and node.rank == 2 and node.torch_dtype is torch.int64]


class _Packed(NamedTuple):
    """A node over prefixes.

    Attributes:
        node: the node; the axis of prefixes comes first, then the others in their order.
        rows: which axis of the node over dense rows was that of rows.
        positions: likewise of positions.
    """

    node: Circuit
    rows: int
    positions: int


class _Sharing:
    """One rewrite.

    Attributes:
        packed: for nodes [..rows, .., positions, ..] that are computed once a prefix, these.
        dense: the others, and what of the packed ones is needed over dense rows.
    """

    def __init__(self, tokens: Array, prefixes: _Prefixes, origins: Origins) -> None:
        self.tokens, self.prefixes, self.origins = tokens, prefixes, origins
        self.rows, self.length = prefixes.number.shape
        self.packed: dict[Circuit, _Packed] = {}
        self.dense: dict[Circuit, Circuit] = {}

    def run(self, roots: Roots) -> Roots:
        for node in postorder(*roots):
            packed = self._pack(node)
            if packed is not None:
                self.origins.hand_on(packed.node, node)
                self.packed[node] = packed
            else:
                self.dense[node] = self.origins.hand_on(self._leave(node), node)
        return tuple(self._densely(root) for root in roots)

    # -- back to dense rows

    def _densely(self, node: Circuit) -> Circuit:
        """The node over dense rows."""
        if node not in self.dense:
            packed, rows, positions = self.packed[node]
            flat = Index(packed, (self.prefixes.number.reshape(-1),), name=None)
            split = RearrangeSpec.unflatten_axis(packed.rank, 0, (self.rows, self.length))
            dense: Circuit = Rearrange(flat, split, name=None)
            rest = [axis for axis in range(node.rank) if axis not in (rows, positions)]
            self.dense[node] = arranged(dense, [rows, positions, *rest], range(node.rank))
            self.origins.hand_on(self.dense[node], node)
        return self.dense[node]

    def _leave(self, node: Circuit) -> Circuit:
        """A node that is not packed, over dense children; one position of packed rows is picked without them."""
        if isinstance(node, Index) and node.node in self.packed:
            packed, rows, positions = self.packed[node.node]
            index = node.axis_indices
            position = index[positions]
            if (rows, positions) == (0, 1) and isinstance(position, int) and index[0] == FULL:
                return Index(packed, (self.prefixes.number[:, position], *index[2:]), name=None)
        return node.with_children(tuple(self._densely(child) for child in node.children))

    # -- packing

    def _pack(self, node: Circuit) -> _Packed | None:
        """The node over prefixes; None if it must be computed over dense rows."""
        if isinstance(node, GeneralFunction) and isinstance(node.spec, GenIndex):
            return self._pack_tokens(node, node.spec)
        if not any(child in self.packed for child in node.children):
            return None
        rule = _RULES.get(type(node.spec) if isinstance(node, GeneralFunction) else type(node))
        return None if rule is None else rule(self, node)

    def _pack_tokens(self, node: GeneralFunction, spec: GenIndex) -> _Packed | None:
        """Rows of a table looked up by the tokens."""
        table, index = node.children
        in_order = spec.batch_index and not spec.batch_x and spec.index_dim == 0
        if index is not self.tokens or not in_order or table in self.packed:
            return None
        distinct = Array(self.tokens.value.reshape(-1)[self.prefixes.place.to(self.tokens.value.device)])
        return _Packed(GeneralFunction(table, distinct, spec=spec, name=None), 0, 1)

    def _packed_first(self, node: Circuit) -> _Packed | None:
        """The first child over prefixes, if that is packed and no other child is."""
        first, *others = node.children
        return None if any(child in self.packed for child in others) else self.packed.get(first)

    def _pack_function(self, node: GeneralFunction) -> _Packed | None:
        """A function of single entries, or along a last axis that is neither that of rows nor of positions."""
        spec, first = node.spec, self._packed_first(node)
        single = isinstance(spec, Elementwise) and not spec.acts_on_last
        if first is None or (not single and node.rank - 1 in first[1:]):
            return None
        rest = (self.dense[child] for child in node.children[1:])
        return first._replace(node=GeneralFunction(first.node, *rest, spec=spec, name=None))

    def _pack_linear(self, node: GeneralFunction) -> _Packed | None:
        spec: Any = node.spec
        first = self._packed_first(node)
        if first is None:
            return None
        rows, positions = spec.x_axes[first.rows], spec.x_axes[first.positions]
        if rows not in spec.out_axes or positions not in spec.out_axes:
            return None
        x_axes, out = (_over_prefixes(axes, rows, positions) for axes in (spec.x_axes, spec.out_axes))
        weights = (self.dense[child] for child in node.children[1:])
        small = Linear(x_axes, spec.weight_axes, spec.bias_axes, out)
        new = GeneralFunction(first.node, *weights, spec=small, name=None)
        return _Packed(new, spec.out_axes.index(rows), spec.out_axes.index(positions))

    def _pack_rotary(self, node: GeneralFunction) -> _Packed | None:
        first = self._packed_first(node)
        if first is None or node.rank - 1 in first[1:]:
            return None
        tables = []
        for child in node.children[1:]:
            shift = node.rank - child.rank
            if first.rows >= shift or first.positions > shift:
                return None
            table = self.dense[child]
            if first.positions == shift:
                picked = self._at_positions(table, 0)
                table = picked.unsqueeze(range(1, 1 + first.node.rank - table.rank)).rename(None)
            tables.append(table)
        return first._replace(node=GeneralFunction(first.node, *tables, spec=node.spec, name=None))

    def _at_positions(self, node: Circuit, axis: int) -> Circuit:
        """The node's entry at each prefix's position, where that axis is the one of positions."""
        return Index(node, (*[FULL] * axis, self.prefixes.position), name=None)

    def _pack_sum(self, node: Add) -> _Packed | None:
        """A sum: packed summands stay packed, others have no rows and give their entry at each prefix's position."""
        packed = [self.packed[child] for child in node.children if child in self.packed]
        shapes = {child.shape for child in node.children if child in self.packed}
        if shapes != {node.shape} or len({each[1:] for each in packed}) != 1:
            return None
        summands = []
        for child in node.children:
            summand = self.packed[child].node if child in self.packed else self._at_prefixes(node, child, packed[0])
            if summand is None:
                return None
            summands.append(summand)
        return packed[0]._replace(node=Add(*summands, name=None))

    def _at_prefixes(self, node: Circuit, child: Circuit, beside: _Packed) -> Circuit | None:
        """What a summand that does not depend on rows adds at each prefix; None if it depends on rows."""
        shift = node.rank - child.rank
        row, position = beside.rows - shift, beside.positions - shift
        if row >= 0 and child.shape[row] != 1:
            return None
        value = self.dense[child]
        if row >= 0:
            value = Index(value, (*[FULL] * row, 0), name=None)
            position -= position > row
        if position < 0:
            return value
        if value.shape[position] == 1:
            value = Index(value, (*[FULL] * position, 0), name=None)
            return value if position == 0 else None
        return self._at_positions(value, 0) if position == 0 else None

    def _pack_product(self, node: Einsum) -> _Packed | None:
        """An elementwise product with factors that have no rows (a rotary table: positions and features)."""
        packed = [(self.packed[child], axes) for child, axes in node.args if child in self.packed]
        places = {(axes[each.rows], axes[each.positions]) for each, axes in packed}
        if len(places) != 1 or any(len(set(axes)) < len(axes) for axes in node.in_axes):
            return None
        ((rows, positions),) = places
        if rows not in node.out_axes or positions not in node.out_axes:
            return None
        args = []
        for child, axes in node.args:
            if child in self.packed:
                args.append((self.packed[child].node, _over_prefixes(axes, rows, positions)))
            elif rows in axes:
                return None
            elif positions in axes:
                picked = self._at_positions(self.dense[child], axes.index(positions))
                args.append((picked, tuple(rows if axis == positions else axis for axis in axes)))
            else:
                args.append((self.dense[child], axes))
        new = Einsum(*args, out_axes=_over_prefixes(node.out_axes, rows, positions), name=None)
        return _Packed(new, node.out_axes.index(rows), node.out_axes.index(positions))

    def _pack_rearrange(self, node: Rearrange) -> _Packed | None:
        """Axes change places, merge, split or repeat; rows and positions must stay axes of their own."""
        packed, spec = self.packed[node.node], node.spec
        rows, positions = spec.input_ints[packed.rows], spec.input_ints[packed.positions]
        if len(rows) != 1 or len(positions) != 1 or rows not in spec.output_ints or positions not in spec.output_ints:
            return None
        inputs, outputs = (_over_prefixes(side, rows, positions) for side in (spec.input_ints, spec.output_ints))
        sizes = tuple(None if number == rows[0] else size for number, size in enumerate(spec.int_sizes))
        small = RearrangeSpec(inputs, outputs, sizes).numbered()
        new = packed.node if small.is_identity() else Rearrange(packed.node, small, name=None)
        return _Packed(new, spec.output_ints.index(rows), spec.output_ints.index(positions))

    def _pack_attention(self, node: GeneralFunction) -> _Packed | None:
        """Causal attention on gathered dense rows; of its result one representative of each prefix is kept."""
        spec: Any = node.spec
        places = {self.packed[child][1:] if child in self.packed else None for child in node.children[:3]}
        place = places.pop()
        if not spec.causal or places or place is None:
            return None
        rows, positions = place
        if positions != node.rank - 2 or rows == node.rank - 1:
            return None
        dense = GeneralFunction(*(self._densely(child) for child in node.children), spec=spec, name=None)
        self.origins.hand_on(dense, node)
        inputs = tuple((axis,) for axis in range(node.rank))
        outputs = ((rows, positions), *((axis,) for axis in range(node.rank) if axis not in place))
        flat = Rearrange(dense, RearrangeSpec(inputs, outputs, (None,) * node.rank), name=None)
        return _Packed(Index(flat, (self.prefixes.place,), name=None), rows, positions)


def _over_prefixes(items: tuple[T, ...], rows: T, positions: T) -> tuple[T, ...]:
    """Items one an axis for the node over prefixes: that of rows stands for the prefixes and comes first."""
    return (rows, *(item for item in items if item not in (rows, positions)))


_RULES: dict[type, Callable[[_Sharing, Any], _Packed | None]] = {
    Add: _Sharing._pack_sum,
    Einsum: _Sharing._pack_product,
    Rearrange: _Sharing._pack_rearrange,
    Attention: _Sharing._pack_attention,
    Linear: _Sharing._pack_linear,
    Rotary: _Sharing._pack_rotary,
    LayerNorm: _Sharing._pack_function,
    RMSNorm: _Sharing._pack_function,
    Elementwise: _Sharing._pack_function,
}
"""For kinds and functions how they are computed once a prefix."""
