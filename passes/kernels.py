"""Recognise kernels: patterns of nodes for which backends have one fast operation become one node."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, Rearrange, RearrangeSpec, Scalar
from tapeout.ir.einsum import Axes
from tapeout.ir.functions import FUNCTIONS, Function
from tapeout.ir.kernels import Attention, LayerNorm, Linear, RMSNorm
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots, rewrite

_NEG_INF = -10_000.0


@register(
    "kernels", requires="inlined and simplified", ensures="norms, attention and products with weights are single nodes"
)
@dataclass(frozen=True)
class Kernels(ExecutionPass):
    """Layer norm, RMS norm, softmax attention and weight products with their bias become single nodes.

    Attention equals the pattern `softmax(mask * scores + (1 - mask) * -10000)` only for a mask of 0 and 1, which
    is checked, and scores far below 10000.
    """

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        for recognise in (_rms_norm, _layer_norm, _attention):
            roots = rewrite(roots, recognise, origins)
        return rewrite(rewrite(roots, _biased_linear, origins), _linear, origins)


def _function(spec: Function, *nodes: Circuit) -> GeneralFunction:
    return GeneralFunction(*nodes, spec=spec, name=None)


def _is_function(node: Circuit, name: str) -> bool:
    return isinstance(node, GeneralFunction) and node.spec is FUNCTIONS[name]


# -- einsums taken apart


@dataclass(frozen=True, slots=True)
class _Product:
    """An einsum as operands with their axes, and the product of its plain numbers."""

    operands: tuple[tuple[Circuit, Axes], ...]
    factor: float
    out: Axes


def _product(node: Circuit) -> _Product | None:
    if not isinstance(node, Einsum):
        return None
    factor = 1.0
    operands = []
    for child, axes in node.args:
        if isinstance(child, Scalar) and not axes:
            factor *= child.value
        else:
            operands.append((child, axes))
    return _Product(tuple(operands), factor, node.out_axes)


def _row_sum(node: Circuit, count: int) -> tuple[list[Circuit], float] | None:
    """Operands and factor if the node is `factor * sum over the last axis of the product of count operands`."""
    product = _product(node)
    if product is None or len(product.operands) != count:
        return None
    axes = product.operands[0][1]
    if not axes or product.out != axes[:-1] or any(other != axes for _, other in product.operands):
        return None
    return [child for child, _ in product.operands], product.factor


def _scaled(node: Circuit, feature: bool) -> tuple[Circuit, Circuit] | None:
    """x and s if the node is `x * s` with one s a row (all axes but the last) or, if `feature`, a last-axis entry."""
    product = _product(node)
    if product is None or len(product.operands) != 2 or product.factor != 1.0:
        return None
    (a, a_axes), (b, b_axes) = product.operands
    wanted = product.out[-1:] if feature else product.out[:-1]
    if a_axes == product.out and b_axes == wanted:
        return a, b
    return (b, a) if b_axes == product.out and a_axes == wanted and a_axes != b_axes else None


def _mean_square(node: Circuit) -> tuple[Circuit, float] | None:
    """x and eps if the node is `rsqrt(eps + mean over the last axis of x * x)`."""
    if not _is_function(node, "rsqrt"):
        return None
    total = node.children[0]
    if not isinstance(total, Add) or len(total.children) != 2:
        return None
    numbers = [child for child in total.children if isinstance(child, Scalar)]
    others = [child for child in total.children if not isinstance(child, Scalar)]
    if len(numbers) != 1 or len(others) != 1:
        return None
    found = _row_sum(others[0], 2)
    if found is None or found[0][0] is not found[0][1] or not _is_reciprocal_size(found[1], found[0][0]):
        return None
    return found[0][0], numbers[0].value


def _is_reciprocal_size(factor: float, x: Circuit) -> bool:
    size = x.shape[-1]
    return isinstance(size, int) and abs(factor * size - 1.0) < 1e-6


# -- norms


def _normalised(node: Circuit) -> tuple[Circuit, Circuit, float] | None:
    """x, scale and eps if the node is `x * rsqrt(eps + mean(x * x)) * scale`."""
    outer = _scaled(node, feature=True)
    inner = None if outer is None else _scaled(outer[0], feature=False)
    if outer is None or inner is None:
        return None
    found = _mean_square(inner[1])
    if found is None or found[0] is not inner[0]:
        return None
    return inner[0], outer[1], found[1]


def _rms_norm(node: Circuit) -> Circuit:
    found = _normalised(node)
    if found is None or _centred(found[0]) is not None:
        return node
    x, scale, eps = found
    return _function(RMSNorm(eps), x, scale)


def _layer_norm(node: Circuit) -> Circuit:
    if not isinstance(node, Add) or len(node.children) != 2:
        return node
    for scaled, bias in (node.children, node.children[::-1]):
        found = _normalised(scaled)
        x = None if found is None else _centred(found[0])
        if found is not None and x is not None and bias.shape == x.shape[-1:]:
            return _function(LayerNorm(found[2]), x, found[1], bias)
    return node


def _centred(node: Circuit) -> Circuit | None:
    """x if the node is `x - mean(x)` over the last axis."""
    if not isinstance(node, Add) or len(node.children) != 2:
        return None
    for x, mean in (node.children, node.children[::-1]):
        inner = _without_last_unsqueeze(mean)
        found = None if inner is None else _row_sum(inner, 1)
        if found is not None and found[0][0] is x and _is_reciprocal_size(-found[1], x):
            return x
    return None


def _without_last_unsqueeze(node: Circuit) -> Circuit | None:
    """The node before a last axis of size 1 was added to it; also where an einsum over a size-1 Scalar adds it."""
    if isinstance(node, Rearrange):
        spec = node.spec
        return node.node if spec.output_ints == (*spec.input_ints, ()) and node.shape[-1:] == (1,) else None
    return None


# -- attention


def _attention(node: Circuit) -> Circuit:
    mixed = _product(node)
    if mixed is None or len(mixed.operands) != 2 or mixed.factor != 1.0:
        return node
    for (probs, probs_axes), (v, v_axes) in (mixed.operands, mixed.operands[::-1]):
        if _is_function(probs, "softmax"):
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
    product = _product(raw)
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
    """Which keys may be attended to, if mask and bias say that by 0, 1 and -10,000."""
    if mask.shape != bias.shape:
        return None
    values, shifts = mask.evaluate(torch.float64), bias.evaluate(torch.float64)
    is_mask = bool(((values == 0) | (values == 1)).all()) and torch.equal(shifts, (1 - values) * _NEG_INF)
    return values.bool() if is_mask else None


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
    if len(query) > 1 or len(batch) + len(query) + 1 != len(scores.out):
        return None
    if sorted(scores.k_axes) != sorted([*batch, key, c]) or sorted(scores.q_axes) != sorted([*batch, *query, c]):
        return None
    out_batch, out_query, out_key = [rename[axis] for axis in batch], [rename[axis] for axis in query], rename[key]
    value_only = [axis for axis in v_axes if axis not in probs_axes]
    if len(value_only) != 1 or sorted(v_axes) != sorted([*out_batch, out_key, *value_only]):
        return None
    if sorted(out) != sorted([*out_batch, *out_query, *value_only]):
        return None
    one: list[int | None] = [None]
    q = _arranged(scores.q, scores.q_axes, [*batch, *(query or one), c])
    k = _arranged(scores.k, scores.k_axes, [*batch, key, c])
    values = _arranged(v, v_axes, [*out_batch, out_key, *value_only])
    causal, mask = _mask_of(scores.allowed, has_query=bool(query))
    node = _function(Attention(scores.scale, causal), q, k, values, *mask)
    return _arranged(node, [*out_batch, *(out_query or one), *value_only], list(out))


def _comes_from_weight(node: Circuit, axis: int) -> bool:
    """Whether an axis of the node is one of a weight's (heads), not of the data."""
    while True:
        if isinstance(node, Einsum):
            letter = node.out_axes[axis]
            owners = [(child, axes) for child, axes in node.args if letter in axes]
            if any(_is_weight(child) for child, _ in owners):
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


