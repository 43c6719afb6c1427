"""Substitute: modules are replaced by their bodies with the arguments in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tapeout.ir import Circuit, Matcher, Module
from tapeout.passes.base import Pass, register


@register("substitute_modules", ensures="no module that matches is left")
@dataclass(frozen=True)
class SubstituteModules(Pass):
    """Substitutes every module that matches, until none is left.

    Args:
        matcher: which modules (anything that a Matcher is made of); all by default.
    """

    matcher: Any = True

    def run(self, circuit: Circuit) -> Circuit:
        wanted = Matcher(Module) & self.matcher
        while True:
            following = circuit.update(wanted, lambda node: node.cast_module().substitute())
            if following is circuit or not following.are_any_found(wanted):
                return following
            circuit = following


def substitute_all_modules(circuit: Circuit) -> Circuit:
    """The circuit without modules; see `SubstituteModules`."""
    return SubstituteModules()(circuit)


def substitute_modules(circuit: Circuit, matcher: Any) -> Circuit:
    """The circuit without the modules that match; see `SubstituteModules`."""
    return SubstituteModules(matcher)(circuit)
