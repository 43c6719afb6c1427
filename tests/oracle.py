"""The same circuits in rust_circuit, which decides names, shapes and values where there is doubt.

`pytest.importorskip("rust_circuit")` comes before importing this module.
"""

from __future__ import annotations

from typing import Any

import rust_circuit as rc
import torch

from tapeout.backends.rust_circuit import convert
from tapeout.backends.rust_circuit.convert import UNKNOWN_FUNCTIONS, sizes_of
from tapeout.ir import Array, Circuit, GeneralFunction, Scatter, SetSymbolicShape
from tapeout.ir.errors import UnsupportedError


class Inexpressible(Exception):
    """The oracle has no such node."""


def to_rust(circuit: Circuit) -> Any:
    """The circuit as rust_circuit's; raises Inexpressible."""
    try:
        return convert.to_rust(circuit)
    except UnsupportedError as error:
        raise Inexpressible(error.message) from error


def expressible(circuit: Circuit) -> Circuit:
    """The circuit with what the oracle does not have replaced by something of the same shape."""

    def replace(node: Circuit) -> Circuit:
        if isinstance(node, SetSymbolicShape):
            return node.node
        if isinstance(node, Scatter):
            sizes = [int(size) for size in node.shape]  # type: ignore[arg-type]
            return Array(
                torch.linspace(-1, 1, max(1, _product(sizes)), dtype=torch.float64).reshape(sizes),
                node.op_name,
            )
        return GeneralFunction.new_by_name(*node.children, spec_name="tanh", name=node.op_name)

    return circuit.update(_is_inexpressible, replace)


def _product(sizes: list[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def _is_inexpressible(node: Circuit) -> bool:
    if isinstance(node, Scatter):
        return any(not hasattr(index, "is_full") for index in node.axis_indices)
    return isinstance(node, SetSymbolicShape) or (
        isinstance(node, GeneralFunction) and node.spec.name in UNKNOWN_FUNCTIONS
    )


def difference(ours: Circuit, theirs: Any) -> str | None:
    """The first place at which two circuits differ in kind, name, shape or number of children; None if nowhere.

    A node of ours without a name may have any: the oracle names nodes automatically when it rebuilds them.
    So may one that the oracle calls `... unsq_b_add`, which it calls `... rearrange` elsewhere.
    """
    seen: set[tuple[Circuit, Any]] = set()
    stack = [(ours, theirs)]
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        mine, other = pair
        name = other.op_name
        if mine.op_name is None or (mine.name.endswith("rearrange") and other.name.endswith("unsq_b_add")):
            name = mine.op_name
        facts = [(mine.kind, mine.op_name, sizes_of(mine.shape), len(mine.children))]
        facts.append((type(other).__name__, name, their_shape(other), len(other.children)))
        if facts[0] != facts[1]:
            return f"{facts[0]} against {facts[1]}"
        stack.extend(zip(mine.children, other.children, strict=True))
    return None


def their_shape(node: Any) -> tuple[int | None, ...]:
    return tuple(None if size == rc.Size.NONE else int(size) for size in node.shape)
