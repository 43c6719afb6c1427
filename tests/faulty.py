"""A backend with a bug, to see that it is found: fx, but nodes of one origin come out one percent too large.

monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty")); monkeypatch.setattr(faulty, "WRONG", "a1")
"""

from __future__ import annotations

from dataclasses import replace

from tapeout.backends.common.program import Program
from tapeout.backends.fx.executable import FxExecutable
from tapeout.backends.fx.executable import build as build_fx
from tapeout.ir import Circuit, Einsum, postorder
from tapeout.ir.errors import LoweringError, UnsupportedError

WRONG = ""
"""The origin of the nodes that come out wrong."""

REFUSES: type[LoweringError] | type[UnsupportedError] | None = None
"""What it raises instead of building anything."""


def build(program: Program) -> tuple[FxExecutable, int]:
    if REFUSES is not None:
        raise REFUSES("it cannot be done", hint="leave it")
    memo: dict[Circuit, Circuit] = {}
    for node in postorder(*program.roots):
        made = node.with_children(tuple(memo[child] for child in node.children))
        wrong = bool(node.children) and program.origins.get(node) == WRONG
        memo[node] = Einsum.scalar_mul(made, 1.01) if wrong else made
    return build_fx(replace(program, roots=[memo[root] for root in program.roots], order=None))
