"""For every kernel its rule: the operation that torch has for it."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from tapeout.backends.fx.graph import Args, Lowering, Rule
from tapeout.ir import Circuit, GeneralFunction
from tapeout.ir.einsum import Axes
from tapeout.ir.errors import LoweringError
from tapeout.ir.kernels import Attention, LayerNorm, Linear, RMSNorm
from tapeout.ir.sizes import Size


def _linear(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    x, weight, *bias = node.children
    shared = [axis for axis in spec.x_axes if axis in spec.weight_axes]
    rows = [axis for axis in spec.x_axes if axis not in shared]
    columns = [axis for axis in spec.out_axes if axis not in spec.x_axes]
    sizes: dict[int, Size] = dict(zip(spec.x_axes, x.shape, strict=True))
    sizes |= zip(spec.weight_axes, weight.shape, strict=True)
    shared = _memory_order(low, weight, spec.weight_axes, shared)
    value = low.permute(args[0], [spec.x_axes.index(axis) for axis in rows + shared])
    inner = [int(sizes[axis]) for axis in shared]  # type: ignore[arg-type]
    if len(shared) > 1:
        value = low.call(torch.flatten, value, len(rows))
    matrix = _tensor(low, weight).permute([spec.weight_axes.index(axis) for axis in columns + shared])
    width = [int(sizes[axis]) for axis in columns]  # type: ignore[arg-type]
    flat = low.weights.pack(matrix, [prod(width), prod(inner)])
    shift = None
    if bias and spec.bias_axes is not None:
        own = [axis for axis in columns if axis in spec.bias_axes]
        shift = _tensor(low, bias[0]).permute([spec.bias_axes.index(axis) for axis in own])
        shift = shift.reshape([size if axis in own else 1 for axis, size in zip(columns, width, strict=True)])
        shift = low.weights.pack(shift.expand(width), [prod(width)])
    out = low.call(F.linear, value, low.constant(flat, weight), None if shift is None else low.constant(shift, bias[0]))
    if len(columns) != 1:
        out = low.call(torch.unflatten, out, -1, tuple(width)) if columns else low.call(torch.squeeze, out, -1)
    return low.permute(out, [(rows + columns).index(axis) for axis in spec.out_axes])


def _memory_order(low: Lowering, weight: Circuit, axes: Axes, shared: list[int]) -> list[int]:
    """The contracted axes in the order in which they lie in the weight's memory: then merging them is a view."""
    strides = dict(zip(axes, _tensor(low, weight).stride(), strict=True))
    return sorted(shared, key=lambda axis: -strides[axis])


def _tensor(low: Lowering, node: Circuit) -> torch.Tensor:
    value = low.weights.copied(node)
    if value is None:
        raise LoweringError(f"the weight {node!r} is no constant", hint="kernels take constants as weights")
    return value


def _layer_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    size = node.shape[-1]
    return low.call(F.layer_norm, args[0], (size,), args[1], args[2], node.spec.eps)  # type: ignore[attr-defined]


def _rms_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.call(F.rms_norm, args[0], (node.shape[-1],), args[1], node.spec.eps)  # type: ignore[attr-defined]


def _attention(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    q, k, v, *mask = args
    allowed = low.call(operator.gt, mask[0], 0) if mask else None
    return low.call(F.scaled_dot_product_attention, q, k, v, attn_mask=allowed, is_causal=spec.causal, scale=spec.scale)


KERNEL_RULES: dict[object, Rule] = {
    Linear: _linear,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    Attention: _attention,
}
"""By the kernel's class."""
