"""A compiled circuit over a dataset that does not fit the device, or is not there: one chunk moves as another runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import cuda

from tapeout.backends.common.devices import free_memory
from tapeout.backends.common.rows import split_rows
from tapeout.compiler.cost import Cost
from tapeout.ir.errors import UnsupportedError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_AHEAD = 2
"""Chunks whose values may be on the device before the first of them is finished."""

_OF_FREE = 0.8
"""The part of the free memory that values may take: what the allocator rounds up comes on top."""


class Runs(Protocol):
    """A compiled circuit, as far as it is needed here."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch sizes that were expected, ascending."""

    def run(self, given: Sequence[torch.Tensor]) -> Any:
        """The results of one call."""

    def cost(self, batch: int = 1) -> Cost:
        """What a call costs."""

    def rows_within(self, memory: int, rows: int) -> int:
        """How many rows fit."""


def mapped(compiled: Runs, values: Sequence[torch.Tensor], chunk: int | None, progress: Progress | None) -> Any:
    """The results of all rows, on the CPU.

    To and from a GPU rows are copied through pinned memory, without waiting: one chunk moves while another is
    computed.

    Args:
        compiled: the compiled circuit.
        values: of its inputs, checked, on the CPU.
        chunk: rows that are computed at once; None for the largest batch that was expected, else as many as fit the
            device's free memory; on the CPU all, or as many as fit `max_memory`.
        progress: told how many rows are done.

    Raises:
        UnsupportedError: without inputs, for a chunk that is no number of rows, or if not even one row fits.
    """
    if not values:
        raise UnsupportedError("a circuit without inputs has no rows to go through", hint="call it")
    if chunk is not None and chunk < 1:
        raise UnsupportedError(f"chunks of {chunk} rows", hint="give a positive number, or None for as many as fit")
    rows = len(values[0])
    parts = split_rows(values, chunk or _fitting(compiled, rows))
    moves = _Moves(compiled.device)
    out: list[torch.Tensor] = []
    is_single, done = True, 0
    for given in moves.there(parts):
        results = compiled.run(given)
        is_single = isinstance(results, torch.Tensor)
        each = [results] if is_single else list(results)
        out = out or [moves.empty((rows, *result.shape[1:]), result.dtype) for result in each]
        for whole, result in zip(out, each, strict=True):
            whole[done : done + len(result)].copy_(result, non_blocking=True)
        done += len(given[0])
        if progress is not None:
            progress("rows", done, rows)
    moves.wait()
    return out[0] if is_single else tuple(out)


def _fitting(compiled: Runs, rows: int) -> int:
    if compiled.batch:
        return compiled.batch[-1]
    free = free_memory(compiled.device)
    if free is None:
        return rows
    return compiled.rows_within(int(_OF_FREE * free) + compiled.cost(1).weight_bytes, rows)  # weights are there


class _Moves:
    """Copies to the device and back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_gpu = device.type == "cuda"
        self._stream = cuda.Stream(device) if self.is_gpu else None
        self._under_way: deque[Any] = deque()

    def there(self, parts: Sequence[Sequence[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
        """The parts on the device, one after the other."""
        for part in parts:
            if not self.is_gpu:
                yield [value.to(self.device) for value in part]
                continue
            with self._copying():
                moved = [value.pin_memory().to(self.device, non_blocking=True) for value in part]
            now = cuda.current_stream(self.device)
            now.wait_stream(self._stream)  # type: ignore[arg-type]
            for value in moved:
                value.record_stream(now)
            yield moved
            self._under_way.append(now.record_event())
            if len(self._under_way) > _AHEAD:
                self._under_way.popleft().synchronize()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the CPU that a device can write to by itself."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.is_gpu)

    def wait(self) -> None:
        """Until everything has arrived."""
        if self.is_gpu:
            cuda.current_stream(self.device).synchronize()

    def _copying(self) -> AbstractContextManager[Any]:
        return cuda.stream(self._stream) if self.is_gpu else nullcontext()
