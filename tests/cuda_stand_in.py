"""What `tapeout.backends.common.cuda_graphs` uses of torch.cuda, on the CPU: graphs that replay what they recorded.

A capture records operations as they are dispatched. A replay does them again on the tensors of then: it sees only what
was copied into these, and writes its results over those of the replay before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[torch.Tensor]]


class _Recorder(TorchDispatchMode):
    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.steps.append((func, args, kwargs or {}, results))
        return out


class CUDAGraph:
    """A graph, and how often it was replayed."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.replays = 0
        self.pool: Any = None

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, held in self.steps:
            found = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, torch.Tensor)]
            for own, value in zip(held, found, strict=True):
                if own.data_ptr() != value.data_ptr():  # no view of what was there already
                    own.copy_(value)


class Event:
    """A point of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


class Stream:
    """A queue that is always empty; it remembers what it was told to wait for."""

    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)

    def record_event(self) -> Event:
        return Event(self)


class StandIn:
    """In the place of `torch.cuda`."""

    CUDAGraph, Stream, Event = CUDAGraph, Stream, Event

    def __init__(self) -> None:
        self.now = Stream()
        self.graphs: list[CUDAGraph] = []
        self.pools = 0
        self.fails_in_capture = False

    def is_available(self) -> bool:
        return True

    def current_stream(self, device: Any = None) -> Stream:
        return self.now

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: CUDAGraph, pool: Any = None) -> Iterator[None]:
        graph.pool = pool
        self.graphs.append(graph)
        with _Recorder(graph.steps):
            yield
            if self.fails_in_capture:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
