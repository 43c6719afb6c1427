"""How far values may be from the float64 reference: one table for every backend."""

from __future__ import annotations

import torch

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 5e-2,
}
"""By the dtype that is computed in, relative to the largest value (absolute below 1)."""


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Fails unless the shapes are equal, both are floating or neither, and the values as close as that dtype allows."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype.is_floating_point == expected.dtype.is_floating_point, (found.dtype, expected.dtype)
    if not expected.numel():
        return
    found, expected = found.detach().double(), expected.detach().double()
    error, scale = float((found - expected).abs().max()), max(1.0, float(expected.abs().max()))
    assert error <= TOLERANCES[dtype] * scale, f"off by {error:.3g}, of values up to {scale:.3g}"
