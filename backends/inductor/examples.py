"""Example inputs to trace with, and the one size of the batch that compilers of torch take for special."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapeout.ir import Symbol
from tapeout.ir.errors import UnsupportedError

LEAST_ROWS = 2
"""Batches of fewer rows are filled up: torch compiles a size of 1 apart, and with it a second graph."""

EXAMPLE_ROWS = 16
"""How many rows to trace with; the compiler takes them for typical."""


def examples(inputs: Sequence[Symbol], device: torch.device, rows: int) -> list[torch.Tensor]:
    """Zeros for the inputs: an index that is in every range.

    Raises:
        UnsupportedError: for an input with a symbolic size behind its first axis.
    """
    made = []
    for symbol in inputs:
        sizes = [size for size in symbol.shape[1:] if isinstance(size, int)]
        if len(sizes) != symbol.rank - 1:
            raise UnsupportedError(f"the input {symbol!r} has symbolic sizes", hint="bind all sizes but the batch")
        made.append(torch.zeros((rows, *sizes), dtype=symbol.torch_dtype, device=device))
    return made
