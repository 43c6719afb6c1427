"""rust_circuit beside tapeout: the seed's walk in both, and what a circuit looks like in either.

The walk itself is `benchmarks/seed_walk.py`, which is no package: it is loaded from the checkout.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


def load_benchmark(name: str) -> ModuleType:
    """The module of that name in `benchmarks/`."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


walk = load_benchmark("seed_walk")
RUST = walk.rust_system()
TAPEOUT = walk.tapeout_system()
needs_oracle = pytest.mark.skipif(RUST is None, reason="rust_circuit has wheels for CPython 3.11 on Linux only")

Description = tuple[str, str, tuple[int | str, ...], tuple[str, ...]]
"""Name, kind, shape ("?" for a size that is not a number) and the children's names of a node."""


def described(circuit: Any, renamed: Callable[[str], str] = lambda name: name) -> Counter[Description]:
    """Every distinct node of a circuit of either system, bodies of modules included."""
    out: Counter[Description] = Counter()
    seen = {circuit}
    stack = [circuit]
    while stack:
        node = stack.pop()
        shape = tuple(size if isinstance(size, int) else "?" for size in node.shape)
        children = tuple(renamed(child.name) for child in node.children)
        out[renamed(node.name), type(node).__name__, shape, children] += 1
        new = [child for child in dict.fromkeys(node.children) if child not in seen]
        seen.update(new)
        stack += new
    return out


def evaluate_rust(circuit: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A rust_circuit's value for each row of tokens, in place of the symbol `tokens`."""
    rc = RUST.rc
    rows = [circuit.update("tokens", lambda _, row=row: rc.Array(row, name="tokens")).evaluate() for row in tokens]
    return torch.stack(rows)
