"""How far values may be from the float64 reference: one table for every backend and every test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 5e-2,
}
"""By the dtype that is computed in, relative to the largest value (absolute below 1)."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far values are from those that they should be.

    Attributes:
        absolute: the largest difference; no number if a value is none where it should be one.
        largest: the largest value that should have come out, by amount.
    """

    absolute: float
    largest: float

    @property
    def relative(self) -> float:
        """The largest difference, as a share of the largest value."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / self.largest if self.largest else float("inf")

    def within(self, tolerance: float) -> bool:
        """Whether that is close enough; what is no number is not."""
        return self.absolute <= tolerance * max(1.0, self.largest)

    @staticmethod
    def of(found: torch.Tensor, expected: torch.Tensor) -> Deviation:
        """Of values [...] from those expected [...]. Equal infinities do not differ; what is no number always does."""
        if not expected.numel():
            return Deviation(0.0, 0.0)
        found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
        difference = (found - expected).abs().masked_fill(found == expected, 0.0)
        finite = expected[expected.isfinite()].abs()
        return Deviation(float(difference.max()), float(finite.max()) if finite.numel() else 0.0)


def number(value: float) -> float | str:
    """What JSON can hold: the number, or what it is instead of a number as text."""
    return value if math.isfinite(value) else str(value)
