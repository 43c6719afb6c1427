"""Sweeps over edited circuits: any variant that can be written as a circuit, compiled together with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tapeout.compiler import compile_many
from tapeout.ir import Circuit
from tapeout.ir.errors import DataError
from tapeout.tasks.patching.data import PATCH_TOKENS, Data, check_pair
from tapeout.tasks.patching.paths import PathIn, path_patch
from tapeout.tasks.patching.sweeps.result import SweepResult, as_result
from tapeout.tasks.patching.sweeps.variants import Variants

Edit = Callable[[Circuit], Circuit]
"""An edit of the metric's circuit of one row; the result may read `patch.tokens`."""

Progress = Callable[[str, int, int], None]

_AT_ONCE = 32
"""Circuits that are compiled together: what they share is one node, and what they do not makes passes slower."""


def sweep_edits(
    circuit: Circuit,
    edits: Mapping[str, Edit | PathIn],
    baseline: Data,
    patch: Data,
    *,
    backend: str = "fx",
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """The metric of any edits of a circuit: what they share is computed once for every 32 of them.

    For edits that `Sweep` knows by name it is slower by far: each edit has nodes of its own.

    Args:
        circuit: a metric of one prompt [], split by head.
        edits: by label, an edit of the circuit, or the paths of `path_patch`: `{"both": ["a1.h0", "a2.h1"]}`.
        baseline, patch: `tokens` [N, SEQ] and `labels` [N, 2], or IOIDatasets.
        backend, dtype, device, max_memory: see `compile`.
        progress: told what is done.

    Returns:
        An array with the axes `variant` and `prompt`. An interruption (Ctrl-C) gives what is finished.

    Raises:
        DataError: for datasets of unequal size or length, without edits, or for one that gives no such metric.
        TapeoutError: see `compile` and `path_patch`.
    """
    rows = check_pair(circuit, baseline, patch) or {}
    if not isinstance(edits, Mapping) or not edits:
        raise DataError(
            "the sweep has no edits" if not edits else f"edits are a {type(edits).__name__}",
            hint='give at least one, by label: {"a0.h0": "a0.h0"}',
        )
    labels = list(edits)
    circuits = [_edited(circuit, label, edits[label]) for label in labels]
    count = len(rows[PATCH_TOKENS])
    values: Any = np.full((len(labels), count), np.nan)
    unchanged: Any = np.full(count, np.nan)
    complete = True
    try:
        for at in range(0, len(circuits), _AT_ONCE):
            some = [circuit, *circuits[at : at + _AT_ONCE]]
            given = {name: value.to(device) for name, value in rows.items() if any(c.get(name) for c in some)}
            results = compile_many(some, backend, list(given), dtype, device, max_memory=max_memory)(**given)
            metric = torch.stack(results).double().cpu().numpy()
            unchanged, values[at : at + len(some) - 1] = metric[0], metric[1:]
            if progress is not None:
                progress("edits", min(at + _AT_ONCE, len(circuits)), len(circuits))
    except KeyboardInterrupt:
        complete = False
    return as_result(Variants(("variant",), {"variant": labels}, {}), values, unchanged, complete)


def _edited(circuit: Circuit, label: str, edit: Edit | PathIn) -> Circuit:
    try:
        out = edit(circuit) if callable(edit) else path_patch(circuit, edit)
    except Exception as error:
        error.add_note(f"in the edit {label!r}")
        raise
    if not isinstance(out, Circuit) or out.shape != circuit.shape:
        raise DataError(
            f"the edit {label!r} gives {out!r}", hint=f"an edit returns the metric's circuit, changed: {circuit!r}"
        )
    return out
