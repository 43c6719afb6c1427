"""Share rows: what depends on a token prefix alone is computed once for each distinct prefix.

In a causal model the value at (row, position) depends on the tokens of the row up to that position. With the
tokens bound, rows that begin alike share those values. Everything done position by position is done on
the distinct prefixes (the nodes of the prefix tree of the rows); only attention sees dense rows, which are
gathered for it and of which one representative of each prefix is kept.

The plan is made from the tokens alone. No value is computed here: every call computes all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tapeout.ir import Add, Array, Circuit, GeneralFunction, Index, Rearrange, RearrangeSpec, postorder
from tapeout.ir.axis_index import FULL
from tapeout.ir.functions import Elementwise, GenIndex
from tapeout.ir.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary
from tapeout.ir.rearrange_spec import Groups
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots

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
        if isinstance(node, GeneralFunction) and isinstance(node.spec, GenIndex) and not node.spec.batch_x
    )
    return [node for node in found if isinstance(node, Array) and node.rank == 2 and node.torch_dtype is torch.int64]


class _Sharing:
    """One rewrite. `packed[node]` holds, for a node [..rows, .., positions, ..], the same over prefixes only,
    and which of the node's axes were rows and positions; the prefix axis comes first."""

    def __init__(self, tokens: Array, prefixes: _Prefixes, origins: Origins) -> None:
        self.tokens, self.prefixes, self.origins = tokens, prefixes, origins
        self.rows, self.length = prefixes.number.shape
        self.packed: dict[Circuit, tuple[Circuit, int, int]] = {}
        self.dense: dict[Circuit, Circuit] = {}

    def run(self, roots: Roots) -> Roots:
        for node in postorder(*roots):
            packed = self._pack(node)
            if packed is not None:
                self.origins.hand_on(packed[0], node)
                self.packed[node] = packed
            elif not any(child in self.packed for child in node.children):
                children = tuple(self.dense[child] for child in node.children)
                self.dense[node] = self.origins.hand_on(node.with_children(children), node)
            else:
                self.dense[node] = self.origins.hand_on(self._leave(node), node)
        return tuple(self._densely(root) for root in roots)

    # -- back to dense rows

    def _densely(self, node: Circuit) -> Circuit:
        """The node over dense rows."""
        if node not in self.dense:
            packed, row_axis, position_axis = self.packed[node]
            flat = Index(packed, (self.prefixes.number.reshape(-1), *[FULL] * (packed.rank - 1)), name=None)
            split = RearrangeSpec.unflatten_axis(packed.rank, 0, (self.rows, self.length))
            rest = [axis for axis in range(node.rank) if axis not in (row_axis, position_axis)]
            order = [row_axis, position_axis, *rest]
            back = RearrangeSpec.permute([order.index(axis) for axis in range(node.rank)])
            dense: Circuit = Rearrange(flat, split, name=None)
            self.dense[node] = dense if back.is_identity() else Rearrange(dense, back, name=None)
            self.origins.hand_on(self.dense[node], node)
        return self.dense[node]

    def _leave(self, node: Circuit) -> Circuit:
        """A node that cannot be packed over dense children; one position of packed rows is picked without them."""
        if isinstance(node, Index) and node.children[0] in self.packed:
            picked = self._pick_position(node)
            if picked is not None:
                return picked
        return node.with_children(tuple(self._densely(child) for child in node.children))

    def _pick_position(self, node: Index) -> Circuit | None:
        packed, row_axis, position_axis = self.packed[node.children[0]]
        index = node.axis_indices
        position = index[position_axis]
        if row_axis != 0 or position_axis != 1 or not isinstance(position, int) or index[0] != FULL:
            return None
        where = self.prefixes.number[:, position]
        return Index(packed, (where, *index[2:]), name=None)

    # -- packing

    def _pack(self, node: Circuit) -> tuple[Circuit, int, int] | None:
        if isinstance(node, GeneralFunction):
            return self._pack_function(node)
        if not any(child in self.packed for child in node.children):
            return None
        if isinstance(node, Add):
            return self._pack_broadcast(node)
        if isinstance(node, Rearrange):
            return self._pack_permute(node)
        return self._pack_product(node) if node.kind == "Einsum" else None

    def _pack_function(self, node: GeneralFunction) -> tuple[Circuit, int, int] | None:
        spec = node.spec
        if isinstance(spec, GenIndex):
            table, index = node.children
            if (
                index is not self.tokens
                or spec.batch_x
                or not spec.batch_index
                or spec.index_dim != 0
                or table in self.packed
            ):
                return None
            distinct = Array(self.tokens.value.reshape(-1)[self.prefixes.place.to(self.tokens.value.device)])
            return GeneralFunction(table, distinct, spec=spec, name=None), 0, 1
        if not any(child in self.packed for child in node.children):
            return None
        if isinstance(spec, Attention):
            return self._pack_attention(node, spec)
        first = self.packed.get(node.children[0])
        if first is None or any(child in self.packed for child in node.children[1:]):
            return None
        packed, row_axis, position_axis = first
        if isinstance(spec, Rotary):
            return self._pack_rotary(node, packed, row_axis, position_axis)
        if isinstance(spec, Linear):
            return self._pack_linear(node, spec, packed, row_axis, position_axis)
        on_last = isinstance(spec, LayerNorm | RMSNorm) or spec.name in ("softmax", "log_softmax", "rotate_half")
        if (isinstance(spec, Elementwise) or on_last) and not (on_last and node.rank - 1 in (row_axis, position_axis)):
            rest = tuple(self.dense[child] for child in node.children[1:])
            return GeneralFunction(packed, *rest, spec=spec, name=None), row_axis, position_axis
        return None

    def _pack_linear(
        self, node: GeneralFunction, spec: Linear, packed: Circuit, row_axis: int, position_axis: int
    ) -> tuple[Circuit, int, int] | None:
        rows, positions = spec.x_axes[row_axis], spec.x_axes[position_axis]
        if rows not in spec.out_axes or positions not in spec.out_axes:
            return None
        x_axes = (rows, *(axis for axis in spec.x_axes if axis not in (rows, positions)))
        out = (rows, *(axis for axis in spec.out_axes if axis not in (rows, positions)))
        weights = tuple(self.dense[child] for child in node.children[1:])
        new = GeneralFunction(packed, *weights, spec=Linear(x_axes, spec.weight_axes, spec.bias_axes, out), name=None)
        return new, spec.out_axes.index(rows), spec.out_axes.index(positions)

    def _pack_rotary(
        self, node: GeneralFunction, packed: Circuit, row_axis: int, position_axis: int
    ) -> tuple[Circuit, int, int] | None:
        tables = []
        for table in node.children[1:]:
            row, position = (axis - (node.rank - table.rank) for axis in (row_axis, position_axis))
            if row >= 0 or position > 0 or node.rank - 1 in (row_axis, position_axis):
                return None
            table = self.dense[table]
            if position == 0:
                picked = Index(table, (self.prefixes.position, *[FULL] * (table.rank - 1)), name=None)
                table = picked.unsqueeze(range(1, 1 + packed.rank - table.rank)).rename(None)
            tables.append(table)
        return GeneralFunction(packed, *tables, spec=node.spec, name=None), row_axis, position_axis

    def _pack_broadcast(self, node: Add) -> tuple[Circuit, int, int] | None:
        """A sum: packed summands stay packed, others have no rows and give their entry at each prefix's position."""
        places = {self._aligned_axes(node, child) for child in node.children if child in self.packed}
        if len(places) != 1:
            return None
        ((row_axis, position_axis),) = places
        summands = []
        for child in node.children:
            if child in self.packed:
                if child.rank != node.rank or child.shape != node.shape:
                    return None
                summands.append(self.packed[child][0])
                continue
            summand = self._at_prefixes(node, child, row_axis, position_axis)
            if summand is None:
                return None
            summands.append(summand)
        return Add(*summands, name=None), row_axis, position_axis

    def _aligned_axes(self, node: Circuit, child: Circuit) -> tuple[int, int]:
        shift = node.rank - child.rank
        return self.packed[child][1] + shift, self.packed[child][2] + shift

    def _at_prefixes(self, node: Circuit, child: Circuit, row_axis: int, position_axis: int) -> Circuit | None:
        """What a summand that does not depend on rows adds at each prefix; None if it depends on rows."""
        shift = node.rank - child.rank
        row, position = row_axis - shift, position_axis - shift
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
        if position != 0:
            return None
        return Index(value, (self.prefixes.position,), name=None)

    def _pack_product(self, node: Circuit) -> tuple[Circuit, int, int] | None:
        """An elementwise product with factors that have no rows (a rotary table: positions and features)."""
        einsum = node.cast_einsum()
        packed = [(child, axes) for child, axes in einsum.args if child in self.packed]
        axes_of = {(axes[self.packed[child][1]], axes[self.packed[child][2]]) for child, axes in packed}
        if len(axes_of) != 1:
            return None
        ((rows, positions),) = axes_of
        if rows not in einsum.out_axes or positions not in einsum.out_axes:
            return None
        args = []
        for child, axes in einsum.args:
            if len(set(axes)) < len(axes):
                return None
            if child in self.packed:
                args.append((self.packed[child][0], (rows, *(a for a in axes if a not in (rows, positions)))))
            elif rows in axes:
                return None
            elif positions in axes:
                at = axes.index(positions)
                index = (*[FULL] * at, self.prefixes.position)
                args.append(
                    (Index(self.dense[child], index, name=None), tuple(rows if a == positions else a for a in axes))
                )
            else:
                args.append((self.dense[child], axes))
        out = (rows, *(axis for axis in einsum.out_axes if axis not in (rows, positions)))
        new = type(einsum)(*args, out_axes=out, name=None)
        return new, einsum.out_axes.index(rows), einsum.out_axes.index(positions)

    def _pack_permute(self, node: Rearrange) -> tuple[Circuit, int, int] | None:
        """Axes change places, merge, split or repeat; rows and positions must stay axes of their own."""
        packed, row_axis, position_axis = self.packed[node.node]
        spec = node.spec
        rows, positions = spec.input_ints[row_axis], spec.input_ints[position_axis]
        if len(rows) != 1 or len(positions) != 1 or rows not in spec.output_ints or positions not in spec.output_ints:
            return None
        keep = (rows, positions)
        inputs = (rows, *(group for group in spec.input_ints if group not in keep))
        outputs = (rows, *(group for group in spec.output_ints if group not in keep))
        used = sorted({number for group in inputs + outputs for number in group})
        renumber = {number: i for i, number in enumerate(used)}
        sizes = tuple(None if number == rows[0] else spec.int_sizes[number] for number in used)
        new_spec = RearrangeSpec(_renumbered(inputs, renumber), _renumbered(outputs, renumber), sizes)
        new = packed if new_spec.is_identity() else Rearrange(packed, new_spec, name=None)
        return new, spec.output_ints.index(rows), spec.output_ints.index(positions)

    def _pack_attention(self, node: GeneralFunction, spec: Attention) -> tuple[Circuit, int, int] | None:
        """Causal attention on gathered dense rows; of its result one representative of each prefix is kept."""
        where = {(self.packed[child][1], self.packed[child][2]) for child in node.children[:3] if child in self.packed}
        if not spec.causal or len(where) != 1 or not all(child in self.packed for child in node.children[:3]):
            return None
        ((row_axis, position_axis),) = where
        if position_axis != node.rank - 2 or row_axis == node.rank - 1:
            return None
        dense = GeneralFunction(*(self._densely(child) for child in node.children), spec=spec, name=None)
        self.origins.hand_on(dense, node)
        rest = [axis for axis in range(node.rank) if axis not in (row_axis, position_axis)]
        inputs = tuple((axis,) for axis in range(node.rank))
        outputs = ((row_axis, position_axis), *((axis,) for axis in rest))
        flat = Rearrange(dense, RearrangeSpec(inputs, outputs, (None,) * node.rank), name=None)
        return Index(flat, (self.prefixes.place,), name=None), row_axis, position_axis


def _renumbered(groups: Groups, numbers: dict[int, int]) -> Groups:
    return tuple(tuple(numbers[number] for number in group) for group in groups)
