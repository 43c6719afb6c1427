"""A sweep on a model's IOI prompts: what each head does for the logit difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from tapeout.backends.common.devices import as_device
from tapeout.compiler.checks.reference import Progress, silent
from tapeout.ir import Circuit
from tapeout.ir.errors import DataError
from tapeout.models import circuit_of, split_circuit
from tapeout.models.parts.names import END
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.ioi.loading import load_in_full_precision, tokenizer_of
from tapeout.tasks.ioi.prompts import Flip, PromptType
from tapeout.tasks.patching.sweeps.result import SweepResult
from tapeout.tasks.patching.sweeps.sweep import Estimate, Sweep
from tapeout.tasks.patching.sweeps.variants import Part, Variants, direct, edges, heads, heads_by_position

if TYPE_CHECKING:
    import xarray as xr

SweepName = Literal["heads", "heads-positions", "edges", "direct"]
FlipName = Literal["names", "IO", "S", "S1", "S2", "order"]

FLIPS: Mapping[FlipName, tuple[Flip, ...]] = {
    "names": ("IO", "S"), "IO": ("IO",), "S": ("S",), "S1": ("S1",), "S2": ("S2",), "order": ("order",),
}  # fmt: skip
"""The flips, one after the other, that make the patch data; "names" leaves no name as it was."""

Make = Callable[[Circuit, Any], Variants]
_MAKE: Mapping[SweepName, tuple[Make, tuple[Part, ...]]] = {
    "heads": (lambda circuit, part: heads(circuit, part), get_args(Part)),
    "heads-positions": (lambda circuit, part: heads_by_position(circuit, part), get_args(Part)),
    "edges": (lambda circuit, part: edges(circuit, part, (END,)), ("q", "k", "v")),
    "direct": (lambda circuit, part: direct(circuit, (END,)), ("out",)),
}
"""For every sweep how its variants are made, and which parts of a head it can be of; the first by default."""


@dataclass(frozen=True, slots=True)
class PatchResult:
    """What came out.

    Attributes:
        model: the model's name.
        sweep, part, flip: see `run_patch`.
        n: prompts.
        estimate: what was expected of the sweep before it ran.
        seconds: the whole job, loading included.
        sweep_seconds: the sweep alone, compiling included.
        result: the metric of every variant on every prompt.
    """

    model: str
    sweep: SweepName
    part: Part
    flip: FlipName
    n: int
    estimate: Estimate
    seconds: float
    sweep_seconds: float
    result: SweepResult

    def effects(self) -> xr.DataArray:
        """What each variant changes the logit difference by, its mean over the prompts."""
        return self.result.mean().effect()

    def matrix(self) -> xr.DataArray:
        """The effects with two axes, for a heat map: heads one below the other where there are positions too."""
        effects = self.effects()
        if effects.ndim == 2:
            return effects
        names = [f"a{layer}.h{head}" for layer in effects["layer"].values for head in effects["head"].values]
        flat = effects.stack(head_name=("layer", "head")).transpose("head_name", "position")
        return flat.drop_vars(["head_name", "layer", "head"]).rename(head_name="head").assign_coords(head=names)

    def strongest(self, count: int = 10) -> list[tuple[dict[str, Any], float]]:
        """The variants of the largest effects by amount: their labels, and the effects."""
        found = self.effects().to_series().dropna()
        found = found[found.abs().sort_values(ascending=False).index[:count]]
        axes = found.index.names
        return [(dict(zip(axes, labels, strict=True)), float(value)) for labels, value in found.items()]

    def to_json(self) -> dict[str, Any]:
        """JSON's types; the effects by axis, NaN where there is none."""
        effects = self.effects()
        return {
            "model": self.model,
            "sweep": self.sweep,
            "part": self.part,
            "flip": self.flip,
            "metric": "logit-diff",
            "n": self.n,
            "complete": self.result.complete,
            "baseline_mean": float(self.result.baseline.mean()),
            "seconds": self.seconds,
            "sweep_seconds": self.sweep_seconds,
            "estimate": asdict(self.estimate),
            "axes": {str(dim): effects[dim].values.tolist() for dim in effects.dims},
            "effects": effects.values.tolist(),
            "strongest": [{**labels, "effect": effect} for labels, effect in self.strongest()],
        }


def parts_of(sweep: SweepName) -> tuple[Part, ...]:
    """Which parts of a head a sweep can be of, the usual one first."""
    return _MAKE[sweep][1]


def run_patch(
    model: str | Path | Any,
    sweep: SweepName = "heads",
    *,
    part: Part | None = None,
    flip: FlipName = "names",
    n: int = 20,
    prompt_type: PromptType = "mixed",
    seed: int = 0,
    backend: str = "fx",
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    max_memory: int | None = None,
    tf32: bool = False,
    planned: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
) -> PatchResult:
    """Loads a model, makes IOI prompts and their flips, and patches each head (or edge) from these into those.

    The metric is the logit difference of the original names. An interruption gives what is finished.

    Args:
        model: see `load_circuit`.
        sweep: "heads", each head at all positions; "heads-positions", each at each position; "edges", what each head
            writes at the last position as each later head reads it; "direct", as the final norm reads it.
        part: which part of the heads is patched ("out", "q", "k", "v" or "pattern"; the read of an edge's receiver).
        flip: what differs in the patch data, see `FLIPS`.
        n: prompts.
        prompt_type: see `IOIDataset`.
        seed: of the prompts.
        backend, dtype, device, max_memory, tf32: see `Sweep`.
        planned: told what the sweep will take, before it runs.
        progress: see `Progress`.

    Raises:
        ModelError: if the model cannot be loaded, or has no tokenizer.
        DataError: for a part that the sweep cannot be of, or prompts that cannot be made.
        UnsupportedError: see `Sweep`.
    """
    notify = progress or silent
    make, parts = _MAKE[sweep]
    chosen = parts[0] if part is None else part
    if chosen not in parts:
        raise DataError(f"the sweep {sweep!r} cannot be of the part {part!r}", hint=f"it takes {', '.join(parts)}")
    where = as_device(device)
    start = time.perf_counter()
    checkpoint = load_in_full_precision(model, notify)
    tokenizer = tokenizer_of(checkpoint)
    notify("making prompts", 0, 0)
    baseline = IOIDataset(prompt_type, n, seed, tokenizer=tokenizer)
    patch = baseline
    for each in FLIPS[flip]:
        patch = patch.gen_flipped_prompts(each)
    notify("splitting the circuit by head and position", 0, 0)
    circuits, info = circuit_of(checkpoint.model, source=checkpoint.source)
    split, _ = split_circuit(circuits, info, baseline.max_len)
    notify("planning the sweep", 0, 0)
    began = time.perf_counter()
    metric = logit_diff_circuit(split)
    job = Sweep(
        metric, make(metric, chosen), baseline, {"tokens": patch.prompts_toks}, backend=backend, dtype=dtype,
        device=where, max_memory=max_memory, tf32=tf32, progress=notify,
    )  # fmt: skip
    estimate = job.estimate()
    if planned is not None:
        planned(estimate)
    result = job.run()
    end = time.perf_counter()
    return PatchResult(checkpoint.source, sweep, chosen, flip, n, estimate, end - start, end - began, result)
