"""Lowering to torch.fx: a node at a time, each kind and function by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from tapeout.backends.fx.graph import Lowering
from tapeout.backends.fx.kinds import RULES
from tapeout.backends.fx.weights import Weights
from tapeout.ir import Circuit, Symbol, postorder
from tapeout.ir.errors import LoweringError, TapeoutError, UnsupportedError
from tapeout.ir.text import excerpt, note_around


def lower(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[fx.GraphModule, Weights]:
    """The circuits as one GraphModule: one argument an input, one result a root (a tuple for several).

    Args:
        roots: without modules and random variables; their free symbols must be among the inputs.
        inputs: symbols, in the order of the arguments. A symbolic size that occurs in them is read off at run time.
        origins: names for nodes.
        dtype: what constants are cast to.
        device: where constants are moved.

    Raises:
        UnsupportedError: for a kind or function without a rule.
        LoweringError: for anything else that goes wrong, with the node.
    """
    lowering = Lowering(inputs, origins, Weights(dtype, device))
    for node in postorder(*roots):  # constants, and views of them, are made when a rule asks for them
        if node not in lowering.nodes and lowering.weights.value(node) is None:
            lowering.current = node
            lowering.nodes[node] = _lowered(lowering, node, roots)
    return lowering.finish(roots), lowering.weights


def _lowered(low: Lowering, node: Circuit, roots: Sequence[Circuit]) -> fx.Node:
    try:
        rule = RULES.get(type(node))
        if rule is None:
            raise UnsupportedError(f"fx has no rule for {node.kind} ({node!r})", hint="add it to RULES")
        return rule(low, node, ())
    except TapeoutError as error:
        note_around(error, node, roots)
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise LoweringError(
            f"lowering {low.name_of(node)} ({node!r}) to fx failed: {error}",
            facts=excerpt(node, roots),
            hint="report it with the circuit's text",
        ) from error
