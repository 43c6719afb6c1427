"""Flatten residual: the residual stream before a sublayer is one sum of all that was written to it."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Add, Circuit, Matcher, Module
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register

_RESIDUAL = Matcher.regex(r"^b\d+(.resid.\w)?$")
_CALL = Matcher.regex(r"^b\d+.call$") & Module
_COMPONENT = Matcher.regex(r"^b\d+.[am](.p_bias)?$")


@register(
    "flatten_res",
    requires="blocks substituted (clear_block_module)",
    ensures="b3 and b3.resid.a are single sums over the components before them",
)
@dataclass(frozen=True)
class FlattenRes(Pass):
    """Nested sums of the residual stream become one sum with a long list of summands.

    Args:
        flatten_components: go into attention and MLP sums too, so that heads and biases are
            summands themselves.
    """

    flatten_components: bool = False

    def check(self, circuit: Circuit) -> None:
        if not circuit.are_any_found(_RESIDUAL & Add):
            raise PassError(
                f"flatten_res found no residual stream (b0, b0.resid.a, ...) below {circuit!r}",
                hint="run it after clear_block_module, before blocks are renamed",
            )
        if circuit.are_any_found(_CALL):
            raise PassError(
                f"flatten_res: blocks of {circuit!r} are still calls",
                hint="run clear_block_module first, so that what they add to is outside of them",
            )

    def run(self, circuit: Circuit) -> Circuit:
        return circuit.update(_RESIDUAL & Add, self._flatten)

    def _flatten(self, node: Circuit) -> Circuit:
        summands: list[Circuit] = []
        stack = list(reversed(node.children))
        while stack:
            child = stack.pop()
            if isinstance(child, Add) and child.children and (self.flatten_components or not _COMPONENT(child)):
                stack.extend(reversed(child.children))
            else:
                summands.append(child)
        return Add(*summands, name=node.op_name)


def flatten_res(circuit: Circuit, flatten_components: bool = False) -> Circuit:
    """See `FlattenRes`."""
    return FlattenRes(flatten_components)(circuit)
