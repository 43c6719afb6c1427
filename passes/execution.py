"""What the execution passes share: several roots, no names, and the map of origins instead.

Execution passes work on circuits whose names were stripped, so that equal structure is one node. What
a node stands for is kept beside the circuit: an `Origins` maps nodes to the names they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tapeout.ir import Circuit, postorder
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.text.printing import note_around
from tapeout.passes.base import Pass

Roots = tuple[Circuit, ...]

MOST_ROUNDS = 100
"""How often a pass goes over a circuit anew; one round does most, the others what the one before has opened."""


class Origins(dict[Circuit, str]):
    """For a node the name of what it stands for in the circuit that was given.

    Attributes:
        normal: nodes that are known to be in the simplifier's normal form; so is what is below them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normal: set[Circuit] = set()

    def hand_on(self, new: Circuit, *old: Circuit) -> Circuit:
        """Says that `new` stands for the first of `old` that has a name; an earlier answer stays. Returns `new`."""
        if new not in self:
            for node in old:
                name = self.get(node)
                if name is not None:
                    self[new] = name
                    break
        return new


@dataclass(frozen=True)
class ExecutionPass(Pass):
    """A preserving pass over several roots without names; run by the compiler before lowering."""

    def run_many(self, roots: Roots, origins: Origins) -> Roots:
        """The rewritten roots; the same tuple if nothing changed."""
        return roots

    def run(self, circuit: Circuit) -> Circuit:
        return without_gc(self.run_many)((circuit,), Origins())[0]


def until_unchanged(step: Callable[[Roots, Origins], Roots], roots: Roots, origins: Origins) -> Roots:
    """What a step gives when it is done again and again until it gives the very roots back, or `MOST_ROUNDS` times."""
    for _ in range(MOST_ROUNDS):
        before, roots = roots, step(roots, origins)
        if roots is before:
            break
    return roots


def rewrite(roots: Roots, rule: Callable[[Circuit], Circuit], origins: Origins) -> Roots:
    """Every node, from the leaves up, over its rewritten children and then through `rule`."""
    return rewrite_knowing(roots, lambda over, _: rule(over), origins)


def rewrite_knowing(roots: Roots, rule: Callable[[Circuit, Circuit], Circuit], origins: Origins) -> Roots:
    """The same for a rule that is also given the node as it was, of which the readers are known."""
    memo: dict[Circuit, Circuit] = {}
    made: set[Circuit] = set()
    for node in postorder(*roots):
        over = node.with_children(tuple([memo[child] for child in node.children]))
        try:
            memo[node] = new = rule(over, node)
        except Exception as error:
            note_around(error, node, roots)
            raise
        made.update(over.children)
        if new is not over:
            _name_parts(new, node, made, origins)
        made.add(origins.hand_on(new, node))
    return tuple(memo[root] for root in roots)


def _name_parts(new: Circuit, old: Circuit, made: set[Circuit], origins: Origins) -> None:
    """What a rule made beside its result stands for the same node."""
    stack = [new]
    while stack:
        for child in stack.pop().children:
            if child not in made and child.children and child not in origins:
                origins.hand_on(child, old)
                stack.append(child)


def readers_of(roots: Roots) -> dict[Circuit, list[Circuit]]:
    """For each node its distinct readers, in postorder; roots that nobody reads have none."""
    readers: dict[Circuit, list[Circuit]] = {}
    for node in postorder(*roots):
        readers.setdefault(node, [])
        for child in dict.fromkeys(node.children):
            readers[child].append(node)
    return readers