def _arranged(node: Circuit, have: list[int | None] | Axes, want: list[int | None] | Axes) -> Circuit:
    """The node's axes `have` in the order `want`; None stands for an axis of size 1 that comes or goes."""
    if list(have) == list(want):
        return node
    ints = {axis: i for i, axis in enumerate(axis for axis in have if axis is not None)}
    inputs = tuple(() if axis is None else (ints[axis],) for axis in have)
    outputs = tuple(() if axis is None else (ints[axis],) for axis in want)
    return Rearrange(node, RearrangeSpec(inputs, outputs, (None,) * len(ints)), name=None)


# -- products with weights


def _linear(node: Circuit) -> Circuit:
    found = _weight_product(node)
    if found is None:
        return node
    x, x_axes, weight, weight_axes, out = found
    return _function(Linear(x_axes, weight_axes, None, out), x, weight)


def _biased_linear(node: Circuit) -> Circuit:
    """The sum with each pair of a weight product and its bias made one."""
    if not isinstance(node, Add) or len(node.children) < 2:
        return node
    rest = list(node.children)
    for product in node.children:
        found = _weight_product(product)
        if found is None or product.shape != node.shape:
            continue
        x, x_axes, weight, weight_axes, out = found
        for bias in rest:
            placed = _bias_axes(bias, out, set(out) - set(x_axes))
            if placed is not None and bias is not product:
                spec = Linear(x_axes, weight_axes, placed[1], out)
                rest[rest.index(product)] = _function(spec, x, weight, placed[0])
                rest.remove(bias)
                break
    if len(rest) == len(node.children):
        return node
    return rest[0] if len(rest) == 1 else Add(*rest, name=None)


