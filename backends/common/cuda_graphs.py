"""CUDA graphs: the launches of one call recorded once for each bucket of batch sizes, and replayed.

A replay costs one launch. A batch is filled up to the next bucket, its values are copied into the tensors that the
graph was captured with, and the results are copied out, so that the next call does not overwrite them. A call without
inputs has one size; it is captured when it is made a second time, since most are made once.

The graphs of one object share a pool of memory: only one replay is under way at a time, and what it leaves has been
copied out before the next one begins. The first call captures all buckets, the largest first, so that the smaller ones
find their memory there. Graphs and pool are freed with the object.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import cuda

from tapeout.backends.common.rows import filled_up, joined, split_rows
from tapeout.ir.errors import UnsupportedError

CAPTURES = "cuda"
"""The type of devices that capture."""

_WARM_UPS = 3

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph with the tensors that it reads and writes."""

    graph: cuda.CUDAGraph
    given: tuple[torch.Tensor, ...]
    results: Any


class CudaGraphs:
    """Something callable on CUDA whose calls are captured and replayed; from any thread and stream.

    Attributes:
        executable: what is captured: an fx or inductor executable.
        buckets: the batch sizes that graphs are captured for, ascending; larger batches are computed in parts.
        device: where it runs.
        captured: the graphs so far.

    Raises:
        UnsupportedError: for buckets that are no batch sizes, or a device that captures nothing.
    """

    is_capturable = False  # a second time

    def __init__(self, executable: Any, buckets: Sequence[int], device: torch.device) -> None:
        if device.type != CAPTURES or not cuda.is_available():
            raise UnsupportedError(
                f"CUDA graphs need a CUDA device, and {device} is none", hint="call the executable itself"
            )
        if not buckets or min(buckets) < 1:
            raise UnsupportedError(f"the buckets {list(buckets)} are no batch sizes", hint="give positive numbers")
        self.executable = executable
        self.buckets = tuple(sorted(set(buckets)))
        self.device = device
        self.captured: dict[int, Captured] = {}
        self._is_repeated = False
        self._pool: Any = None
        self._copied_out: cuda.Event | None = None
        self._one_at_a_time = Lock()

    @property
    def source(self) -> str:
        return str(self.executable.source)

    def __call__(self, *values: torch.Tensor) -> Any:
        """The results, in tensors of their own.

        Raises:
            UnsupportedError: for values that are not on a CUDA device, or what cannot be captured.
        """
        if not all(value.device.type == self.device.type for value in values):
            raise UnsupportedError("CUDA graphs take values on a CUDA device", hint="move them: value.to('cuda')")
        if not values:
            self._is_repeated, first = True, not self._is_repeated
            return self.executable() if first else self._replayed((), self.buckets[0], None)
        parts = [self._part(part) for part in split_rows(values, self.buckets[-1])]
        return parts[0] if len(parts) == 1 else joined(parts)

    def to(self, device: torch.device) -> CudaGraphs:
        """The same on another device, captured anew."""
        return CudaGraphs(self.executable.to(device), self.buckets, device)

    def _part(self, values: Sequence[torch.Tensor]) -> Any:
        rows = values[0].shape[0]
        bucket = self.buckets[min(bisect_left(self.buckets, rows), len(self.buckets) - 1)]
        return self._replayed(filled_up(values, bucket), bucket, rows)

    def _replayed(self, values: Sequence[torch.Tensor], bucket: int, rows: int | None) -> Any:
        """The results of one replay, the first `rows` of them; None for all."""
        with self._one_at_a_time, torch.inference_mode(False), torch.no_grad(), cuda.device(self.device):
            if bucket not in self.captured:
                self._capture_all(values)
            held = self.captured[bucket]
            if self._copied_out is not None:  # by the call before, perhaps on another stream
                cuda.current_stream().wait_event(self._copied_out)
            for own, value in zip(held.given, values, strict=True):
                own.copy_(value)
            held.graph.replay()
            results = cloned(held.results, rows)
            self._copied_out = cuda.current_stream().record_event()
            return results

    def _capture_all(self, values: Sequence[torch.Tensor]) -> None:
        self._pool = self._pool or cuda.graph_pool_handle()
        for bucket in reversed(self.buckets):
            if bucket not in self.captured:
                self.captured[bucket] = self._capture([value[:bucket] for value in filled_up(values, bucket)])

    def _capture(self, values: Sequence[torch.Tensor]) -> Captured:
        """Records one call: after some calls on a stream of their own, in which libraries choose and allocate."""
        given = tuple(value.clone() for value in values)
        stream = _side_stream(self.device)
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self.executable(*given)
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, pool=self._pool):
                results = self.executable(*given)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnsupportedError(
                f"the call cannot be captured in a CUDA graph: {str(error).strip().splitlines()[0]}",
                hint="compile without `batch`: nothing is captured then",
            ) from error
        return Captured(graph, given, results)


@cache
def _side_stream(device: torch.device) -> cuda.Stream:
    """The stream of all warm-ups: libraries keep a workspace of tens of megabytes for each stream that they see."""
    return cuda.Stream(device)


def cloned(results: Any, rows: int | None) -> Any:
    """Copies of the first rows of the results; of all for None."""
    if isinstance(results, torch.Tensor):
        return results[:rows].clone() if rows is not None else results.clone()
    return tuple(cloned(each, rows) for each in results)
