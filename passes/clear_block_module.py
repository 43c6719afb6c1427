"""Clear block module: the calls of blocks on the residual stream are substituted."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Circuit, Matcher
from tapeout.passes.base import Pass, register


@register(
    "clear_block_module",
    requires="weights pushed down past the blocks (To.ATTN_MLP or further)",
    ensures="adding to the residual stream happens outside of modules; block 3's output is b3",
)
@dataclass(frozen=True)
class ClearBlockModule(Pass):
    """The modules `b0.call`, `b1.call`, ... are substituted and called `b0`, `b1`, ..."""

    def run(self, circuit: Circuit) -> Circuit:
        return circuit.update(
            Matcher.regex(r"^b\d+.call$"),
            lambda node: node.cast_module().substitute().rename(node.name.removesuffix(".call")),
        )


def clear_block_module(circuit: Circuit) -> Circuit:
    """See `ClearBlockModule`."""
    return ClearBlockModule()(circuit)
