"""CUDA graphs: the launches of one call recorded once for each bucket of batch sizes, and replayed.

A replay costs one launch. A batch is filled up to the next bucket, its values are copied into the tensors that the
graph was captured with, and the results are copied out, so that the next call does not overwrite them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tapeout.backends.common.rows import filled_up, joined, split_rows
from tapeout.ir.errors import UnsupportedError

_WARM_UPS = 3

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    given: tuple[torch.Tensor, ...]
    results: Any


class CudaGraphs:
    """Something callable on CUDA whose calls are captured and replayed.

    Attributes:
        executable: what is captured: an fx or inductor executable.
        buckets: the batch sizes that graphs are captured for, ascending; larger batches are computed in parts.
        captured: the graphs so far.
    """

    def __init__(self, executable: Any, buckets: Sequence[int]) -> None:
        if not torch.cuda.is_available():
            raise UnsupportedError(
                "CUDA graphs need a CUDA device, and there is none", hint="call the executable itself"
            )
        if not buckets or min(buckets) < 1:
            raise UnsupportedError(f"the buckets {list(buckets)} are no batch sizes", hint="give positive numbers")
        self.executable = executable
        self.buckets = tuple(sorted(set(buckets)))
        self.captured: dict[int, Captured] = {}

    @property
    def source(self) -> str:
        return str(self.executable.source)

    def __call__(self, *values: torch.Tensor) -> Any:
        """The results, in tensors of their own.

        Raises:
            UnsupportedError: for values that are not on a CUDA device.
        """
        if not values:
            return self.executable()
        if not all(value.is_cuda for value in values):
            raise UnsupportedError("CUDA graphs take values on a CUDA device", hint="move them: value.to('cuda')")
        parts = [self._part(part) for part in split_rows(values, self.buckets[-1])]
        return parts[0] if len(parts) == 1 else joined(parts)

    def to(self, device: torch.device) -> CudaGraphs:
        """The same on another device, captured anew."""
        return CudaGraphs(self.executable.to(device), self.buckets)

    def _part(self, values: Sequence[torch.Tensor]) -> Any:
        rows = values[0].shape[0]
        bucket = bucket_of(rows, self.buckets)
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(values[0].device):
            filled = filled_up(values, bucket)
            if bucket not in self.captured:
                self.captured[bucket] = capture(self.executable, filled)
            held = self.captured[bucket]
            for own, value in zip(held.given, filled, strict=True):
                own.copy_(value)
            held.graph.replay()
            return cloned(held.results, rows)


def capture(run: Run, values: Sequence[torch.Tensor]) -> Captured:
    """Records one call: after some calls on a stream of their own, in which libraries choose and allocate."""
    given = tuple(value.clone() for value in values)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*given)
    return Captured(graph, given, results)


def bucket_of(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that takes so many rows; the largest if none does."""
    return buckets[min(bisect_left(buckets, rows), len(buckets) - 1)]


def cloned(results: Any, rows: int) -> Any:
    """Copies of the first rows of the results."""
    if isinstance(results, torch.Tensor):
        return results[:rows].clone()
    return tuple(each[:rows].clone() for each in results)
