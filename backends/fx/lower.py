"""Lowering to torch.fx: a node at a time, each kind and function by one rule."""

from __future__ import annotations

from torch import fx

from tapeout.backends.common.program import Program
from tapeout.backends.common.rules import lowered
from tapeout.backends.common.weights import is_view
from tapeout.backends.fx.graph import Lowering
from tapeout.backends.fx.kinds import RULES


def lower(program: Program) -> tuple[fx.GraphModule, int]:
    """The circuits as one GraphModule: one argument an input, one result a root (a tuple for several).

    Returns:
        The module, and the bytes of weights copied into another layout.

    Raises:
        UnsupportedError: for a kind or function without a rule.
        LoweringError: for anything else that goes wrong, with the node.
    """
    low = Lowering(program)
    for node in program.nodes:  # constants, and views of them, are made when a rule asks for them
        if node not in low.nodes and not is_view(node):
            low.current = node
            low.nodes[node] = lowered(low, RULES, node, program.roots)
    return low.finish(program.roots), low.packed_bytes
