"""What rules of several kinds ask of a node."""

from __future__ import annotations

from tapeout.ir import Circuit


def is_float(node: Circuit) -> bool:
    """Whether numbers in the node may come and go: beside integers a number decides the result's dtype."""
    return node.torch_dtype is None or node.torch_dtype.is_floating_point
