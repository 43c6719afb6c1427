"""`assert_backends_agree`: for tests of circuits that are compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tapeout.compiler.checks.bisect import REFERENCE, bisect
from tapeout.compiler.checks.compare import Compared, Comparison, compare
from tapeout.ir import Circuit
from tapeout.ir.errors import TapeoutError


def assert_backends_agree(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor] | None = None,
    backends: Sequence[str] | None = None,
    dtype: str | torch.dtype = torch.float32,
    tolerance: float | None = None,
) -> None:
    """Fails unless every backend gives the values of the float64 reference.

    Args:
        circuit: a circuit of one row.
        inputs: values for its inputs by name, with a batch axis first; see `compile`.
        backends: see `compile`; None for all that can run the circuit here.
        dtype: what they compute in.
        tolerance: how far values may be, relative to the largest (absolute below 1); None for the dtype's own.

    Raises:
        AssertionError: with the errors of each backend, and the first node at which one parts from the reference.
        TapeoutError: see `compile` and `Compiled`.
    """
    __tracebackhide__ = True
    given = dict(inputs or {})
    result = compare(circuit, given, backends, [dtype], repeat=0, sizes=False)
    wrong = [way for way in result.ways if _is_wrong(way, tolerance, asked_for=backends is not None)]
    if not wrong and any(way.deviation is not None for way in result.ways):
        return
    raise AssertionError("\n".join(_message(circuit, given, result, wrong, dtype)))


def _is_wrong(way: Compared, tolerance: float | None, asked_for: bool) -> bool:
    if way.deviation is None:
        return way.failed or asked_for
    allowed = way.tolerance if tolerance is None else tolerance
    return allowed is None or not way.deviation.within(allowed)


def _message(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    result: Comparison,
    wrong: Sequence[Compared],
    dtype: str | torch.dtype,
) -> list[str]:
    names = ", ".join(way.name for way in wrong)
    lines = [f"not the values of the reference on {circuit!r}: {names}" if wrong else f"no backend can run {circuit!r}"]
    for way in result.ways:
        off = way.deviation
        what = way.note if off is None else f"off by {off.absolute:.3g}, of values up to {off.largest:.3g}"
        lines.append(f"  {way.name} in {way.dtype}: {what}{' (wrong)' if way in wrong else ''}")
    for way in wrong:
        if way.deviation is not None:
            lines.append(f"  {_parting(circuit, inputs, way.name, dtype)}")
    return lines


def _parting(circuit: Circuit, inputs: Mapping[str, torch.Tensor], backend: str, dtype: str | torch.dtype) -> str:
    try:
        found = bisect(circuit, inputs, (backend, REFERENCE), dtype)
    except TapeoutError as error:
        return f"{backend} could not be bisected: {error.message}"
    if found is None:
        return f"{backend} agrees at every node that is computed by itself: what it fuses is wrong"
    return f"{backend} parts from the reference at {found}"
