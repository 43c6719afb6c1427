"""Attention: ONNX's operator, in which queries may share keys and values, or products and a softmax."""

from __future__ import annotations

from typing import Any

import torch

from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.backends.onnx.parts import times
from tapeout.ir import GeneralFunction
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.nodes.kernels import Attention
from tapeout.ir.sizes import multiply

_SWAPPED = (0, 2, 1, 3)
"""From positions within heads to heads within positions, and back."""


def attention(low: Lowering, node: GeneralFunction) -> Value:
    spec = node.spec
    if not isinstance(spec, Attention):
        raise LoweringError(f"{node!r} is no attention", hint="report it")
    if low.options.attention_op and low.opset < 23:
        raise UnsupportedError(
            f"opset {low.opset} cannot express {node!r}: it has no Attention",
            hint="use opset 23 or newer, or attention_op=False",
        )
    q, k, v = (_with_heads(low, low.value(child)) for child in node.children[:3])
    native = low.options.attention_op and low.dtype is not torch.float64  # of which it keeps float32's digits
    how = _by_operator if native else _by_products
    return low.reshape(how(low, spec, q, k, v, _allowed(low, node)), node.shape)


def _with_heads(low: Lowering, value: Value) -> Value:
    """The value with one batch axis and one axis of heads before the last two."""
    *batch, length, width = low.shape(value)
    heads = batch.pop() if batch and isinstance(batch[-1], int) else 1
    return low.reshape(value, (multiply(batch), heads, length, width))


def _allowed(low: Lowering, node: GeneralFunction) -> Value | None:
    """The mask, as booleans."""
    if len(node.children) < 4:
        return None
    constant = low.weights.value(node.children[3])
    if constant is not None:
        return low.booleans(constant > 0, f"{low.name_of(node)} mask")
    mask = low.value(node.children[3])
    return low.elementwise("Greater", mask, low.number(0.0, low.kind(mask)), dtype=torch.bool)


def _by_operator(low: Lowering, spec: Attention, q: Value, k: Value, v: Value, allowed: Value | None) -> Value:
    """ONNX's operator; with heads side by side where the projections leave them so, else without a transpose."""
    how: dict[str, Any] = {"scale": spec.scale} | ({"is_causal": 1} if spec.causal else {})
    mask = [] if allowed is None else [allowed]
    batch, heads, length, _ = low.shape(q)
    width = low.shape(v)[-1]
    beside = [_beside(low, value) for value in (q, k, v)]
    flat = [value for value in beside if value is not None]
    if len(flat) < 3:
        return low.emit("Attention", [q, k, v, *mask], (batch, heads, length, width), **how)
    numbers: dict[str, Any] = {"q_num_heads": _number(heads), "kv_num_heads": _number(low.shape(k)[1])}
    whole = (batch, length, multiply([heads, width]))
    out = low.emit("Attention", [*flat, *mask], whole, **how, **numbers)
    return low.permute(low.reshape(out, (batch, length, heads, width)), _SWAPPED)


def _beside(low: Lowering, value: Value) -> Value | None:
    """[batch, positions, heads * width], if that is how it was before a transpose; else None."""
    batch, heads, length, width = low.shape(value)
    is_swapped = low.source(value, "Transpose") is not None and tuple(low.transposition(value)) == _SWAPPED
    if not is_swapped and heads != 1 and length != 1:
        return None
    return low.reshape(low.permute(value, _SWAPPED), (batch, length, multiply([heads, width])))


def _by_products(low: Lowering, spec: Attention, q: Value, k: Value, v: Value, allowed: Value | None) -> Value:
    batch, heads, queries, width = low.shape(q)
    shared, keys = low.shape(k)[1:3]
    each = _number(heads) // _number(shared)
    if each > 1:
        q = low.reshape(q, (batch, shared, each, queries, width))
        k, v = (low.reshape(value, (batch, shared, 1, *low.shape(value)[2:])) for value in (k, v))
    rank = len(low.shape(q))
    turned = low.permute(k, [*range(rank - 2), rank - 1, rank - 2])
    shape = (*low.shape(q)[:-1], keys)
    scores = times(low, low.emit("MatMul", [q, turned], shape), spec.scale)
    if spec.causal:
        allowed = low.booleans(torch.ones(_number(queries), _number(keys), dtype=torch.bool).tril(), "causal mask")
    if allowed is not None:
        scores = low.emit("Where", [allowed, scores, low.number(-torch.inf, low.kind(q))], shape, low.kind(q))
    probs = low.emit("Softmax", [scores], shape, axis=-1)
    out = low.emit("MatMul", [probs, v], (*low.shape(q)[:-1], low.shape(v)[-1]))
    return low.reshape(out, (batch, heads, queries, low.shape(v)[-1]))


def _number(size: object) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(f"attention over a symbolic size {size}", hint="bind all sizes but the batch")
    return size
