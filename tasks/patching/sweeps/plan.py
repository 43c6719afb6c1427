"""What a sweep is going to do: its variants checked, put in order, and parted to fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch

from tapeout.compiler.cost import Cost, elements
from tapeout.ir import Circuit
from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.patching.sweeps.checks import check
from tapeout.tasks.patching.sweeps.compiled import Pieces
from tapeout.tasks.patching.sweeps.cuts import Anatomy
from tapeout.tasks.patching.sweeps.groups import Job, job_of, read_nodes, taken_nodes
from tapeout.tasks.patching.sweeps.subgraphs import ROWS
from tapeout.tasks.patching.sweeps.variants import Cell, Variant, Variants

_POSITIONS = {"cpu": 2048, "cuda": 1 << 16}
"""Positions that go through a piece at once: enough for products' full rate, few enough for a processor's caches."""

_LIVE_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
"""What the variants that are under way may take without a limit."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a variant changes of one part.

    Attributes:
        variant: the change.
        job: what makes it.
    """

    variant: Variant
    job: Job


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant on its way.

    Attributes:
        cell: its place in the grid.
        steps: what it changes, in the order of data flow.
        start: the first position that it may change.
    """

    cell: Cell
    steps: tuple[Step, ...]
    start: int

    @property
    def first(self) -> Step:
        """The step with which it enters."""
        return self.steps[0]


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
        steps: what they change.
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
        for cell, variant in variants.cells.items():
            parts = [_on_output(part) for part in variant.parts if not self._changes_nothing(part)]
            if not parts:
                self.unchanged.append(cell)
                continue
            steps = sorted((Step(part, job_of(part, anatomy)) for part in parts), key=lambda step: step.job.cut)
            entries.append(Entry(cell, tuple(steps), min(map(self._start, steps))))
        self.entries = sorted(
            entries, key=lambda entry: (entry.start, entry.first.job.cut, repr(entry.first.job.key), entry.cell)
        )
        self.steps = tuple(step for entry in self.entries for step in entry.steps)
        self.first = min(map(self._first_read, self.steps), default=0)

    def _changes_nothing(self, variant: Variant) -> bool:
        """Whether it replaces values by equal ones: at positions up to which both datasets are equal."""
        if variant.with_ != "patch" or variant.positions is None or not self.anatomy.is_causal:
            return False
        return max(place % self.anatomy.length for place in variant.positions) < self.same

    def _start(self, step: Step) -> int:
        """The first position at which the stream may change at the step's cut."""
        if not self.anatomy.is_causal:
            return 0
        only_last = self.anatomy.cuts[step.job.cut].position is not None
        return self.anatomy.length - 1 if only_last else self._first_change(step.variant)

    def _first_change(self, variant: Variant) -> int:
        """The first position at which the changed part changes."""
        if not self.anatomy.is_causal:
            return 0
        same = self.same if variant.with_ == "patch" else 0
        places = [place % self.anatomy.length for place in variant.positions or (0,)]
        return max(same, min(places))

    def _first_read(self, step: Step) -> int:
        """The first position of which anything is read to make the change."""
        only_last = self.anatomy.cuts[step.job.cut].position is not None
        what, into = step.variant.what, step.variant.into
        by_row = what.part in (None, "q", "pattern") if into is None else into.is_residual
        return self._start(step) if only_last and by_row else self._first_change(step.variant)

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
        for step in self.steps:
            nodes.update(dict.fromkeys(read_nodes(step.job, step.variant, self.anatomy)))
        first = min(step.job.cut for step in self.steps)
        ways = {entry.start > 0 for entry in self.entries}
        for start, end in zip(cuts[first:], [*cuts[first + 1 :], self.anatomy.root], strict=True):
            for windowed in ways:
                graph = pieces.between(start, end).graph(not windowed or start.rank < 3)
                nodes.update((source.node, None) for source in graph.sources if source.node is not None)
        return tuple(nodes)

    def taken_nodes(self) -> tuple[Circuit, ...]:
        """What is read of the run that values are taken from."""
        taken = (taken_nodes(step.variant.what, self.anatomy) for step in self.steps)
        return tuple({node: None for nodes in taken for node in nodes})

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
        kind = "cuda" if pieces.device.type == "cuda" else "cpu"
        most_live, positions = _LIVE_BYTES[kind], _POSITIONS[kind]
        if limit is None:
            return Portions(prompts, max(1, most_live // (prompts * live)), positions)
        weights = Cost.of([self.anatomy.root], 1, pieces.dtype).weight_bytes
        held = width * sum(elements(node, 1) for node in (*self.base_nodes(pieces), *self.taken_nodes()))
        held += width * sum(layer.heads for layer in self.anatomy.layers) * window * hidden  # what each head writes
        row = _peak_of_a_row(self.anatomy, pieces)
        if any(len(entry.steps) > 1 for entry in self.entries):  # what each head writes, for the row itself
            row += max(layer.heads for layer in self.anatomy.layers) * window * hidden * width
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
            some, max(1, min(most_live, left // 4) // (some * live)), min(positions, rows * self.anatomy.length)
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
