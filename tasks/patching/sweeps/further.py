"""Further changes of variants that are on their way: made over what has become of their rows.

A variant of several parts enters with the first of them. At the cuts of the others its rows have values of
their own, which stand in the place of the prompts' when the change is made.
"""

from __future__ import annotations

import torch

from tapeout.ir import Circuit
from tapeout.tasks.patching.sweeps.changes import Changes
from tapeout.tasks.patching.sweeps.groups import read_nodes
from tapeout.tasks.patching.sweeps.plan import Step
from tapeout.tasks.patching.sweeps.subgraphs import Window


def changes_of_rows(
    changes: Changes, step: Step, before: torch.Tensor, live: torch.Tensor, prompts: torch.Tensor, window: Window
) -> torch.Tensor:
    """What a step changes at its cut, for rows that have changed before: [ROWS, HIDDEN] or [ROWS, POSITIONS, HIDDEN].

    Args:
        changes: those of the prompts.
        step: the change.
        before: the rows' stream at the cut before, in the window.
        live: their stream at the step's cut.
        prompts: the prompt of each row.
        window: the positions of the streams.
    """
    pieces, anatomy = changes.pieces, changes.anatomy
    start, end = (anatomy.cuts[number].node for number in (step.job.cut - 1, step.job.cut))

    def of_rows(node: Circuit) -> torch.Tensor:
        own = live if node is end else pieces.between(start, node)(before, changes.base, prompts, window)
        whole = changes.base[node]
        if own.ndim == 2 or own.shape[-2] == whole.shape[-2]:
            return own
        return torch.cat([whole.narrow(-2, 0, window.start).index_select(0, prompts), own], -2)

    base = {node: of_rows(node) for node in dict.fromkeys(read_nodes(step.job, step.variant, anatomy))}
    instead = {
        with_: {node: _of_prompts(values[node], prompts) for node in base if node in values}
        for with_, values in changes.instead.items()
    }
    own = Changes(pieces, base, instead, changes.first)
    return own.of(step.job, [step.variant], window.start)[0]


def _of_prompts(values: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """The values of each row's prompt; a mean over all prompts, [1, ...], serves every row."""
    return values if len(values) == 1 else values.index_select(0, prompts)
