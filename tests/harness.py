"""What our own tests share beside the catalogue and the random circuits of `tapeout.testing`."""

from __future__ import annotations

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Index,
    Module,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
    postorder,
)
from tapeout.testing.leaves import integers, symbol, tensor

__all__ = ["KINDS", "arrays", "integers", "kinds", "symbol", "tensor"]

KINDS: tuple[type[Circuit], ...] = (
    Array, Scalar, Symbol, Einsum, Add, Rearrange, Index, Concat, Scatter, GeneralFunction, Module, Tag,
    DiscreteVar, SetSymbolicShape,
)  # fmt: skip
"""Every kind of node there is."""


def arrays(circuit: Circuit) -> list[Array]:
    """The constants of a circuit, module bodies included."""
    return [node for node in postorder(circuit) if isinstance(node, Array)]


def kinds(circuit: Circuit) -> set[type[Circuit]]:
    return {type(node) for node in postorder(circuit)}
