"""Rules of sums."""

from __future__ import annotations

from tapeout.ir import Add, Circuit, Scalar
from tapeout.passes.rules.common import is_float


def add_of_nothing(node: Add) -> Circuit | None:
    """`Add() --> 0`"""
    return None if node.children else Scalar(0.0)


def add_of_one(node: Add) -> Circuit | None:
    """`Add(x) --> x`"""
    return node.children[0] if len(node.children) == 1 else None


def add_of_scalars(node: Add) -> Circuit | None:
    """`2 + 3 --> 5`"""
    scalars = [child for child in node.children if isinstance(child, Scalar)]
    if len(scalars) < len(node.children):
        return None
    return Scalar(sum(scalar.value for scalar in scalars), node.shape)


def add_zero(node: Add) -> Circuit | None:
    """`x + 0 --> x`, where 0 does not broadcast x"""
    rest = [child for child in node.children if not (isinstance(child, Scalar) and child.is_zero())]
    if not rest or len(rest) == len(node.children) or not is_float(node):
        return None
    total = Add(*rest, name=None)
    return total if total.shape == node.shape else None


def add_scalars_last(node: Add) -> Circuit | None:
    """`2 + x + 3[n] --> x + 5`"""
    scalars = [child for child in node.children if isinstance(child, Scalar)]
    if not scalars or not is_float(node):
        return None
    rest = [child for child in node.children if not isinstance(child, Scalar)]
    broadcast = Add(*rest, name=None).shape != node.shape
    shape = Add(*scalars, name=None).shape if broadcast else ()
    total = Add(*rest, Scalar(sum(scalar.value for scalar in scalars), shape), name=None)
    return None if total is node else total


ADD_RULES = (add_of_nothing, add_of_one, add_of_scalars, add_zero, add_scalars_last)
