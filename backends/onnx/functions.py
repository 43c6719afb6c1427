"""For every function its rule: an operator, or several, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.backends.onnx.kernels import KERNEL_RULES
from tapeout.backends.onnx.parts import FunctionRule, minus, plus, rotate_half, times
from tapeout.ir import GeneralFunction
from tapeout.ir.nodes.functions import Cast, GenIndex

Formula = Callable[[Lowering, Value], Value]


def _of(formula: Formula) -> FunctionRule:
    """A formula of the only child."""
    return lambda low, node: formula(low, low.value(node.children[0], low.dtype_of(node)))


def _wide(formula: Formula) -> FunctionRule:
    """As `_of`, in float32 where the graph is in a narrower dtype."""

    def rule(low: Lowering, node: GeneralFunction) -> Value:
        kind = low.dtype_of(node)
        wide = torch.float32 if kind.is_floating_point and kind.itemsize < 4 else kind
        return low.cast(formula(low, low.value(node.children[0], wide)), kind)

    return rule


def _operator(name: str) -> FunctionRule:
    """One operator of the only child, entry by entry."""
    return _of(lambda low, x: low.elementwise(name, x))


def _along_last(name: str) -> FunctionRule:
    """One operator that works on the last axis."""
    return _wide(lambda low, x: low.rowwise(name, x, axis=-1))


def _broadcasting(name: str) -> FunctionRule:
    def rule(low: Lowering, node: GeneralFunction) -> Value:
        return low.elementwise(name, *(low.value(child, low.dtype_of(node)) for child in node.children))

    return rule


def _reduction(name: str) -> FunctionRule:
    return _of(lambda low, x: low.reduce(name, x, [len(low.shape(x)) - 1]))


def _rsqrt(low: Lowering, x: Value) -> Value:
    return low.elementwise("Reciprocal", low.elementwise("Sqrt", x))


def _gelu(low: Lowering, x: Value) -> Value:
    if low.opset >= 20:
        return low.elementwise("Gelu", x)
    scaled = low.elementwise("Div", x, low.number(math.sqrt(2.0), low.kind(x)))
    normal = plus(low, low.elementwise("Erf", scaled), 1.0)
    return times(low, times(low, x, normal), 0.5)


def _gelu_new(low: Lowering, x: Value) -> Value:
    if low.opset >= 20 and low.kind(x) is not torch.float64:  # ONNX Runtime has no such kernel of doubles
        return low.elementwise("Gelu", x, approximate="tanh")
    cube = low.elementwise("Pow", x, low.number(3.0, low.kind(x)))
    inner = times(low, plus(low, x, times(low, cube, 0.044715)), math.sqrt(2.0 / math.pi))
    return times(low, times(low, x, 0.5), plus(low, low.elementwise("Tanh", inner), 1.0))


def _silu(low: Lowering, x: Value) -> Value:
    return times(low, x, low.elementwise("Sigmoid", x))


def _relu(low: Lowering, x: Value) -> Value:
    if low.kind(x).is_floating_point:
        return low.elementwise("Relu", x)
    return low.elementwise("Max", x, low.number(0, low.kind(x)))


def _step(low: Lowering, x: Value) -> Value:
    kind = low.kind(x)
    return low.cast(low.elementwise("Greater", x, low.number(0, kind), dtype=torch.bool), kind)


def _log_exp_p_1(low: Lowering, x: Value) -> Value:
    """max(x, 0) + log(1 + exp(-|x|)): it overflows nowhere."""
    small = low.elementwise("Exp", low.elementwise("Neg", low.elementwise("Abs", x)))
    return plus(low, low.elementwise("Relu", x), low.elementwise("Log", plus(low, small, 1.0)))


def _gaussian_pdf(low: Lowering, x: Value) -> Value:
    power = low.elementwise("Exp", times(low, times(low, x, x), -0.5))
    return times(low, power, 1 / math.sqrt(2 * math.pi))


def _gaussian_cdf(low: Lowering, x: Value) -> Value:
    return times(low, plus(low, low.elementwise("Erf", times(low, x, math.sqrt(0.5))), 1.0), 0.5)


def _logit(low: Lowering, x: Value) -> Value:
    return low.elementwise("Log", low.elementwise("Div", x, minus(low, 1.0, x)))


def _last_dim_size(low: Lowering, node: GeneralFunction) -> Value:
    size = node.children[0].shape[-1]
    return low.number(int(size), low.dtype_of(node), node.shape)  # type: ignore[arg-type]


def _gen_index(low: Lowering, node: GeneralFunction) -> Value:
    spec: Any = node.spec
    axis = spec.axis_of(node)
    x, index = low.value(node.children[0]), low.value(node.children[1], torch.int64)
    whole, rank = low.shape(x), len(low.shape(index))
    if spec.batch_x and spec.batch_index and rank:
        batch = range(rank)
        x = low.permute(x, [*batch, axis, *(i for i in range(rank, len(whole)) if i != axis)])
        where = low.reshape(index, (*low.shape(index), 1))
        return low.emit("GatherND", [x, where], node.shape, batch_dims=rank)
    shape = whole[:axis] + low.shape(index) + whole[axis + 1 :]
    picked = low.emit("Gather", [x, index], shape, axis=axis)
    if not spec.batch_index:
        return picked
    return low.permute(picked, [*range(axis, axis + rank), *range(axis), *range(axis + rank, len(shape))])


def _cast(low: Lowering, node: GeneralFunction) -> Value:
    """Floating values all have the dtype that was compiled for, whatever they are cast to."""
    return low.value(node.children[0], low.dtype_of(node))


FUNCTION_RULES: dict[object, FunctionRule] = {
    "sin": _operator("Sin"),
    "cos": _operator("Cos"),
    "sigmoid": _operator("Sigmoid"),
    "tanh": _operator("Tanh"),
    "rsqrt": _wide(_rsqrt),
    "gelu": _of(_gelu),
    "gelu_new": _of(_gelu_new),
    "silu": _of(_silu),
    "relu": _of(_relu),
    "step": _of(_step),
    "reciprocal": _operator("Reciprocal"),
    "log_exp_p_1": _of(_log_exp_p_1),
    "gaussian_pdf": _of(_gaussian_pdf),
    "gaussian_cdf": _of(_gaussian_cdf),
    "abs": _operator("Abs"),
    "exp": _operator("Exp"),
    "log": _operator("Log"),
    "logit": _of(_logit),
    "softmax": _along_last("Softmax"),
    "log_softmax": _along_last("LogSoftmax"),
    "rotate_half": _of(rotate_half),
    "min": _reduction("ReduceMin"),
    "max": _reduction("ReduceMax"),
    "last_dim_size": _last_dim_size,
    "pow": _broadcasting("Pow"),
    "minimum": _broadcasting("Min"),
    "maximum": _broadcasting("Max"),
    GenIndex: _gen_index,
    Cast: _cast,
    **KERNEL_RULES,
}
"""For every function, by name or by class, its rule."""

NOT_IN_FLOAT64 = {"gelu": "Erf", "gaussian_cdf": "Erf"}
"""Functions that cannot be computed in float64: the operator of which ONNX Runtime has no such kernel."""
