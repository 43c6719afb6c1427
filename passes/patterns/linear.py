"""Products with weights, with their bias."""

from __future__ import annotations

from collections.abc import Set

from tapeout.ir import Add, Array, Circuit, Rearrange
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.nodes.kernels import Linear
from tapeout.passes.patterns.parts import as_product, function, is_weight


def linear(node: Circuit) -> Circuit:
    found = _weight_product(node)
    if found is None:
        return node
    x, x_axes, weight, weight_axes, out = found
    return function(Linear(x_axes, weight_axes, None, out), x, weight)


def biased_linear(node: Circuit, old: Circuit, elsewhere: Set[Circuit]) -> Circuit:
    """The sum with each pair of a weight product and its bias made one, unless something else reads the product.

    Args:
        node: the sum.
        old: the sum before its children were rewritten.
        elsewhere: what several nodes read.
    """
    if not isinstance(node, Add) or len(node.children) < 2:
        return node
    rest = list(node.children)
    for product, was in zip(node.children, old.children, strict=True):
        found = _weight_product(product)
        if found is None or was in elsewhere or product.shape != node.shape:
            continue
        x, x_axes, weight, weight_axes, out = found
        for bias in rest:
            placed = _bias_axes(bias, out, set(out) - set(x_axes))
            if placed is not None and bias is not product:
                spec = Linear(x_axes, weight_axes, placed[1], out)
                rest[rest.index(product)] = function(spec, x, weight, placed[0])
                rest.remove(bias)
                break
    if len(rest) == len(node.children):
        return node
    return rest[0] if len(rest) == 1 else Add(*rest, name=None)


def _weight_product(node: Circuit) -> tuple[Circuit, Axes, Circuit, Axes, Axes] | None:
    """x and a constant weight with their axes if the node is a product of the two without common output axes."""
    product = as_product(node)
    if product is None or len(product.operands) != 2 or product.factor != 1.0:
        return None
    (x, x_axes), (weight, weight_axes) = product.operands
    if not is_weight(weight):
        (x, x_axes), (weight, weight_axes) = (weight, weight_axes), (x, x_axes)
    if not is_weight(weight) or is_weight(x):
        return None
    axes = [*x_axes, *weight_axes]
    shared = set(x_axes) & set(weight_axes)
    plain = all(len(set(each)) == len(each) for each in (x_axes, weight_axes, product.out))
    if not plain or not shared or shared & set(product.out) or set(axes) - shared != set(product.out):
        return None
    return x, x_axes, weight, weight_axes, product.out


def _bias_axes(node: Circuit, out: Axes, own: set[int]) -> tuple[Circuit, Axes] | None:
    """The bias without its axes of size 1, and its axes, if it is constant and has only axes of the weight's own."""
    if not is_weight(node) or not isinstance(node, Array | Rearrange):
        return None
    aligned = out[len(out) - node.rank :]
    axes = tuple(axis for axis, size in zip(aligned, node.shape, strict=True) if size != 1)
    if not axes or not set(axes) <= own:
        return None
    if len(axes) == node.rank:
        return node, axes
    ones = [i for i, size in enumerate(node.shape) if size == 1]
    return node.squeeze(ones).rename(None), axes
