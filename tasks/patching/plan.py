"""What a sweep is going to do: its variants checked, put in order, and parted to fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch

from tapeout.compiler.cost import Cost, elements
from tapeout.ir import Circuit
from tapeout.ir.errors import DataError, MatchError, ShapeError, UnsupportedError
from tapeout.tasks.patching.anatomy import Anatomy
from tapeout.tasks.patching.changes import Job, job_of
from tapeout.tasks.patching.graphs import ROWS
from tapeout.tasks.patching.names import NodeName
from tapeout.tasks.patching.pieces import Pieces
from tapeout.tasks.patching.variants import Cell, Variant, Variants

_POSITIONS = 2048
"""Positions that go through a piece at once: enough for the products' full rate, few enough for the caches."""

_LIVE_BYTES = 1 << 28
"""What the variants that are under way may take without a limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant on its way.

    Attributes:
        cell: its place in the grid.
        variant: the variant.
        job: what makes its change.
        start: the first position that it may change at its cut.
    """

    cell: Cell
    variant: Variant
    job: Job
    start: int


@dataclass(frozen=True, slots=True)
class Portions:
    """How much is done at once.

    Attributes:
        prompts: prompts whose values are held.
        variants: variants that are under way.
        positions: positions of rows that go through a piece.
    """

    prompts: int
    variants: int
    positions: int


