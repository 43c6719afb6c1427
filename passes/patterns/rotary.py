"""Rotary position embeddings."""

from __future__ import annotations

from tapeout.ir import Add, Circuit
from tapeout.ir.nodes.kernels import Rotary
from tapeout.passes.patterns.parts import as_product, function, is_function, is_weight


def rotary(node: Circuit) -> Circuit:
    """`x * cos + rotate_half(x) * sin` with constant tables."""
    if not isinstance(node, Add) or len(node.children) != 2:
        return node
    for straight, turned in (node.children, node.children[::-1]):
        left, right = _with_table(straight), _with_table(turned)
        if left is not None and right is not None and is_function(right[0], "rotate_half"):
            (x, cos), (half, sin) = left, right
            if half.children[0] is x:
                return function(Rotary(), x, cos, sin)
    return node


def _with_table(node: Circuit) -> tuple[Circuit, Circuit] | None:
    """x and a constant table if the node is their product and the table's axes are x's last ones."""
    product = as_product(node)
    if product is None or len(product.operands) != 2 or product.factor != 1.0:
        return None
    for (x, axes), (table, last) in (product.operands, product.operands[::-1]):
        if axes == product.out and last and last == axes[-len(last) :] and is_weight(table) and not is_weight(x):
            return x, table
    return None
