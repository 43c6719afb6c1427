"""Example inputs to trace with, and the sizes that compilers of torch take for special."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tapeout.ir import Symbol
from tapeout.ir.sizes import BATCH, SymbolicSize

LEAST_SIZE = 2
"""Torch takes sizes of 0 and 1 for constants: each compiles a graph of its own."""

LEAST_ROWS = LEAST_SIZE
"""Batches of fewer rows are filled up, so that one graph serves them all."""

EXAMPLE_ROWS = 16
"""How many rows to trace with; the compiler takes them for typical."""


def examples(inputs: Sequence[Symbol], device: torch.device, rows: int) -> list[torch.Tensor] | None:
    """Zeros for the inputs: an index that is in every range.

    None if a size besides the batch is open: such sizes may depend on one another (keys are those of the past and
    of the window), so that only a call's own go together.
    """
    made = []
    for symbol in inputs:
        sizes = [rows if size == BATCH else size for size in symbol.shape]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) < len(sizes):
            return None
        made.append(torch.zeros(known, dtype=symbol.torch_dtype, device=device))
    return made


def open_axes(inputs: Sequence[Symbol]) -> Iterator[tuple[int, int]]:
    """The axes, each as (input, axis), whose size is known only at the call."""
    for number, symbol in enumerate(inputs):
        yield from ((number, axis) for axis, size in enumerate(symbol.shape) if isinstance(size, SymbolicSize))
