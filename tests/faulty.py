"""A backend with a bug, to see that it is found: fx, but nodes of one origin come out one percent too large.

monkeypatch.setitem(BACKENDS, "faulty", "faulty"); monkeypatch.setattr(faulty, "WRONG", "a1")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tapeout.backends.fx.executable import FxExecutable
from tapeout.backends.fx.executable import build as build_fx
from tapeout.ir import Circuit, Einsum, Symbol, postorder
from tapeout.ir.errors import LoweringError, UnsupportedError

WRONG = ""
"""The origin of the nodes that come out wrong."""

REFUSES: type[LoweringError] | type[UnsupportedError] | None = None
"""What it raises instead of building anything."""


def build(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype,
    device: torch.device,
    rows: int | None = None,
    order: Any = None,
    **options: Any,
) -> tuple[FxExecutable, int]:
    if REFUSES is not None:
        raise REFUSES("it cannot be done", hint="leave it")
    memo: dict[Circuit, Circuit] = {}
    for node in postorder(*roots):
        made = node.with_children(tuple(memo[child] for child in node.children))
        wrong = bool(node.children) and origins.get(node) == WRONG
        memo[node] = Einsum.scalar_mul(made, 1.01) if wrong else made
    return build_fx([memo[root] for root in roots], inputs, origins, dtype, device, rows, **options)
