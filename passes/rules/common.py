"""What rules of several kinds ask of a node."""

from __future__ import annotations

from tapeout.ir import Circuit


def is_float(node: Circuit) -> bool:
    """Whether the node's numbers may come and go: beside an integer, a number decides the dtype of the result."""
    return node.torch_dtype is None or node.torch_dtype.is_floating_point
