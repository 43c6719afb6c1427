"""Where functions are well behaved, and between which numbers values lie."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Circuit

DOMAINS: dict[str, tuple[float, float]] = {
    "rsqrt": (0.2, 50.0),
    "reciprocal": (0.2, 50.0),
    "log": (0.2, 50.0),
    "logit": (0.05, 0.95),
    "exp": (-20.0, 4.0),
}
"""Where a function is well behaved, if not everywhere."""


@dataclass(frozen=True)
class Ranged:
    """A node, and numbers between which all its values are."""

    node: Circuit
    low: float
    high: float

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))


def image_of(function: str, operand: Ranged) -> tuple[float, float]:
    """Numbers between which the function's values are."""
    low, high, largest = operand.low, operand.high, operand.largest
    known: dict[str, tuple[float, float]] = {
        "rsqrt": (high**-0.5 if high > 0 else 0.0, low**-0.5 if low > 0 else 0.0),
        "reciprocal": (1 / high if high > 0 else 0.0, 1 / low if low > 0 else 0.0),
        "exp": (0.0, 2.718281828459046 ** min(high, 20)),
        "log": (-2.0, 4.0),
        "logit": (-3.0, 3.0),
        "min": (low, high),
        "max": (low, high),
        "rotate_half": (-largest, largest),
        "last_dim_size": (0.0, float(operand.node.shape[-1])) if operand.node.shape else (0.0, 0.0),  # type: ignore[arg-type]
        "log_softmax": (-2 * largest - 10, 0.0),
        "softmax": (0.0, 1.0),
        "relu": (0.0, max(0.0, high)),
        "abs": (0.0, largest),
        "log_exp_p_1": (0.0, largest + 1),
    }
    return known.get(function, (-max(largest, 1.0), max(largest, 1.0)))
