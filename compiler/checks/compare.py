"""`compare`: a circuit on every backend, beside the float64 reference."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tapeout.compiler.backends import BACKENDS
from tapeout.compiler.checks.peers import Peer
from tapeout.compiler.checks.reference import Progress, in_dtype, reference_values, silent
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation, number
from tapeout.compiler.compile import DTYPES, compile
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.measure import measure, memory_growth
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import DataError, LoweringError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Compared:
    """One way of computing the values.

    Attributes:
        name: the backend, or the peer.
        dtype: what it computes in.
        deviation: how far its values are from the reference; None if there are none.
        tolerance: how far they may be, see `TOLERANCES`; None for a peer, which is not judged.
        seconds: median time of a call; None if it was not measured.
        memory: bytes by which resident memory peaked while it was made and called first; None if that is not known.
        artefact: bytes of what `Compiled.save` writes; None if nothing was or can be saved.
        note: why something is missing.
        failed: whether something went wrong that should not have.
    """

    name: str
    dtype: str
    deviation: Deviation | None = None
    tolerance: float | None = None
    seconds: float | None = None
    memory: int | None = None
    artefact: int | None = None
    note: str = ""
    failed: bool = False

    @property
    def within(self) -> bool:
        """Whether nothing is wrong: a backend that refuses the circuit is none that computes it wrongly."""
        if self.failed:
            return False
        return self.deviation is None or self.tolerance is None or self.deviation.within(self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """JSON's types; an error that is no number is a string."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "max_abs_error": None if self.deviation is None else number(self.deviation.absolute),
            "max_rel_error": None if self.deviation is None else number(self.deviation.relative),
            "tolerance": self.tolerance,
            "within": self.within,
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "artefact_bytes": self.artefact,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table.

    Attributes:
        ways: one row a backend and dtype, then the peers.
        reference: the values in float64 [N, ...].
    """

    ways: tuple[Compared, ...]
    reference: torch.Tensor = field(repr=False)

    @property
    def within(self) -> bool:
        """Whether something was compared, and every way is within its tolerance."""
        judged = [way for way in self.ways if way.deviation is not None and way.tolerance is not None]
        return bool(judged) and all(way.within for way in self.ways)

    def way(self, name: str, dtype: str | torch.dtype = torch.float32) -> Compared:
        """The row of that name and dtype.

        Raises:
            DataError: if there is none.
        """
        wanted = (name, dtype_name(as_dtype(dtype)))
        for way in self.ways:
            if (way.name, way.dtype) == wanted:
                return way
        known = ", ".join(f"{way.name} {way.dtype}" for way in self.ways)
        raise DataError(f"{' in '.join(wanted)} was not compared", hint=f"there are {known}")

    def to_json(self) -> dict[str, Any]:
        """JSON's types."""
        return {"within": self.within, "ways": [way.to_json() for way in self.ways]}


def compare(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str | torch.dtype] = ("float32",),
    *,
    peers: Mapping[str, Callable[[], Peer]] | None = None,
    repeat: int = 5,
    sizes: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """A circuit's values on every backend and in every dtype, beside those of the reference in float64.

    Args:
        circuit: a circuit of one row.
        inputs: values for its inputs by name, with a batch axis first; see `compile`.
        backends: see `compile`; None for all.
        dtypes: see `compile`.
        peers: what else to compare with, by name: each makes a call that gives the values in float32.
        repeat: how many times each is timed, in turn; 0 for no timing.
        sizes: whether artefacts are written, to a temporary folder, to see how large they are.
        progress: see `Progress`.

    Raises:
        UnsupportedError: for a backend or dtype that is not there.
        TapeoutError: see `compile` and `Compiled`. A backend that refuses or fails is a row of the table.
    """
    names = list(BACKENDS) if backends is None else list(dict.fromkeys(backends))
    _check(names)
    kinds = [_dtype(each) for each in dtypes]
    notify = progress or silent
    (reference,) = reference_values([circuit], inputs, progress)
    jobs = [(name, kind) for kind in kinds for name in names]
    ways: list[Compared] = []
    calls: dict[str, Peer] = {}
    for done, (name, dtype) in enumerate(jobs):
        notify(f"{name} in {dtype_name(dtype)}", done, len(jobs))
        way, call = _backend(circuit, inputs, name, dtype, reference, sizes)
        ways.append(way)
        if call is not None:
            calls[_key(way)] = call
    for name, make in (peers or {}).items():
        notify(name, 0, 0)
        way, call = _made(Compared(name, dtype_name(torch.float32)), make, reference)
        ways.append(way)
        if call is not None:
            calls[_key(way)] = call
    if repeat:
        notify("measuring", 0, 0)
        seconds = measure(calls, repeat)
        ways = [replace(way, seconds=seconds.get(_key(way))) for way in ways]
    return Comparison(tuple(ways), reference)


def _check(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        raise UnsupportedError(
            f"there is no backend {', '.join(unknown)}" if unknown else "no backend was named",
            hint=f"there are {', '.join(BACKENDS)}",
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    kind = as_dtype(dtype)
    if kind not in DTYPES:
        raise UnsupportedError(f"cannot compare in {kind}", hint="use float32, float64 or bfloat16")
    return kind


def _key(way: Compared) -> str:
    return f"{way.name} {way.dtype}"


def _backend(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    name: str,
    dtype: torch.dtype,
    reference: torch.Tensor,
    sizes: bool,
) -> tuple[Compared, Peer | None]:
    """The row of a backend, not yet timed, and what to time."""
    made: list[Compiled] = []

    def make() -> Peer:
        compiled = compile(circuit, name, list(inputs), dtype)
        given = in_dtype(compiled.inputs, inputs)
        made.append(compiled)
        return lambda: compiled(**given)

    way, call = _made(Compared(name, dtype_name(dtype), tolerance=TOLERANCES[dtype]), make, reference)
    if call is None or not sizes:
        return way, call
    return replace(way, artefact=_saved_bytes(made[0])), call


def _made(way: Compared, make: Callable[[], Peer], reference: torch.Tensor) -> tuple[Compared, Peer | None]:
    """What making a way and calling it once gives; the call itself, unless that went wrong."""
    gc.collect()
    try:
        with memory_growth() as growth:
            call = make()
            values = call()
    except UnsupportedError as error:
        return replace(way, note=error.message), None
    except LoweringError as error:
        return replace(way, note=error.message, failed=True), None
    if values.shape != reference.shape:
        note = f"shape {list(values.shape)}, not {list(reference.shape)}"
        return replace(way, note=note, failed=True), None
    return replace(way, deviation=Deviation.of(values, reference), memory=growth.peak), call


def _saved_bytes(compiled: Compiled) -> int | None:
    """How large an artefact is; None for one that cannot be saved."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "artefact"
        try:
            compiled.save(target)
        except (UnsupportedError, LoweringError):
            return None
        return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
