"""A sweep: many variants of a model evaluated together, what they share once.

A variant changes what is written to the residual stream at one of its cuts (see `cuts`). The baseline
and the patch data are each run once, and the changes of all heads of a layer are made together (see
`changes`). Then a variant on a prompt is a row like any other: it enters at its cut, over the prompt's
stream there, and goes through the rest of the model beside all rows that have entered before. Positions
before the first change are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tapeout.backends.common.devices import as_device, failures_told, free_memory, out_of_memory
from tapeout.backends.common.numerics import Numerics
from tapeout.compiler.backends import builder
from tapeout.compiler.compile import DTYPES, check_memory
from tapeout.compiler.cost import Cost
from tapeout.compiler.inputs import check_values
from tapeout.compiler.measure import measure
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import DataError, TypeMismatchError, UnsupportedError
from tapeout.models.parts.places import node_names
from tapeout.tasks.patching.data import Data, check_rows, check_shapes, rows_of
from tapeout.tasks.patching.sweeps.cluster import run_on
from tapeout.tasks.patching.sweeps.compiled import Pieces
from tapeout.tasks.patching.sweeps.cuts import Anatomy, anatomy
from tapeout.tasks.patching.sweeps.forward import Passage, values_on
from tapeout.tasks.patching.sweeps.plan import Plan, Portions
from tapeout.tasks.patching.sweeps.result import SweepResult, as_result
from tapeout.tasks.patching.sweeps.subgraphs import Values
from tapeout.tasks.patching.sweeps.variants import Cell, Variant, Variants, listed

if TYPE_CHECKING:
    from distributed import Client

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_RATE_ROWS = 1536

_UNLIMITED = 1 << 40
"""Bytes to begin with where nobody knows how many there are."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a sweep takes, before it runs.

    Attributes:
        variants: how many variants there are, and
        unchanged: how many of them change nothing and are not computed.
        calls: calls of compiled parts.
        flops: floating-point operations.
        seconds: these at the rate of a matrix product of the model's size on this machine, measured now. What is
            no product comes on top, usually a fifth to a third.
        weight_bytes: the weights.
        portions: how many prompts, variants and positions are computed at once.
    """

    variants: int
    unchanged: int
    calls: int
    flops: int
    seconds: float
    weight_bytes: int
    portions: Portions


class Sweep:
    """A sweep that is planned and checked, and can be estimated and run.

    Args:
        circuit: a metric of one prompt [], of a model that is split by head (`models.split_circuit`).
        variants: what is varied: see `heads`, `edges`, `direct`, ..., or a list such as
            `["a5.h3", "a2.h1@END -> a4.h0.q"]`.
        baseline: the data of the run that is changed: `tokens` [N, SEQ] and `labels` [N, 2], or an IOIDataset.
        patch: the data that values are taken from, row i for row i of the baseline; by default the baseline, for
            means and zeros.
        backend, dtype, device, tf32, deterministic: see `compile`.
        max_memory: bytes that weights and values may take, by an estimate; fewer prompts and variants are then
            computed at once. None for no limit but the free memory of a GPU.
        progress: told what is done.

    Attributes:
        variants: the grid.
        plan: in which order it is computed.
        pieces: what was compiled; counts the operations of all runs.

    Raises:
        DataError: for datasets of unequal size or length, labels or patch data that are missing, or variants that
            are there twice.
        MatchError: for a circuit that is not a split model's, a part that it does not have, or a path against
            the direction of data flow.
        ShapeError: for a circuit that is no metric, or a position outside of the sequence.
        UnsupportedError: if `max_memory` is less than one variant on one prompt takes, or the circuit was edited so
            that its residual stream cannot be cut.
    """

    def __init__(
        self,
        circuit: Circuit,
        variants: Variants | Iterable[Variant | str],
        baseline: Data,
        patch: Data | None = None,
        *,
        backend: str = "fx",
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        max_memory: int | None = None,
        tf32: bool = False,
        deterministic: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.circuit, self.max_memory = circuit, max_memory
        self.variants = variants if isinstance(variants, Variants) else listed(variants)
        self.backend, self.dtype, self.device = backend, as_dtype(dtype), as_device(device)
        self.numerics = Numerics(tf32, deterministic)
        builder(backend)
        check_memory(max_memory)
        self.numerics.check(self.device)
        if self.dtype not in DTYPES:
            raise TypeMismatchError(f"cannot compute in {self.dtype}", hint="use float32, float64 or bfloat16")
        self.baseline = _on(self.device, check_rows(circuit, baseline))
        parts = (part for variant in self.variants.cells.values() for part in variant.parts)
        if patch is None and any(part.with_ == "patch" for part in parts):
            raise DataError(
                "the variants take values from patch data, and none was given",
                hint='give patch=dataset.gen_flipped_prompts("IO"), or make variants with_="zero" or "mean"',
            )
        given = {} if patch is None else rows_of(patch)
        self.patch = {
            **self.baseline,
            **_on(self.device, {name: given[name] for name in self.baseline if name in given}),
        }
        check_shapes(self.baseline, self.patch)
        self.progress = progress or (lambda what, done, total: None)
        self.anatomy = anatomy(circuit, list(self.baseline), self.dtype)
        _check_heads(circuit, self.anatomy)
        for data in (self.baseline, self.patch):
            check_values(self.anatomy.inputs, data, self.device)
        self.prompts = len(next(iter(self.baseline.values())))
        self.plan = Plan(self.variants, self.anatomy, self.baseline, self.patch)
        self.pieces = Pieces(self.anatomy, backend, self.dtype, self.device, self.numerics)
        self.limit = max_memory if max_memory is not None else free_memory(self.device)
        self.portions = self.plan.portions(self.pieces, self.prompts, self.limit)

    def estimate(self) -> Estimate:
        """What `run` will take. Nothing is compiled and nothing computed, but for one product to see how fast it is."""
        dry = Pieces(self.anatomy, self.backend, self.dtype, torch.device("meta"))
        means = self._means(dry)
        for part in self._parts():
            for _ in self._passage(dry, part, means).batches():
                pass
        weights = Cost.of([self.anatomy.root], 1, self.dtype).weight_bytes
        hidden = int(self.anatomy.cuts[0].node.shape[-1])  # type: ignore[arg-type]
        rate = _matmul_rate(hidden, self.dtype, self.device)
        unchanged = len(self.plan.unchanged)
        return Estimate(
            len(self.variants), unchanged, dry.calls, dry.flops, dry.flops / rate, weights, self.portions
        )  # fmt: skip

    def run(self, client: Client | None = None, folder: str | Path | None = None) -> SweepResult:
        """Computes everything.

        An interruption (Ctrl-C) gives what is finished: the rest is NaN, and `complete` is False.

        Args:
            client: of a Dask cluster whose workers compute; None for this process. See `cluster.run_on`.
            folder: where the workers can read the circuit; None if they are on this machine.

        Raises:
            UnsupportedError: for a cluster without workers, or on which the sweep does not succeed.
        """
        values: Any = np.full((*self.variants.shape, self.prompts), np.nan)
        baseline: Any = np.full(self.prompts, np.nan)
        complete, done, total = True, 0, len(self.plan.entries)

        def keep(cells: Sequence[Cell], metric: Any, of_baseline: Any, part: slice = slice(None)) -> None:
            nonlocal done
            baseline[part] = of_baseline
            for cell in self.plan.unchanged:
                values[(*cell, part)] = of_baseline
            for cell, row in zip(cells, metric, strict=True):
                values[(*cell, part)] = row
            done += len(cells) * len(of_baseline)
            self.progress("variants", done // self.prompts, total)

        try:
            if client is None or not self.plan.entries:
                self._run_within_memory(keep)
            else:
                run_on(client, self, keep, folder)
        except KeyboardInterrupt:
            complete = False
        return as_result(self.variants, values, baseline, complete)

    def _run_within_memory(self, keep: Callable[..., None]) -> None:
        """Computes everything here; where memory runs out, once more with half of it."""
        with failures_told(self.device), self.numerics.applied(self.device):
            try:
                return self._run_here(keep)
            except torch.OutOfMemoryError:
                pass  # outside of the handler, which would hold what was allocated
            torch.cuda.empty_cache()
            self.limit = (self.limit or free_memory(self.device) or _UNLIMITED) // 2
            self.portions = self.plan.portions(self.pieces, self.prompts, self.limit)
            try:
                return self._run_here(keep)
            except torch.OutOfMemoryError:
                pass
        raise out_of_memory(self.device, self.limit, "give max_memory less than what is free, or compute in bfloat16")

    def _run_here(self, keep: Callable[..., None]) -> None:
        means = self._means(self.pieces)
        for part in self._parts():
            run = self._passage(self.pieces, part, means)
            baseline = _numbers(run.baseline)
            keep((), (), baseline, part)
            for batch, metric in run.batches():
                keep([entry.cell for entry in batch], _numbers(metric), baseline, part)

    def only(self, cells: Iterable[Cell]) -> Sweep:
        """The same sweep over some of its variants; what is compiled serves both."""
        out = copy(self)
        out.variants = replace(self.variants, cells={cell: self.variants.cells[cell] for cell in cells})
        out.plan = Plan(out.variants, self.anatomy, self.baseline, self.patch)
        out.portions = out.plan.portions(self.pieces, self.prompts, self.limit)
        return out

    def arguments(self) -> dict[str, Any]:
        """What the sweep was made with, but for the circuit and who looks on; for other processes to make it again.

        A worker of a cluster computes on the GPU that its process sees, whatever number it has here.
        """
        here = torch.device("cpu")
        return {
            "variants": self.variants,
            "baseline": _on(here, self.baseline),
            "patch": _on(here, self.patch),
            "backend": self.backend,
            "dtype": self.dtype,
            "device": self.device.type,
            "tf32": self.numerics.tf32,
            "deterministic": self.numerics.deterministic,
            "max_memory": self.max_memory,
        }

    def _passage(self, pieces: Pieces, part: slice, means: Values) -> Passage:
        """The variants on some of the prompts."""
        return Passage(self.plan, self.portions, pieces, _cut(self.baseline, part), _cut(self.patch, part), means)

    def _parts(self) -> list[slice]:
        """The prompts that are computed at once."""
        step = self.portions.prompts
        return [slice(at, min(at + step, self.prompts)) for at in range(0, self.prompts, step)]

    def _means(self, pieces: Pieces) -> dict[Circuit, torch.Tensor]:
        """Means over all prompts of what is taken from the patch data, if any variant takes means."""
        if all(step.variant.with_ != "mean" for step in self.plan.steps):
            return {}
        total: dict[Circuit, torch.Tensor] = {}
        for part in self._parts():
            for node, value in values_on(pieces, self.plan.taken_nodes(), _cut(self.patch, part)).items():
                summed = value.sum(0, keepdim=True)
                total[node] = total[node] + summed if node in total else summed
        return {node: value / self.prompts for node, value in total.items()}


def _on(device: torch.device, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in rows.items()}


def _cut(data: Mapping[str, torch.Tensor], part: slice) -> dict[str, torch.Tensor]:
    return {name: value[part] for name, value in data.items()}


def _check_heads(circuit: Circuit, anatomy: Anatomy) -> None:
    """Raises UnsupportedError unless the heads that are computed together are all that a layer was split into.

    They are told by their numbers: without one that was replaced, another would be taken for it.
    """
    named: dict[int | None, set[int | None]] = {}
    for name in node_names(circuit):
        if name.kind == "head" and name.part is None:
            named.setdefault(name.layer, set()).add(name.head)
    for layer in anatomy.layers:
        if named.get(layer.number) != set(range(layer.heads)):
            raise UnsupportedError(
                f"layer a{layer.number} has {len(named.get(layer.number, ()))} heads with names, and {layer.heads} are "
                "computed together",
                hint="sweep over the circuit as it was split, before it was patched",
            )


def _numbers(values: torch.Tensor) -> Any:
    return values.double().cpu().numpy()


def _matmul_rate(hidden: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product of the model's size."""
    left = torch.randn(_RATE_ROWS, hidden, dtype=dtype, device=device)
    right = torch.randn(hidden, 4 * hidden, dtype=dtype, device=device)
    seconds = measure({"matmul": lambda: float((left @ right)[0, 0])}, 5)["matmul"]
    return 2 * _RATE_ROWS * hidden * 4 * hidden / seconds


def sweep(
    circuit: Circuit,
    variants: Variants | Iterable[Variant | str],
    baseline: Data,
    patch: Data | None = None,
    *,
    client: Client | None = None,
    **settings: Any,
) -> SweepResult:
    """The metric of many variants of a model, evaluated together. Args and errors: see `Sweep` and `Sweep.run`."""
    return Sweep(circuit, variants, baseline, patch, **settings).run(client)
