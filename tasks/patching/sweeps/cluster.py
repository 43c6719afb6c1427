"""A sweep over the processes of a Dask cluster: each loads the circuit once, and takes some of the variants at a time.

What a worker has computed is kept where it was asked for, so a worker that dies costs the variants that it
was at: Dask gives these to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tapeout.ir import Circuit
from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.patching.sweeps.plan import Plan
from tapeout.tasks.patching.sweeps.result import SweepResult
from tapeout.tasks.patching.sweeps.variants import Cell

if TYPE_CHECKING:
    from distributed import Client

Numbers = Any
"""A numpy array."""

Keep = Callable[[Sequence[Cell], Numbers, Numbers], None]
"""Told the metric of some variants, float64 [CELLS, PROMPTS], and that of the baseline [PROMPTS]."""

_CIRCUIT = "circuit"
"""The name of the saved circuit in the folder."""

_TURNS = 4
"""Into how many portions a worker's share is cut: the last ones to finish are not waited for long."""

_one_at_a_time = Lock()
"""Held by the thread of a worker that computes: a sweep uses all of a process's processors itself."""


class Sweeps(Protocol):
    """A sweep, as far as it is needed here."""

    circuit: Circuit
    plan: Plan

    def arguments(self) -> dict[str, Any]:
        """What else it was made with."""

    def only(self, cells: Iterable[Cell]) -> Sweeps:
        """The same over some of its variants."""

    def run(self) -> SweepResult:
        """Computes them."""


@dataclass(frozen=True)
class Shipped:
    """What a worker needs to know of a sweep; compared by identity of the folder.

    Attributes:
        folder: the saved circuit, where every worker can read it.
        make: what makes a sweep of the circuit and
        arguments: what else it takes.
    """

    folder: str
    make: Callable[..., Sweeps]
    arguments: dict[str, Any]

    def __hash__(self) -> int:
        return hash(self.folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shipped) and other.folder == self.folder


def run_on(client: Client, sweep: Sweeps, keep: Keep, folder: str | Path | None = None) -> None:
    """Computes a sweep's variants on a cluster.

    Args:
        client: of the cluster, whose workers have the same version of tapeout.
        sweep: the sweep.
        keep: told each portion as it is finished.
        folder: where the circuit is written for the workers, in a folder of its own that is removed at the end; one
            that all of them can read. By default a temporary one of this machine, for workers that are here too.

    Raises:
        UnsupportedError: without a worker, or if a portion was lost with several workers, one after the other.
        TapeoutError: of the kind of what went wrong on a worker.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    if not callable(getattr(client, "nthreads", None)):
        raise UnsupportedError(
            f"client is a {type(client).__name__}", hint='give distributed.Client("tcp://host:8786"), or none'
        )
    workers = client.nthreads()
    if not workers:
        raise UnsupportedError("the cluster has no worker", hint="start some: LocalCluster(n_workers=2), dask worker")
    with TemporaryDirectory(dir=folder, prefix="tapeout-sweep-", ignore_cleanup_errors=True) as shared:
        shipped = Shipped(shared, type(sweep), sweep.arguments())
        sweep.circuit.save(Path(shared) / _CIRCUIT)
        portions = _portions(sweep, _TURNS * len(workers))
        futures = [client.submit(_evaluated, shipped, cells, pure=False) for cells in portions]
        try:
            for future in as_completed(futures):
                keep(*future.result())
        except KilledWorker as error:
            raise UnsupportedError(
                "a part of the sweep was lost with several workers, one after the other",
                facts=[str(error).splitlines()[0]],
                hint="they may be short of memory: give max_memory, or fewer workers a machine",
            ) from error
        finally:
            with suppress(OSError):
                client.cancel([future for future in futures if not future.done()])


def _portions(sweep: Sweeps, count: int) -> list[list[Cell]]:
    """The variants in about so many portions; neighbours in the order of the plan share most."""
    cells = [entry.cell for entry in sweep.plan.entries]
    size = max(1, -(-len(cells) // count))
    return [cells[at : at + size] for at in range(0, len(cells), size)]


def _evaluated(shipped: Shipped, cells: Sequence[Cell]) -> tuple[Sequence[Cell], Numbers, Numbers]:
    """On a worker: the metric of some variants, and of the baseline."""
    with _one_at_a_time:
        result = _sweep_of(shipped).only(cells).run()
    values = result.to_numpy()
    return cells, np.stack([values[cell] for cell in cells]), result.baseline_numbers


@lru_cache(maxsize=1)
def _sweep_of(shipped: Shipped) -> Sweeps:
    """On a worker: the sweep, planned; what it compiles stays with it."""
    return shipped.make(Circuit.load(Path(shipped.folder) / _CIRCUIT), **shipped.arguments)
