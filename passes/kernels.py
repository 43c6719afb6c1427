"""Recognise kernels: patterns of nodes for which backends have one fast operation become one node."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots, readers_of, rewrite, rewrite_knowing
from tapeout.passes.patterns.attention import attention
from tapeout.passes.patterns.linear import biased_linear, linear
from tapeout.passes.patterns.norms import layer_norm, rms_norm
from tapeout.passes.patterns.rotary import rotary

PATTERNS = (rms_norm, layer_norm, attention, rotary)
"""In the order in which they are looked for; products with weights come last."""


@register(
    "kernels",
    requires="inlined and simplified",
    ensures="norms, attention, rotary embeddings and products with weights are single nodes",
)
@dataclass(frozen=True)
class Kernels(ExecutionPass):
    """Layer norm, RMS norm, softmax attention, rotary embeddings and weight products with bias become single nodes.

    Attention equals the pattern `softmax(mask * scores + (1 - mask) * -10000)` only for a mask of 0 and 1, which
    is checked, and scores far below 10000.
    """

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        for recognise in PATTERNS:
            roots = rewrite(roots, recognise, origins)
        elsewhere = {node for node, readers in readers_of(roots).items() if len(readers) > 1 or node in roots}
        roots = rewrite_knowing(roots, lambda over, old: biased_linear(over, old, elsewhere), origins)
        return rewrite(roots, linear, origins)
