"""Which values are narrow when a circuit is compiled to a narrow dtype such as bfloat16.

Products with weights, products of matrices and attention read narrow operands and give narrow results, with float32
accumulation inside. All else is in float32: sums, and with them the residual stream, norms, softmax, rows of
embeddings, products of single rows such as the last one of a metric, and every result. What only passes narrow values
on, or an activation of them, stays narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapeout.ir import Array, Circuit, Concat, Einsum, GeneralFunction, Index, Rearrange, Scatter, Symbol, postorder
from tapeout.ir.nodes.functions import Cast, GenIndex
from tapeout.ir.nodes.kernels import Attention, Linear

_ACTIVATIONS = frozenset(
    ("gelu", "gelu_new", "silu", "relu", "tanh", "sigmoid", "abs", "min", "max", "minimum", "maximum", "rotate_half")
)
"""Functions that lose nothing but the last rounding in a narrow dtype."""

_PASS_ON = (Index, Rearrange, Concat, Scatter)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what is not narrow."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def narrow_nodes(roots: Sequence[Circuit], dtype: torch.dtype) -> frozenset[Circuit]:
    """The nodes whose values are narrow; none for float32 and float64."""
    narrow: set[Circuit] = set()
    if wide(dtype) is not dtype:
        for node in postorder(*roots):
            if _is_narrow(node, narrow):
                narrow.add(node)
    return frozenset(narrow)


def narrow_arrays(roots: Sequence[Circuit]) -> tuple[frozenset[Circuit], frozenset[Circuit]]:
    """The arrays that products read, which are held narrow, and those that something else reads, which are not."""
    by_products: set[Circuit] = set()
    by_others: set[Circuit] = set()
    for node in postorder(*roots):
        if isinstance(node, Index | Rearrange) and isinstance(_below(node), Array):
            continue
        arrays = {array for child in node.children if isinstance(array := _below(child), Array)}
        (by_products if is_product(node) else by_others).update(arrays)
    by_others.update(below for root in roots if isinstance(below := _below(root), Array))
    return frozenset(by_products), frozenset(by_others)


def is_product(node: Circuit) -> bool:
    """Whether the node multiplies matrices: each operand has an axis of its own, and one is summed over."""
    if isinstance(node, GeneralFunction):
        return isinstance(node.spec, Linear | Attention)
    if not isinstance(node, Einsum):
        return False
    operands = [set(axes) for _, axes in node.args if axes]
    if len(operands) != 2 or sum(len(axes) for _, axes in node.args) != sum(map(len, operands)):
        return False
    (left, right), out = operands, set(node.out_axes)
    return bool((left & right) - out and (left - right) & out and (right - left) & out)


def _is_narrow(node: Circuit, narrow: set[Circuit]) -> bool:
    if isinstance(node, Symbol):
        return node.torch_dtype is not None and node.torch_dtype.is_floating_point and node.torch_dtype.itemsize < 4
    if is_product(node):
        return True
    if isinstance(node, Einsum):
        operands = [child for child, axes in node.args if axes]
        summed = {axis for _, axes in node.args for axis in axes} - set(node.out_axes)
        return not summed and bool(operands) and all(child in narrow for child in operands)
    if isinstance(node, GeneralFunction):
        if isinstance(node.spec, GenIndex | Cast):
            return node.children[0] in narrow
        return node.spec.name in _ACTIVATIONS and all(child in narrow for child in node.children)
    passes_on = isinstance(node, _PASS_ON) or node.kind in ("Tag", "SetSymbolicShape")
    return passes_on and all(child in narrow for child in node.children)


def _below(node: Circuit) -> Circuit:
    """What is seen through Index and Rearrange."""
    while isinstance(node, Index | Rearrange):
        node = node.children[0]
    return node