class Plan:
    """The order in which variants are computed.

    Args:
        variants: the variants.
        anatomy: the circuit.
        baseline, patch: the datasets.

    Attributes:
        entries: the variants that change anything, those that start at one position together.
        unchanged: the cells of variants that change nothing: what they replace is equal in both datasets.
        first: the first position at which anything is read to make a change.

    Raises:
        DataError, MatchError, ShapeError: for variants that are none of this circuit.
    """

    def __init__(
        self,
        variants: Variants,
        anatomy: Anatomy,
        baseline: Mapping[str, torch.Tensor],
        patch: Mapping[str, torch.Tensor],
    ) -> None:
        self.anatomy = anatomy
        check(variants, anatomy)
        self.same = _equal_positions(anatomy, baseline, patch)
        entries, self.unchanged = list[Entry](), list[Cell]()
        for cell, given in variants.cells.items():
            variant = _on_output(given)
            job = job_of(variant, anatomy)
            if self._changes_nothing(variant):
                self.unchanged.append(cell)
            else:
                entries.append(Entry(cell, variant, job, self._start(variant, job)))
        self.entries = sorted(entries, key=lambda entry: (entry.start, entry.job.cut, repr(entry.job.key), entry.cell))
        self.first = min((self._first_read(entry) for entry in self.entries), default=0)

    def _changes_nothing(self, variant: Variant) -> bool:
        """Whether it replaces values by equal ones: at positions up to which both datasets are equal."""
        if variant.with_ != "patch" or variant.positions is None or not self.anatomy.is_causal:
            return False
        return max(place % self.anatomy.length for place in variant.positions) < self.same

    def _start(self, variant: Variant, job: Job) -> int:
        """The first position at which the stream may change at the cut."""
        if not self.anatomy.is_causal:
            return 0
        only_last = self.anatomy.cuts[job.cut].position is not None
        return self.anatomy.length - 1 if only_last else self._first_change(variant)

    def _first_change(self, variant: Variant) -> int:
        """The first position at which the changed part changes."""
        if not self.anatomy.is_causal:
            return 0
        same = self.same if variant.with_ == "patch" else 0
        places = [place % self.anatomy.length for place in variant.positions or (0,)]
        return max(same, min(places))

    def _first_read(self, entry: Entry) -> int:
        """The first position of which anything is read to make the change."""
        only_last = self.anatomy.cuts[entry.job.cut].position is not None
        what, into = entry.variant.what, entry.variant.into
        by_row = what.part in (None, "q", "pattern") if into is None else into.is_residual
        return entry.start if only_last and by_row else self._first_change(entry.variant)

    def batches(self, size: int) -> Iterator[list[Entry]]:
        """Variants that go through the model together, at most so many."""
        for _, group in groupby(self.entries, key=lambda entry: entry.start):
            entries = list(group)
            for at in range(0, len(entries), size):
                yield entries[at : at + size]

    # -- what is read of the datasets

    def base_nodes(self, pieces: Pieces) -> tuple[Circuit, ...]:
        """What is read of the baseline run: the metric first."""
        cuts = [cut.node for cut in self.anatomy.cuts]
        nodes = dict.fromkeys([self.anatomy.root])
        if not self.entries:
            return tuple(nodes)
        nodes.update(dict.fromkeys(self.taken_nodes()))
        for entry in self.entries:
            looked_into = entry.variant.into or entry.variant.what
            nodes[cuts[entry.job.cut]] = None
            if entry.variant.into is not None and not looked_into.is_residual:
                nodes[cuts[entry.job.cut - 1]] = None
            if looked_into.kind in ("head", "kv") and (looked_into.part or entry.variant.into):
                layer = self.anatomy.layer(looked_into)
                nodes.update(dict.fromkeys([layer.node, *layer.node.children[:3]]))
        first = min(entry.job.cut for entry in self.entries)
        ways = {entry.start > 0 for entry in self.entries}
        for start, end in zip(cuts[first:], [*cuts[first + 1 :], self.anatomy.root], strict=True):
            for windowed in ways:
                graph = pieces.between(start, end).graph(not windowed or start.rank < 3)
                nodes.update((source.node, None) for source in graph.sources if source.node is not None)
        return tuple(nodes)

    def taken_nodes(self) -> tuple[Circuit, ...]:
        """What is read of the run that values are taken from."""
        return tuple({node: None for entry in self.entries for node in self._nodes_of(entry.variant.what)})

    def _nodes_of(self, name: NodeName) -> Sequence[Circuit]:
        if name.kind in ("head", "kv"):
            layer = self.anatomy.layer(name)
            operands = {"q": (0,), "k": (1,), "v": (2,), "pattern": (0, 1)}
            return [layer.node] if name.part is None else [layer.node.children[i] for i in operands[name.part]]
        cut = self.anatomy.cuts[job_of(Variant(name), self.anatomy).cut]
        return [cut.node] if name.is_residual else cut.added

    # -- memory

    def portions(self, pieces: Pieces, prompts: int, limit: int | None) -> Portions:
        """How much is done at once so that it fits: half of what is left by the weights holds values, a quarter
        variants, a quarter what is computed at the moment.

        Raises:
            UnsupportedError: if not even one variant on one prompt fits.
        """
        width = pieces.dtype.itemsize
        start = min((entry.start for entry in self.entries), default=0)
        window = self.anatomy.length - start
        hidden = int(self.anatomy.cuts[0].node.shape[-1])  # type: ignore[arg-type]
        live = 3 * window * hidden * width
        if limit is None:
            return Portions(prompts, max(1, _LIVE_BYTES // (prompts * live)), _POSITIONS)
        weights = Cost.of([self.anatomy.root], 1, pieces.dtype).weight_bytes
        held = width * sum(elements(node, 1) for node in (*self.base_nodes(pieces), *self.taken_nodes()))
        heads = sum(layer.heads for layer in self.anatomy.layers)
        held += width * heads * window * hidden  # what each head writes
        row = _peak_of_a_row(self.anatomy, pieces)
        needed = weights + max(2 * held, 4 * live, 4 * row)
        if needed > limit:
            raise UnsupportedError(
                f"one variant on one prompt takes {needed:,} bytes, more than max_memory={limit:,}",
                hint=f"the weights alone are {weights:,} bytes; allow more, or compute in bfloat16",
            )
        left = limit - weights
        some = min(prompts, left // (2 * held))
        rows = max(1, left // 4 // row)
        return Portions(
            some, max(1, min(_LIVE_BYTES, left // 4) // (some * live)), min(_POSITIONS, rows * self.anatomy.length)
        )


def _on_output(variant: Variant) -> Variant:
    """The same change as one of the head's output, where it is one of the values that the head has gathered.

    Nothing else reads them, and the output is linear in them.
    """
    return replace(variant, what=variant.what.owner) if variant.what.part == "z" else variant


def _peak_of_a_row(anatomy: Anatomy, pieces: Pieces) -> int:
    """The most bytes that a row takes in any piece."""
    ends = [*(cut.node for cut in anatomy.cuts), anatomy.root]
    sizes = {ROWS.dims[0]: 1}
    return max(
        Cost.of(pieces.between(start, end).graph(True).roots, sizes, pieces.dtype).peak_activation_bytes
        for start, end in pairwise(ends)
    )


def _equal_positions(anatomy: Anatomy, baseline: Mapping[str, torch.Tensor], patch: Mapping[str, torch.Tensor]) -> int:
    """How many positions from the first on are equal in both datasets; at least the last one is not counted."""
    length = anatomy.length
    read = anatomy.cuts[-1].node.free_symbols
    out = length - 1
    for each in anatomy.inputs:
        if each.batched not in read:
            continue
        one, other = baseline[each.name], patch[each.name]
        if each.symbol.shape[:1] == (length,):
            columns = (one != other).flatten(2).any(-1).any(0) if one.ndim > 2 else (one != other).any(0)
            found = columns.nonzero()
            out = min(out, int(found[0])) if len(found) else out
        elif not torch.equal(one, other):
            out = 0
    return out


# -- checks


def check(variants: Variants, anatomy: Anatomy) -> None:
    """Refuses variants that are none of this circuit, or that are there twice.

    Raises:
        DataError: for a variant in two cells, or one that cannot be made.
        MatchError: for a part that is not there, or a receiver that data does not flow to.
        ShapeError: for a position outside of the sequence.
    """
    if not variants.cells:
        raise DataError("the sweep has no variants", hint="give at least one, such as heads(circuit)")
    seen: dict[Variant, Cell] = {}
    for cell, variant in variants.cells.items():
        _check_positions(variant, anatomy.length)
        for name in (variant.what, variant.into):
            if name is not None:
                _check_part(name, anatomy)
        _check_kind(variant)
        places = variant.positions
        at = None if places is None else tuple(sorted(place % anatomy.length for place in places))
        other = seen.setdefault(Variant(variant.what, at, variant.into, variant.with_), cell)
        if other != cell:
            raise DataError(
                f"the variant {variant} is in the sweep twice, at {list(other)} and {list(cell)}",
                hint="list each once; -1 is the last position",
            )


def _check_positions(variant: Variant, length: int) -> None:
    places = variant.positions
    if places is None:
        return
    outside = [place for place in places if not -length <= place < length]
    if outside or not places:
        raise ShapeError(
            f"{variant}: {f'position {outside[0]} is outside of the sequence' if outside else 'there is no position'}",
            hint=f"positions are 0 to {length - 1}, or from the end, END to {-length}",
        )
    if len({place % length for place in places}) < len(places):
        raise DataError(f"{variant} names a position twice", hint="name each once; -1 is the last position")


def _check_part(name: NodeName, anatomy: Anatomy) -> None:
    layers = {layer.number: layer for layer in anatomy.layers}
    if name.layer is not None and name.layer not in layers:
        raise MatchError(f"there is no {name}", hint=f"layers go from 0 to {max(layers)}")
    if name.kind in ("head", "kv") and name.layer is not None and name.head is not None:
        count = layers[name.layer].heads if name.kind == "head" else layers[name.layer].groups
        if name.head >= count:
            raise MatchError(f"there is no {name}", hint=f"they go from 0 to {count - 1}")
        if name.kind == "kv" and count == layers[name.layer].heads:
            raise MatchError(
                f"there is no {name}: the heads of this model do not share keys",
                hint=f"use a{name.layer}.h{name.head}.{name.part}",
            )


def _check_kind(variant: Variant) -> None:
    what, into = variant.what, variant.into
    if what.kind == "logits" or (into is not None and into.kind in ("logits", "embeds")):
        raise MatchError(f"{variant}: a sweep ends at the final norm", hint="patch final.input")
    if what.part == "pattern" and variant.with_ != "patch":
        raise DataError(
            f"{variant}: a pattern is taken from the patch data only, not set to {variant.with_!r}",
            hint="ablate the head's output, or its queries and keys",
        )
    if into is None:
        return
    if what.kind == "kv" or what.part is not None or what.kind in ("attn_input", "mlp_input", "final_input"):
        raise MatchError(
            f"{variant}: {what} writes nothing to the residual stream by itself",
            hint="senders are heads, MLPs and embeds: a5.h5 -> a8.h6.q",
        )
    if into.part in ("pattern", "z") or into.kind == "kv":
        raise MatchError(
            f"{variant}: {into} reads nothing of the residual stream by itself",
            hint="receivers are heads, their q, k and v, MLPs and residual streams: a5.h5 -> a8.h6.q",
        )
    if not what.order < into.order or (what.layer == into.layer and what.kind == into.kind):
        raise MatchError(
            f"{variant} runs against the direction of data flow", hint="the receiver must come after the sender"
        )
