"""For every kernel its rule: the operation that torch has for it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from tapeout.backends.common.weights import Matrices
from tapeout.backends.fx.graph import Args, Lowering, Rule
from tapeout.ir import GeneralFunction
from tapeout.ir.nodes.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary


def _linear(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    _, weight, *bias = node.children
    parts = Matrices.of(low.narrow_weights, node)
    value = low.permute(args[0], [spec.x_axes.index(axis) for axis in parts.rows + parts.shared])
    if len(parts.shared) > 1:
        value = low.call(torch.flatten, value, len(parts.rows))
    shift = None if parts.shift is None else low.constant(parts.shift, bias[0])
    out = low.call(F.linear, value, low.constant(parts.matrix, weight), shift)
    if not parts.columns:
        out = low.call(torch.squeeze, out, -1)
    elif len(parts.columns) > 1:
        out = low.call(torch.unflatten, out, -1, tuple(parts.widths))
    return low.permute(out, [(parts.rows + parts.columns).index(axis) for axis in spec.out_axes])


def _layer_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    size = node.shape[-1]
    return low.call(F.layer_norm, args[0], (size,), args[1], args[2], node.spec.eps)  # type: ignore[attr-defined]


def _rms_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.call(F.rms_norm, args[0], (node.shape[-1],), args[1], node.spec.eps)  # type: ignore[attr-defined]


def _rotary(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    """Halves change places by one roll; the sign that one of them gets is given to the sines."""
    x, cos, sin = args
    half = int(node.shape[-1]) // 2  # type: ignore[arg-type]
    signed = low.once(("signed", sin), lambda: low.call(operator.mul, sin, low.signs(half)))
    straight = low.call(operator.mul, x, cos)
    return low.call(torch.addcmul, straight, low.call(torch.roll, x, half, -1), signed)


def _attention(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    q, k, v, *mask = args
    allowed = low.call(operator.gt, mask[0], 0) if mask else None
    grouped = {"enable_gqa": True} if spec.group(node) > 1 else {}
    return low.call(
        F.scaled_dot_product_attention, q, k, v, attn_mask=allowed, is_causal=spec.causal, scale=spec.scale, **grouped
    )


KERNEL_RULES: dict[object, Rule] = {
    Linear: _linear,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    Rotary: _rotary,
    Attention: _attention,
}
"""By the kernel's class."""
