"""The passage of variants through the model: each enters at its cut and goes on beside those that have entered before.

A variant on a prompt is a row like any other. The pieces between cuts are those of the plain model, over as many
rows as there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch

from tapeout.ir import Circuit
from tapeout.tasks.patching.sweeps.changes import Changes
from tapeout.tasks.patching.sweeps.compiled import Pieces
from tapeout.tasks.patching.sweeps.further import changes_of_rows
from tapeout.tasks.patching.sweeps.plan import Entry, Plan, Portions, Step
from tapeout.tasks.patching.sweeps.subgraphs import Values, Window
from tapeout.tasks.patching.sweeps.variants import With

Tensors = Mapping[str, torch.Tensor]
"""Data by name: the rows of some prompts."""


class Passage:
    """The way of a plan's variants through the model, on some prompts.

    Args:
        plan: the variants.
        portions: how much is done at once.
        pieces: the model's parts.
        baseline, patch: the prompts' data.
        means: what is taken by variants that take means.

    Attributes:
        baseline: the metric without any change, [PROMPTS].
    """

    def __init__(
        self, plan: Plan, portions: Portions, pieces: Pieces, baseline: Tensors, patch: Tensors, means: Values
    ) -> None:
        self.plan, self.portions, self.pieces, self.anatomy = plan, portions, pieces, plan.anatomy
        self.base = values_on(pieces, plan.base_nodes(pieces), baseline)
        self.baseline = self.base[self.anatomy.root]
        self.prompts = len(self.baseline)
        instead: dict[With, Values] = {"mean": means}
        if any(step.variant.with_ == "patch" for step in plan.steps):
            instead["patch"] = values_on(pieces, plan.taken_nodes(), patch)
        self.changes = Changes(pieces, self.base, instead, plan.first)

    def batches(self) -> Iterator[tuple[Sequence[Entry], torch.Tensor]]:
        """Variants that go through the model together, and their metric [VARIANTS, PROMPTS]."""
        for batch in self.plan.batches(self.portions.variants):
            yield batch, self._through(batch)

    def _through(self, batch: Sequence[Entry]) -> torch.Tensor:
        """The metric of the variants [VARIANTS, PROMPTS]: each enters at its cut and goes through the rest."""
        cuts = self.anatomy.cuts
        ends = [*(cut.node for cut in cuts[1:]), self.anatomy.root]
        window = Window(batch[0].start, self.anatomy.length, self.anatomy.length)
        entering = {cut: list(group) for cut, group in groupby(batch, key=lambda entry: entry.first.job.cut)}
        first = min(entering)
        before = live = self._entered(entering[first], window)
        for number in range(first, len(cuts)):
            if number > first:
                live = self._changed_further(batch, number, before, live, window)
                if number in entering:
                    live = torch.cat([live, self._entered(entering[number], window)])
            before, live = live, self._advanced(cuts[number].node, ends[number], live, window)
        return live.reshape(len(batch), self.prompts)

    def _entered(self, entries: Sequence[Entry], window: Window) -> torch.Tensor:
        """The stream at a cut with the changes of the variants that enter there: [VARIANTS * PROMPTS, ...]."""
        cut = entries[0].first.job.cut
        steps = [(i, step) for i, entry in enumerate(entries) for step in entry.steps if step.job.cut == cut]
        stream = self.base[self.anatomy.cuts[cut].node]
        stream = stream if stream.ndim == 2 else stream[:, window.start :]
        out = stream.repeat(len(entries), *(1,) * stream.ndim)
        for _, group in groupby(sorted(steps, key=_by_job), key=_by_job):
            places, same = zip(*group, strict=True)
            change = self.changes.of(same[0].job, [step.variant for step in same], window.start)
            out.index_add_(0, torch.tensor(places, device=out.device), change)
        return out.flatten(0, 1)

    def _changed_further(
        self, batch: Sequence[Entry], number: int, before: torch.Tensor, live: torch.Tensor, window: Window
    ) -> torch.Tensor:
        """The stream at a cut with what variants that have entered earlier change there too."""
        entries: dict[Step, list[int]] = {}
        for i, entry in enumerate(batch):
            for step in entry.steps[1:]:
                if step.job.cut == number > entry.first.job.cut:
                    entries.setdefault(step, []).append(i)
        if not entries:
            return live
        rows, changes = list[torch.Tensor](), list[torch.Tensor]()
        at_once = max(1, self.portions.positions // (live.shape[1] if live.ndim == 3 else 1))
        for step, places in entries.items():
            first = torch.tensor(places, device=live.device)[:, None] * self.prompts
            for some in (first + torch.arange(self.prompts, device=live.device)).flatten().split(at_once):
                made = changes_of_rows(self.changes, step, before[some], live[some], some % self.prompts, window)
                rows.append(some)
                changes.append(made)
        return live.index_add(0, torch.cat(rows), torch.cat(changes))

    def _advanced(self, start: Circuit, end: Circuit, x: torch.Tensor, window: Window) -> torch.Tensor:
        """The stream at the next cut, or the metric, some rows at a time."""
        piece = self.pieces.between(start, end)
        step = max(1, int(self.portions.positions / piece.positions_of(window)))
        prompts = torch.arange(len(x), device=self.pieces.device) % self.prompts
        if step >= self.prompts:  # whole variants: each time the same prompts
            return piece(x, self.base, prompts[: step - step % self.prompts], window)
        rows = zip(x.split(step), prompts.split(step), strict=True)
        return torch.cat([piece(some, self.base, of, window) for some, of in rows])


def values_on(pieces: Pieces, nodes: tuple[Circuit, ...], data: Tensors) -> dict[Circuit, torch.Tensor]:
    """The values of nodes on prompts."""
    symbols = [each.batched for each in pieces.anatomy.inputs]
    run = pieces.made(("values", nodes), lambda: pieces.part(nodes, symbols))
    out = run(*(data[each.name] for each in pieces.anatomy.inputs))
    return dict(zip(nodes, out if len(nodes) > 1 else (out,), strict=True))


def _by_job(step: tuple[int, Step]) -> str:
    return repr(step[1].job.key)
