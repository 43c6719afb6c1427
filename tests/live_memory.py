"""What torch's CPU allocator holds at once during a call, as the profiler sees it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(call: Callable[[], Any]) -> int:
    """The most bytes that tensors made during the call took at any moment."""
    call()  # what is made once, at a first call, is no activation
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = call()
    events = [each for each in found.profiler.kineto_results.events() if each.name() == "[memory]"]  # type: ignore[union-attr]
    del kept
    return max(accumulate(each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())), default=0)
