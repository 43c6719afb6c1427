"""The order in which the nodes of a circuit are evaluated, chosen to hold few values at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapeout.compiler.cost import is_view, peak_bytes, value_bytes
from tapeout.ir import Circuit, postorder
from tapeout.ir.walk import depth_first

TYPICAL_ROWS = 64
"""The batch size that is ordered for where nobody says."""


def evaluation_order(roots: Sequence[Circuit], dtype: torch.dtype, rows: int | None = None) -> tuple[Circuit, ...]:
    """Every node below the roots once, children before parents.

    Liu's rule for trees: of a node's children, the one whose evaluation exceeds what it leaves behind by most comes
    first, while little else is held. In a graph what is shared counts for each of its readers, so that the rule is no
    longer exact: the order is kept only if its peak, by the estimate of `Cost`, is below that of the plain one.

    Args:
        roots: the circuits.
        dtype: what floating values are computed in.
        rows: a typical batch size.
    """
    batch = rows or TYPICAL_ROWS
    width = value_bytes(roots, batch, dtype)
    plain = tuple(postorder(*roots))
    sorted_children: dict[Circuit, list[Circuit]] = {}
    peak: dict[Circuit, int] = {}
    left: dict[Circuit, int] = {}

    def largest_excess_first(nodes: Sequence[Circuit]) -> list[Circuit]:
        return sorted(dict.fromkeys(nodes), key=lambda node: left[node] - peak[node])

    for node in plain:
        held = most = 0
        sorted_children[node] = largest_excess_first(node.children)
        for child in sorted_children[node]:
            most = max(most, held + peak[child])
            held += left[child]
        left[node] = held if is_view(node) else width(node)
        peak[node] = max(most, held if is_view(node) else held + width(node))
    ordered = tuple(depth_first(largest_excess_first(roots), sorted_children.__getitem__))
    return min(plain, ordered, key=lambda order: peak_bytes(order, roots, width))
