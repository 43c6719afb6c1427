"""Inline: the form that the other execution passes work on. No modules, no names."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Circuit, Module, Symbol
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots


@register("inline", ensures="no modules; only symbols have names")
@dataclass(frozen=True)
class Inline(ExecutionPass):
    """Substitutes every module and strips every name but those of symbols."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        memo: dict[Circuit, Circuit] = {}
        stack = list(roots)
        while stack:
            node = stack[-1]
            if node in memo:
                stack.pop()
                continue
            if isinstance(node, Module):
                body = node.substitute()
                if body not in memo:
                    stack.append(body)
                    continue
                new = memo[body]
            else:
                pending = [child for child in node.children if child not in memo]
                if pending:
                    stack.extend(reversed(pending))
                    continue
                children = tuple([memo[child] for child in node.children])
                new = node if isinstance(node, Symbol) else node.rebuilt(children, None)
            memo[node] = new
            if node.op_name is not None:
                origins.setdefault(new, node.op_name)
        return tuple(memo[root] for root in roots)
