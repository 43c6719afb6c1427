"""Lowering to torch.fx: a node at a time, each kind and function by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from tapeout.backends.fx.graph import Lowering
from tapeout.backends.fx.kinds import RULES
from tapeout.backends.rules import lowered
from tapeout.backends.weights import is_view
from tapeout.ir import Circuit, Symbol, postorder


def lower(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    rows: int | None = None,
    order: Sequence[Circuit] | None = None,
) -> tuple[fx.GraphModule, int]:
    """The circuits as one GraphModule: one argument an input, one result a root (a tuple for several).

    Args:
        roots: without modules and random variables; their free symbols must be among the inputs.
        inputs: symbols, in the order of the arguments. A symbolic size that occurs in them is read off at run time.
        origins: names for nodes.
        dtype: what values are computed in; for a narrow one see `tapeout.backends.precision`.
        device: where constants are moved.
        rows: a typical batch size.
        order: every node below the roots, children before parents; None for `postorder`.

    Returns:
        The module, and the bytes of weights copied into another layout.

    Raises:
        UnsupportedError: for a kind or function without a rule.
        LoweringError: for anything else that goes wrong, with the node.
    """
    lowering = Lowering(roots, inputs, origins, dtype, device, rows)
    for node in order or postorder(*roots):  # constants, and views of them, are made when a rule asks for them
        if node not in lowering.nodes and not is_view(node):
            lowering.current = node
            lowering.nodes[node] = lowered(lowering, RULES, node, roots)
    return lowering.finish(roots), lowering.packed_bytes
