"""Add batch: the inputs of a circuit of one row gain a leading batch axis."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Circuit, Symbol, postorder
from tapeout.ir.nodes.concat import repeat_to_batch
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots


@register("add_batch", requires="inlined", ensures="every root has the batch axis first")
@dataclass(frozen=True)
class AddBatch(ExecutionPass):
    """Inputs become batched inputs, and whatever depends on them gains their leading axis.

    Args:
        symbols: pairs of an input and the same input with the batch axis.
    """

    symbols: tuple[tuple[Symbol, Symbol], ...] = ()

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        if not self.symbols:
            return roots
        memo: dict[Circuit, Circuit] = dict(self.symbols)
        for node in postorder(*roots):
            if node not in memo:
                memo[node] = origins.hand_on(node.expand(tuple([memo[child] for child in node.children])), node)
        batch = self.symbols[0][1].shape[:1]
        return tuple(memo[r] if memo[r].rank > r.rank else repeat_to_batch(memo[r], 0, batch) for r in roots)
