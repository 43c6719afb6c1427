"""Layer norm and RMS norm."""

from __future__ import annotations

from tapeout.ir import Add, Circuit, Rearrange, Scalar
from tapeout.ir.nodes.kernels import LayerNorm, RMSNorm
from tapeout.passes.patterns.parts import as_product, function, is_function, row_sum


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


def rms_norm(node: Circuit) -> Circuit:
    found = _normalised(node)
    if found is None or _centred(found[0]) is not None:
        return node
    x, scale, eps = found
    return function(RMSNorm(eps), x, scale)


def layer_norm(node: Circuit) -> Circuit:
    if not isinstance(node, Add) or len(node.children) != 2:
        return node
    for scaled, bias in (node.children, node.children[::-1]):
        found = _normalised(scaled)
        x = None if found is None else _centred(found[0])
        if found is not None and x is not None and bias.shape == x.shape[-1:]:
            return function(LayerNorm(found[2]), x, found[1], bias)
    return node


def _scaled(node: Circuit, feature: bool) -> tuple[Circuit, Circuit] | None:
    """x and s if the node is `x * s` with one s a row (all axes but the last) or, if `feature`, a last-axis entry."""
    product = as_product(node)
    if product is None or len(product.operands) != 2 or product.factor != 1.0:
        return None
    (a, a_axes), (b, b_axes) = product.operands
    wanted = product.out[-1:] if feature else product.out[:-1]
    if a_axes == product.out and b_axes == wanted:
        return a, b
    return (b, a) if b_axes == product.out and a_axes == wanted and a_axes != b_axes else None


def _mean_square(node: Circuit) -> tuple[Circuit, float] | None:
    """x and eps if the node is `rsqrt(eps + mean over the last axis of x * x)`."""
    if not is_function(node, "rsqrt"):
        return None
    total = node.children[0]
    if not isinstance(total, Add) or len(total.children) != 2:
        return None
    numbers = [child for child in total.children if isinstance(child, Scalar)]
    others = [child for child in total.children if not isinstance(child, Scalar)]
    if len(numbers) != 1 or len(others) != 1:
        return None
    found = row_sum(others[0], 2)
    if found is None or found[0][0] is not found[0][1] or not _is_reciprocal_size(found[1], found[0][0]):
        return None
    return found[0][0], numbers[0].value


def _is_reciprocal_size(factor: float, x: Circuit) -> bool:
    size = x.shape[-1]
    return isinstance(size, int) and abs(factor * size - 1.0) < 1e-6


def _centred(node: Circuit) -> Circuit | None:
    """x if the node is `x - mean(x)` over the last axis."""
    if not isinstance(node, Add) or len(node.children) != 2:
        return None
    for x, mean in (node.children, node.children[::-1]):
        inner = _without_last_unsqueeze(mean)
        found = None if inner is None else row_sum(inner, 1)
        if found is not None and found[0][0] is x and _is_reciprocal_size(-found[1], x):
            return x
    return None


def _without_last_unsqueeze(node: Circuit) -> Circuit | None:
    """The node before a last axis of size 1 was added to it; also where an einsum over a size-1 Scalar adds it."""
    if isinstance(node, Rearrange):
        spec = node.spec
        return node.node if spec.output_ints == (*spec.input_ints, ()) and node.shape[-1:] == (1,) else None
    return None
