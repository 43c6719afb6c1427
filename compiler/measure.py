"""Time and memory of calls, measured side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MACHINE, _CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_RESET_PEAK = "5"


def measure(calls: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """The median seconds of each, one call of each in turn; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            finished()
            start = time.perf_counter()
            call()
            finished()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def finished() -> None:
    """Waits for what a GPU is still at."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Growth:
    """By how much resident memory grew.

    Attributes:
        peak: bytes, at the highest; None where the system keeps no account (it does on Linux).
    """

    peak: int | None = None


@contextmanager
def memory_growth() -> Iterator[Growth]:
    """Measures what is done inside: how far the process's resident memory peaked above where it was."""
    growth = Growth()
    before = _resident_from_now()
    yield growth
    if before is not None:
        growth.peak = max(0, _read("VmHWM") - before)


def available_memory() -> int | None:
    """Bytes that can still be had on this machine, or in this container, without swapping; None where nobody says."""
    try:
        free = [_field(_MACHINE, "MemAvailable")]
    except OSError:
        return None
    try:
        limit, used = ((_CONTAINER / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        free.append(int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        pass
    return max(0, min(free))


def _resident_from_now() -> int | None:
    """Resident bytes at this moment, from which on the peak is counted; None where that cannot be had."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
        return _read("VmRSS")
    except OSError:
        return None


def _read(field: str) -> int:
    return _field(_STATUS, field)


def _field(file: Path, name: str) -> int:
    """A field of one of Linux's accounts of memory, in bytes."""
    lines = file.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