def _weight_product(node: Circuit) -> tuple[Circuit, Axes, Circuit, Axes, Axes] | None:
    """x and a constant weight with their axes if the node is a product of the two without common output axes."""
    product = _product(node)
    if product is None or len(product.operands) != 2 or product.factor != 1.0:
        return None
    (x, x_axes), (weight, weight_axes) = product.operands
    if not _is_weight(weight):
        (x, x_axes), (weight, weight_axes) = (weight, weight_axes), (x, x_axes)
    if not _is_weight(weight) or _is_weight(x):
        return None
    axes = [*x_axes, *weight_axes]
    shared = set(x_axes) & set(weight_axes)
    plain = all(len(set(each)) == len(each) for each in (x_axes, weight_axes, product.out))
    if not plain or not shared or shared & set(product.out) or set(axes) - shared != set(product.out):
        return None
    return x, x_axes, weight, weight_axes, product.out


def _is_weight(node: Circuit) -> bool:
    """A constant, seen through views: Index and Rearrange."""
    while node.kind in ("Index", "Rearrange"):
        node = node.children[0]
    return isinstance(node, Array) and node.value.is_floating_point()


def _bias_axes(node: Circuit, out: Axes, own: set[int]) -> tuple[Circuit, Axes] | None:
    """The bias without its axes of size 1, and its axes, if it is constant and has only axes of the weight's own."""
    if not _is_weight(node) or not isinstance(node, Array | Rearrange):
        return None
    aligned = out[len(out) - node.rank :]
    axes = tuple(axis for axis, size in zip(aligned, node.shape, strict=True) if size != 1)
    if not axes or not set(axes) <= own:
        return None
    if len(axes) == node.rank:
        return node, axes
    ones = [i for i, size in enumerate(node.shape) if size == 1]
    return node.squeeze(ones).rename(None), axes
