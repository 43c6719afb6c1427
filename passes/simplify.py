"""Simplify: named algebraic rules, from the leaves up, until none applies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tapeout.ir import Circuit, DiscreteVar, Module, Tag, nodes_below, postorder
from tapeout.ir.errors import PassError
from tapeout.ir.sizes import UNKNOWN, Shape
from tapeout.ir.text.printing import note_around
from tapeout.passes.base import register
from tapeout.passes.execution import ExecutionPass, Origins, Roots
from tapeout.passes.rules import RULES, Rule, Rules, rule_name

_LEAST_BUDGET = 64


@register(
    "simplify",
    requires="nodes without names, modules inlined",
    ensures="no rule of tapeout.passes.rules applies to any node",
)
@dataclass(frozen=True)
class Simplify(ExecutionPass):
    """Rewrites every node by the rules of `tapeout.passes.rules`, until none applies.

    Args:
        budget: how many rewrites may follow from one node; None for 64 and the number of nodes.
        fired: where it is counted how often each rule was used.
    """

    budget: int | None = None
    fired: Counter[str] | None = field(default=None, compare=False, repr=False)

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        nodes = nodes_below(*roots)
        kinds = set(map(type, nodes))
        if Module in kinds:
            module = next(node for node in postorder(*roots) if isinstance(node, Module))
            raise PassError(f"simplify met the module {module!r}", hint="inline the modules first")
        # Tags keep random variables apart.
        rules = {kind: found for kind, found in RULES.items() if kind is not Tag or DiscreteVar not in kinds}
        budget = _LEAST_BUDGET + len(nodes) if self.budget is None else self.budget
        simplifier = Simplifier(rules, budget, origins, Counter() if self.fired is None else self.fired)
        new = tuple([simplifier.normal_form(root) for root in roots])
        if rules == RULES:
            origins.normal |= nodes_below(*new)
        return roots if new == roots else new


class Simplifier:
    """Normal forms of nodes under rules, each found once.

    Args:
        rules: by kind of node, in the order in which they are tried.
        budget: how many rewrites may follow from one node.
        origins: where it is entered what new nodes stand for.
        fired: where it is counted how often each rule was used.
    """

    def __init__(self, rules: Rules, budget: int, origins: Origins, fired: Counter[str]) -> None:
        self.rules = rules
        self.budget = budget
        self.origins = origins
        self.fired = fired
        self._normal: dict[Circuit, Circuit] = {node: node for node in origins.normal}
        # A node that is being rewritten: itself over normal children, and what that became.
        self._following: dict[Circuit, tuple[Circuit, Circuit]] = {}
        # How many rewrites led to a node, where any did.
        self._rewrites: dict[Circuit, int] = {}

    def normal_form(self, root: Circuit) -> Circuit:
        """The node to which no rule applies any more.

        Raises:
            PassError: if rules undo each other, or go on beyond the budget.
        """
        normal = self._normal
        stack = [root]
        while stack:
            node = stack[-1]
            if node in normal:
                stack.pop()
            elif node in self._following:
                over, new = self._following.pop(node)
                normal[node] = normal[over] = normal[new]
            else:
                stack += self._step(node)
        return normal[root]

    def _step(self, node: Circuit) -> list[Circuit]:
        """Goes on with a node; returns what must be brought to normal form first."""
        normal = self._normal
        pending = [child for child in node.children if child not in normal]
        if pending:
            rewrites = self._rewrites.get(node)
            if rewrites is not None:
                self._inherit(rewrites, pending)
            return pending
        over = node.with_children(tuple([normal[child] for child in node.children]))
        if over is not node:
            self.origins.hand_on(over, node)
        if over in normal:
            normal[node] = normal[over]
            return []
        new = self._rewritten(over)
        if new is None:
            normal[node] = normal[over] = over
            return []
        self.origins.hand_on(new, over)
        if new in normal:
            normal[node] = normal[over] = normal[new]
            return []
        self._count(node, over, new)
        self._following[node] = over, new
        return [new]

    def _rewritten(self, node: Circuit) -> Circuit | None:
        for rule in self.rules.get(type(node), ()):
            try:
                new = rule(node)
            except Exception as error:
                note_around(error, node, (node,))
                raise
            if new is not None and (new.shape == node.shape or _knows_more(new.shape, node.shape)):
                self.fired[rule_name(rule)] += 1
                self._last = rule
                return new
        return None

    def _inherit(self, rewrites: int, children: list[Circuit]) -> None:
        for child in children:
            if child in self._following:
                raise self._error(child, "goes round in a circle")
            self._rewrites.setdefault(child, rewrites)

    def _count(self, node: Circuit, over: Circuit, new: Circuit) -> None:
        rewrites = self._rewrites.get(node, 0) + 1
        self._rewrites[new] = max(rewrites, self._rewrites.get(new, 0))
        if new in self._following or new is node:
            raise self._error(node, "goes round in a circle")
        if rewrites > self.budget:
            raise self._error(node, f"is not at an end after {self.budget} rewrites")

    def _error(self, node: Circuit, what: str) -> PassError:
        counts = ", ".join(f"{name} {count}" for name, count in self.fired.most_common())
        return PassError(
            f"simplifying {node!r} {what}; the last rule was {rule_name(self._last)}",
            facts=[f"rules used so far: {counts}"],
            hint="this is a mistake in a rule; TAPEOUT_SKIP=simplify leaves the pass out",
        )

    _last: Rule


def _knows_more(new: Shape, old: Shape) -> bool:
    """Whether a shape is another with sizes in place of unknown ones; sizes are never forgotten."""
    return len(new) == len(old) and all(b in (a, UNKNOWN) for a, b in zip(new, old, strict=True))
