"""What formulas of several operators are made of."""

from __future__ import annotations

from collections.abc import Callable

from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.ir import GeneralFunction

FunctionRule = Callable[[Lowering, GeneralFunction], Value]


def plus(low: Lowering, x: Value, y: Value | float) -> Value:
    return low.elementwise("Add", x, _operand(low, y, x))


def minus(low: Lowering, x: float, y: Value) -> Value:
    return low.elementwise("Sub", _operand(low, x, y), y)


def times(low: Lowering, x: Value, y: Value | float) -> Value:
    return low.elementwise("Mul", x, _operand(low, y, x))


def rotate_half(low: Lowering, x: Value) -> Value:
    """The second half of the last axis, negated, before the first."""
    shape = low.shape(x)
    half = int(shape[-1]) // 2  # type: ignore[arg-type]
    axis = low.integers([len(shape) - 1])
    first, second = (
        low.emit("Slice", [x, low.integers([start]), low.integers([start + half]), axis], (*shape[:-1], half))
        for start in (0, half)
    )
    return low.emit("Concat", [low.elementwise("Neg", second), first], shape, axis=-1)


def _operand(low: Lowering, value: Value | float, beside: Value) -> Value:
    return low.number(value, low.kind(beside)) if isinstance(value, int | float) else value
