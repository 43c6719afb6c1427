"""Rename: many names at once, by a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tapeout.ir import Circuit, Matcher
from tapeout.passes.base import Pass, register


@register("rename", ensures="no node has a name that the table renames (unless the table gives it)")
@dataclass(frozen=True)
class Rename(Pass):
    """Renames nodes by a table from old to new names, in one walk.

    Args:
        names: the table. Names that do not occur are no error.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    def run(self, circuit: Circuit) -> Circuit:
        names = self.names
        return circuit.update(Matcher(frozenset(names)), lambda node: node.rename(names[node.name]))


def rename_by_table(circuit: Circuit, names: Mapping[str, str]) -> Circuit:
    """See `Rename`."""
    return Rename(names)(circuit)
