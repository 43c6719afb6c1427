"""Conform: symbolic sizes inside module bodies become those of the arguments."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from tapeout.ir import Circuit, Module
from tapeout.ir.labels import labels
from tapeout.ir.matching.matcher import Matcher
from tapeout.ir.trampoline import memoised
from tapeout.passes.base import Pass, register


@register("conform_all_modules", ensures="every module's symbols have the shapes of their arguments")
@dataclass(frozen=True)
class ConformAllModules(Pass):
    """Every module's symbols take the shapes of their arguments, batch axes included; its body is expanded to match."""

    def run(self, circuit: Circuit) -> Circuit:
        mask = Matcher(Module).mask(labels(circuit))

        def step(node: Circuit) -> Generator[Circuit, Circuit, Circuit]:
            if mask is not None and not labels(node) & mask:
                return node
            if not isinstance(node, Module):
                children = []
                for child in node.children:
                    children.append((yield child))
                return node.with_children(tuple(children))
            nodes = []
            for child in node.nodes:
                nodes.append((yield child))
            module = node.with_nodes(tuple(nodes)).conform_to_input_shapes()
            body = yield module.children[0]
            return Module.build(body, module.arg_specs, module.nodes, module.op_name)

        return memoised(step)(circuit)


def conform_all_modules(circuit: Circuit) -> Circuit:
    """See `ConformAllModules`."""
    return ConformAllModules()(circuit)
