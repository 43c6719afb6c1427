"""Softmax attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tapeout.ir import Add, Array, Circuit, Einsum, Rearrange, RearrangeSpec, Scalar
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.nodes.kernels import Attention
from tapeout.ir.nodes.rearrange import arranged
from tapeout.ir.sizes import Size
from tapeout.passes.patterns.parts import as_product, function, is_function, is_weight

_NEG_INF = -10_000.0


def attention(node: Circuit) -> Circuit:
    mixed = as_product(node)
    if mixed is None or len(mixed.operands) != 2 or mixed.factor != 1.0:
        return node
    for (probs, probs_axes), (v, v_axes) in (mixed.operands, mixed.operands[::-1]):
        if is_function(probs, "softmax"):
            scores = _scores(probs.children[0])
            found = None if scores is None else _as_attention(scores, probs_axes, v, v_axes, mixed.out)
            if found is not None:
                return found
    return node


@dataclass(frozen=True, slots=True)
class _Scores:
    """`scale * einsum(q, k)` over `out` (keys last) where `allowed`, nothing elsewhere."""

    q: Circuit
    q_axes: Axes
    k: Circuit
    k_axes: Axes
    scale: float
    out: Axes
    allowed: torch.Tensor | None


def _scores(node: Circuit) -> _Scores | None:
    raw, biases = node, list[Circuit]()
    if isinstance(node, Add) and len(node.children) == 2:
        biases = [child for child in node.children if _is_small_constant(child)]
        rest = [child for child in node.children if not _is_small_constant(child)]
        if len(biases) != 1 or len(rest) != 1:
            return None
        raw = rest[0]
    product = as_product(raw)
    if product is None or not product.out:
        return None
    masks = [(child, axes) for child, axes in product.operands if _is_small_constant(child)]
    both = [(child, axes) for child, axes in product.operands if not _is_small_constant(child)]
    if len(both) != 2 or len(masks) != len(biases) or raw.shape != node.shape:
        return None
    (q, q_axes), (k, k_axes) = both
    if product.out[-1] not in k_axes:
        (q, q_axes), (k, k_axes) = (k, k_axes), (q, q_axes)
    if product.out[-1] not in k_axes or product.out[-1] in q_axes:
        return None
    allowed = None
    if masks and product.factor <= 0:  # kernels may scale what they have masked, with minus infinity
        return None
    if masks:
        mask, axes = masks[0]
        if axes != product.out[-len(axes) :] or not axes:
            return None
        allowed = _allowed(mask, biases[0])
        if allowed is None:
            return None
    return _Scores(q, q_axes, k, k_axes, product.factor, product.out, allowed)


def _is_small_constant(node: Circuit) -> bool:
    """Whether the node is made of constants alone and no larger than masks are (no leading batch)."""
    return node.rank <= 2 and not isinstance(node, Scalar) and _is_constant(node)


def _is_constant(node: Circuit) -> bool:
    if node.free_symbols:
        return False
    stack, seen = [node], {node}
    while stack:
        each = stack.pop()
        if isinstance(each, Array) and (each.rank > 2 or not each.value.is_floating_point()):
            return False
        for child in each.children:
            if child not in seen:
                seen.add(child)
                stack.append(child)
                if len(seen) > 16:
                    return False
    return True


def _allowed(mask: Circuit, bias: Circuit) -> torch.Tensor | None:
    """Which keys may be attended to, if mask and bias say that by 0, 1 and -10,000, and every query may to some."""
    if mask.shape != bias.shape:
        return None
    values, shifts = mask.evaluate(torch.float64), bias.evaluate(torch.float64)
    is_mask = bool(((values == 0) | (values == 1)).all()) and torch.equal(shifts, (1 - values) * _NEG_INF)
    return values.bool() if is_mask and bool((values > 0).any(-1).all()) else None


def _as_attention(scores: _Scores, probs_axes: Axes, v: Circuit, v_axes: Axes, out: Axes) -> Circuit | None:
    """The attention node in the axes of the product of probabilities and values, if the axes are those of attention."""
    rename = dict(zip(scores.out, probs_axes, strict=True))
    shared = (set(scores.q_axes) & set(scores.k_axes)) - set(scores.out)
    if len(shared) != 1 or len(set(probs_axes)) != len(probs_axes):
        return None
    (c,) = shared
    key = scores.out[-1]
    batch = [axis for axis in scores.out if axis in scores.q_axes and axis in scores.k_axes]
    # Rows of the data first, heads after them: the layout that attention kernels read and write without a copy.
    batch.sort(key=lambda axis: _comes_from_weight(scores.q, scores.q_axes.index(axis)))
    query = [axis for axis in scores.out if axis in scores.q_axes and axis not in scores.k_axes]
    heads = _sharing(scores, query)
    query = [axis for axis in query if axis not in heads]
    if len(query) > 1 or len(batch) + len(heads) + len(query) + 1 != len(scores.out):
        return None
    if sorted(scores.k_axes) != sorted([*batch, key, c]) or sorted(scores.q_axes) != sorted(
        [*batch, *heads, *query, c]
    ):
        return None
    out_batch, out_heads, out_query, out_key = (
        [rename[axis] for axis in axes] for axes in (batch, heads, query, [key])
    )
    value_only = [axis for axis in v_axes if axis not in probs_axes]
    if len(value_only) != 1 or sorted(v_axes) != sorted([*out_batch, *out_key, *value_only]):
        return None
    if sorted(out) != sorted([*out_batch, *out_heads, *out_query, *value_only]):
        return None
    one: list[int | None] = [None]
    alone = one if heads or _is_one_head(scores, batch, key, c) else []  # kernels want an axis of heads
    q = arranged(scores.q, scores.q_axes, [*batch, *(heads or alone), *(query or one), c])
    k = arranged(scores.k, scores.k_axes, [*batch, *alone, key, c])
    values = arranged(v, v_axes, [*out_batch, *alone, *out_key, *value_only])
    causal, mask = _mask_of(scores.allowed, has_query=bool(query))
    k, values = _once_a_group(k, values)
    node = function(Attention(scores.scale, causal), q, k, values, *mask)
    return arranged(node, [*out_batch, *(out_heads or alone), *(out_query or one), *value_only], list(out))


def _sharing(scores: _Scores, query: Sequence[int]) -> list[int]:
    """Of the axes that the queries alone have, that of heads: all of them read the same keys (Shazeer 2019)."""
    if len(query) == 1 and (scores.allowed is None or scores.allowed.ndim < 2):
        return [axis for axis in query if _comes_from_weight(scores.q, scores.q_axes.index(axis))]
    return [axis for axis in query if axis != scores.out[-2]] if len(query) == 2 and scores.out[-2] in query else []


def _is_one_head(scores: _Scores, batch: Sequence[int], key: int, c: int) -> bool:
    """Whether the axes that queries and keys share are rows of the data alone."""
    _, repeats = _unrepeated(arranged(scores.k, scores.k_axes, [*batch, key, c]))
    of_weights = any(_comes_from_weight(scores.q, scores.q_axes.index(axis)) for axis in batch)
    return bool(batch) and repeats == 1 and not of_weights


def _once_a_group(k: Circuit, v: Circuit) -> tuple[Circuit, Circuit]:
    """Keys and values before they were repeated for the heads that share them, if both were alike."""
    (keys, factor), (values, other) = _unrepeated(k), _unrepeated(v)
    return (keys, values) if factor == other else (k, v)


def _unrepeated(node: Circuit) -> tuple[Circuit, Size]:
    """The node without the repeats behind each of its heads (the axis before the last two), and how many these are."""
    if not isinstance(node, Rearrange) or node.rank < 3:
        return node, 1
    spec, sizes = node.spec, node.spec.sizes(node.node.shape)
    read = {number for group in spec.input_ints for number in group}
    new = [number for group in spec.output_ints for number in group if number not in read]
    heads = spec.output_ints[-3]
    if len(new) != 1 or len(heads) < 2 or heads[-1] != new[0]:
        return node, 1
    once = (*spec.output_ints[:-3], heads[:-1], *spec.output_ints[-2:])
    small = RearrangeSpec(spec.input_ints, once, spec.int_sizes).numbered()
    return node.node if small.is_identity() else Rearrange(node.node, small, name=None), sizes[new[0]]


def _comes_from_weight(node: Circuit, axis: int) -> bool:
    """Whether an axis of the node is one of a weight's (heads), not of the data."""
    while True:
        if isinstance(node, Einsum):
            letter = node.out_axes[axis]
            owners = [(child, axes) for child, axes in node.args if letter in axes]
            if any(is_weight(child) for child, _ in owners):
                return True
            node, axes = owners[0]
            axis = axes.index(letter)
        elif isinstance(node, Rearrange) and len(node.spec.output_ints[axis]) == 1:
            group = node.spec.output_ints[axis]
            if group not in node.spec.input_ints:
                return False
            axis, node = node.spec.input_ints.index(group), node.node
        elif isinstance(node, Add) and any(child.shape == node.shape for child in node.children):
            node = next(child for child in node.children if child.shape == node.shape)
        else:
            return False


def _mask_of(allowed: torch.Tensor | None, has_query: bool) -> tuple[bool, list[Circuit]]:
    """Whether the mask is the causal one, and the mask as a node if it is another one that forbids something."""
    if allowed is None or bool(allowed.all()):
        return False, []
    if has_query and allowed.ndim == 2 and torch.equal(allowed, torch.ones_like(allowed).tril()):
        return True, []
    grid = allowed if allowed.ndim == 2 else allowed[None]
    return False, [Array(grid.to(torch.float32))]
