"""Hides what torch itself warns of at every call into its compilers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = (
    r"`torch\.jit\..*` is deprecated",
    r"The TorchScript type system doesn't support instance-level",
    r"`torch\._prims_common\.check` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Inside, warnings that tell torch's own authors what to change are dropped; others stay."""
    with warnings.catch_warnings():
        for message in _KNOWN:
            warnings.filterwarnings("ignore", message=message)
        yield
