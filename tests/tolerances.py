"""Assertions on values, by the library's table of tolerances."""

from __future__ import annotations

import torch

from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Fails unless the shapes are equal, both are floating or neither, and the values as close as that dtype allows."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype.is_floating_point == expected.dtype.is_floating_point, (found.dtype, expected.dtype)
    deviation = Deviation.of(found, expected)
    assert deviation.within(TOLERANCES[dtype]), f"off by {deviation.absolute:.3g}, of up to {deviation.largest:.3g}"
