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


def _operand(low: Lowering, value: Value | float, beside: Value) -> Value:
    return low.number(value, low.kind(beside)) if isinstance(value, int | float) else value
