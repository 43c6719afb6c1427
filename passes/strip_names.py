"""Strip names: equal structure becomes one node, whatever it was called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapeout.ir import Circuit, Symbol, postorder
from tapeout.passes.base import Pass, register


@register("strip_names", ensures="only symbols have names; nodes that differed in names alone are one")
@dataclass(frozen=True)
class StripNames(Pass):
    """Removes all names but those of symbols."""

    def run(self, circuit: Circuit) -> Circuit:
        return strip_names_with_origins([circuit])[0][0]


def strip_names_with_origins(circuits: Sequence[Circuit]) -> tuple[list[Circuit], dict[Circuit, str]]:
    """The circuits without names, and for each new node the first name that it stands for."""
    memo: dict[Circuit, Circuit] = {}
    origins: dict[Circuit, str] = {}
    for node in postorder(*circuits):
        children = tuple(memo[child] for child in node.children)
        new = node if isinstance(node, Symbol) else node.with_children(children).rename(None)
        memo[node] = new
        if node.op_name is not None:
            origins.setdefault(new, node.op_name)
    return [memo[circuit] for circuit in circuits], origins


def strip_names(circuit: Circuit) -> Circuit:
    """See `StripNames`."""
    return StripNames()(circuit)
