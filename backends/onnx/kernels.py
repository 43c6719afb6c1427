"""For every kernel its rule: ONNX's operator for it, or the operators that it is made of."""

from __future__ import annotations

import math
from typing import Any

import torch

from tapeout.backends.common.weights import Matrices
from tapeout.backends.onnx.attention import attention
from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.backends.onnx.parts import FunctionRule, plus, rotate_half, times
from tapeout.ir import GeneralFunction
from tapeout.ir.nodes.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary
from tapeout.ir.sizes import multiply


def _linear(low: Lowering, node: GeneralFunction) -> Value:
    """A matrix product with bias of a list of rows: the only form in which ONNX has one operator for it."""
    spec: Any = node.spec
    x, weight, *bias = node.children
    parts = Matrices.of(low.weights, node)
    value = low.permute(low.value(x), [spec.x_axes.index(axis) for axis in parts.rows + parts.shared])
    rows = low.shape(value)[: len(parts.rows)]
    count = multiply(rows)
    lies_as_columns = parts.matrix.stride(0) >= parts.matrix.stride(1)
    matrix = low.constant(parts.matrix if lies_as_columns else parts.matrix.T, weight)
    operands = [low.reshape(value, (count, parts.inner)), matrix]
    if parts.shift is not None:
        operands.append(low.constant(parts.shift, bias[0]))
    out = low.emit("Gemm", operands, (count, math.prod(parts.widths)), transB=int(lies_as_columns))
    out = low.reshape(out, (*rows, *parts.widths))
    return low.permute(out, [(parts.rows + parts.columns).index(axis) for axis in spec.out_axes])


def _layer_norm(low: Lowering, node: GeneralFunction) -> Value:
    spec: Any = node.spec
    x, scale, bias = map(low.value, node.children)
    if low.opset >= 17 and low.kind(x) is not torch.float64:  # of which it keeps epsilon in float32
        return low.rowwise("LayerNormalization", x, scale, bias, axis=-1, epsilon=spec.eps)
    last = [len(low.shape(x)) - 1]
    centred = low.elementwise("Sub", x, low.reduce("ReduceMean", x, last, keep=True))
    return plus(low, times(low, _normalised(low, centred, spec.eps), scale), bias)


def _rms_norm(low: Lowering, node: GeneralFunction) -> Value:
    spec: Any = node.spec
    x, scale = map(low.value, node.children)
    if low.opset >= 23 and low.kind(x) is not torch.float64:  # which ONNX Runtime computes in float32
        return low.rowwise("RMSNormalization", x, scale, axis=-1, epsilon=spec.eps)
    return times(low, _normalised(low, x, spec.eps), scale)


def _normalised(low: Lowering, x: Value, eps: float) -> Value:
    """The value divided by the root of the mean of its squares.

    ONNX Runtime recognises this form and makes one operator of it, which in float64 keeps float32's digits: there it
    is written otherwise.
    """
    two = low.number(2.0, low.kind(x))
    square = times(low, x, x) if low.kind(x) is torch.float64 else low.elementwise("Pow", x, two)
    mean = low.reduce("ReduceMean", square, [len(low.shape(x)) - 1], keep=True)
    return low.elementwise("Div", x, low.elementwise("Sqrt", plus(low, mean, eps)))


def _rotary(low: Lowering, node: GeneralFunction) -> Value:
    """Written out: ONNX's operator takes tables of one half, with an axis of positions."""
    x, cos, sin = map(low.value, node.children)
    return plus(low, times(low, x, cos), times(low, rotate_half(low, x), sin))


KERNEL_RULES: dict[object, FunctionRule] = {
    Linear: _linear,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    Rotary: _rotary,
    Attention: attention,
}
"""By the kernel's class."""
