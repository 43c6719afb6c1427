"""Einsums taken apart, and the other parts that patterns are made of."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Array, Circuit, Einsum, GeneralFunction
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.nodes.functions import FUNCTIONS, Function


def function(spec: Function, *nodes: Circuit) -> GeneralFunction:
    return GeneralFunction(*nodes, spec=spec, name=None)


def is_function(node: Circuit, name: str) -> bool:
    return isinstance(node, GeneralFunction) and node.spec is FUNCTIONS[name]


@dataclass(frozen=True, slots=True)
class Product:
    """An einsum as operands with their axes, and the product of its plain numbers."""

    operands: tuple[tuple[Circuit, Axes], ...]
    factor: float
    out: Axes


def as_product(node: Circuit) -> Product | None:
    if not isinstance(node, Einsum):
        return None
    factor, operands = node.without_numbers()
    return Product(tuple(operands), factor, node.out_axes)


def row_sum(node: Circuit, count: int) -> tuple[list[Circuit], float] | None:
    """Operands and factor if the node is `factor * sum over the last axis of the product of count operands`."""
    product = as_product(node)
    if product is None or len(product.operands) != count:
        return None
    axes = product.operands[0][1]
    if not axes or product.out != axes[:-1] or any(other != axes for _, other in product.operands):
        return None
    return [child for child, _ in product.operands], product.factor


def is_weight(node: Circuit) -> bool:
    """A constant, seen through views: Index and Rearrange."""
    while node.kind in ("Index", "Rearrange"):
        node = node.children[0]
    return isinstance(node, Array) and node.value.is_floating_point()
