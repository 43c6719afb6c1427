"""Clear block module: the calls of blocks on the residual stream are substituted."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Circuit, Matcher, Module
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register

_CALL = Matcher.regex(r"^b\d+.call$") & Module


@register(
    "clear_block_module",
    requires="weights pushed down past the blocks (To.ATTN_MLP or further)",
    ensures="adding to the residual stream happens outside of modules; block 3's output is b3",
)
@dataclass(frozen=True)
class ClearBlockModule(Pass):
    """The modules `b0.call`, `b1.call`, ... are substituted and called `b0`, `b1`, ..."""

    def check(self, circuit: Circuit) -> None:
        calls = circuit.get(_CALL)
        if not calls:
            raise PassError(
                f"clear_block_module found no calls of blocks (b0.call, ...) below {circuit!r}",
                hint="blocks are calls until this pass, or a substitution, has run",
            )
        if any(isinstance(call.children[0], Module) for call in calls):
            raise PassError(
                f"clear_block_module: weights are bound at the blocks of {circuit!r}",
                hint="push them down further first: To.ATTN_MLP",
            )

    def run(self, circuit: Circuit) -> Circuit:
        return circuit.update(
            _CALL,
            lambda node: node.cast_module().substitute().rename(node.name.removesuffix(".call")),
        )


def clear_block_module(circuit: Circuit) -> Circuit:
    """See `ClearBlockModule`."""
    return ClearBlockModule()(circuit)
