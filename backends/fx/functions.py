"""For every function its rule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from tapeout.backends.fx.graph import Args, Lowering, Rule
from tapeout.backends.fx.kernels import KERNEL_RULES
from tapeout.ir import GeneralFunction
from tapeout.ir.nodes.functions import Cast, GenIndex


def _call(function: Callable[..., Any], **kwargs: Any) -> Rule:
    return lambda low, node, args: low.call(function, *args, **kwargs)


def _last_dim_size(low: Lowering, node: GeneralFunction, _: Args) -> fx.Node:
    size = node.children[0].shape[-1]
    return low.filled(float(int(size)), node.shape)  # type: ignore[arg-type]


def _step(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.method("to", low.call(operator.gt, args[0], 0), low.weights.dtype)


def _gaussian_pdf(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    square = low.call(operator.mul, args[0], args[0])
    return low.call(operator.mul, low.call(torch.exp, low.call(operator.mul, square, -0.5)), 0.3989422804014327)


def _rotate_half(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    half = int(node.shape[-1]) // 2  # type: ignore[arg-type]
    first = low.call(torch.narrow, args[0], -1, 0, half)
    second = low.call(torch.narrow, args[0], -1, half, half)
    return low.call(torch.cat, [low.call(operator.neg, second), first], -1)


def _log_exp_p_1(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.call(torch.logaddexp, args[0], low.call(torch.zeros_like, args[0]))


def _gen_index(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    x, index = node.children
    axis = spec.axis_of(node)
    if spec.batch_x and spec.batch_index and index.rank:
        return _gather(low, node, args, axis)
    if axis == 0 and x.rank == 2 and index.rank and isinstance(low.weights.value(x), torch.Tensor):
        return low.call(F.embedding, args[1], args[0])
    flat = args[1] if index.rank == 1 else low.call(torch.reshape, args[1], (-1,))
    picked = low.call(torch.index_select, args[0], axis, flat)
    if index.rank != 1:
        whole = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
        picked = low.call(torch.reshape, picked, tuple(low.shape(whole)))
    if spec.batch_index and axis and index.rank:
        order = [*range(axis, axis + index.rank), *range(axis), *range(axis + index.rank, x.rank - 1 + index.rank)]
        picked = low.permute(picked, order)
    return picked


def _gather(low: Lowering, node: GeneralFunction, args: Args, axis: int) -> fx.Node:
    x, index = node.children
    where = args[1]
    for _ in range(x.rank - index.rank):
        where = low.call(torch.unsqueeze, where, -1)
    sizes = [1 if i == axis else -1 if i < index.rank else size for i, size in enumerate(x.shape)]
    where = low.method("expand", where, *(size if isinstance(size, int) else low.size(size) for size in sizes))
    return low.call(torch.squeeze, low.call(torch.gather, args[0], axis, where), axis)


def _cast(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    """Floating values have the dtypes that the lowering gives them, whatever they are cast to."""
    before, after = node.children[0].torch_dtype, node.torch_dtype
    if after is None or after is before:
        return args[0]
    if after.is_floating_point:
        return args[0] if before is None or before.is_floating_point else low.method("to", args[0], low.weights.dtype)
    return low.method("to", args[0], after)


FUNCTION_RULES: dict[object, Rule] = {
    "sin": _call(torch.sin),
    "cos": _call(torch.cos),
    "sigmoid": _call(torch.sigmoid),
    "tanh": _call(torch.tanh),
    "rsqrt": _call(torch.rsqrt),
    "gelu": _call(F.gelu),
    "gelu_new": _call(F.gelu, approximate="tanh"),
    "silu": _call(F.silu),
    "relu": _call(torch.relu),
    "step": _step,
    "reciprocal": _call(torch.reciprocal),
    "log_exp_p_1": _log_exp_p_1,
    "gaussian_pdf": _gaussian_pdf,
    "gaussian_cdf": _call(torch.special.ndtr),
    "abs": _call(torch.abs),
    "exp": _call(torch.exp),
    "log": _call(torch.log),
    "logit": _call(torch.logit),
    "softmax": _call(torch.softmax, dim=-1),
    "log_softmax": _call(torch.log_softmax, dim=-1),
    "rotate_half": _rotate_half,
    "min": _call(torch.amin, dim=-1),
    "max": _call(torch.amax, dim=-1),
    "last_dim_size": _last_dim_size,
    "pow": _call(torch.pow),
    "minimum": _call(torch.minimum),
    "maximum": _call(torch.maximum),
    GenIndex: _gen_index,
    Cast: _cast,
    **KERNEL_RULES,
}
"""For every function, by name or by class, its rule."""
