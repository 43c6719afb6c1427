"""Merge products with gathered rows: a difference of two logits is one product with a difference of rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from tapeout.ir import Add, Circuit, Einsum, postorder
from tapeout.ir.nodes.functions import GenIndex
from tapeout.ir.nodes.general_function import function_of
from tapeout.passes.execution import Origins, Roots, readers_of

Operand = tuple[Circuit, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Term:
    """A summand `coefficient * node`; where that is a product with gathered rows, its parts.

    Attributes:
        coefficient: the number in front.
        node: the summand without it.
        number: the numbers among the product's operands.
        rows: the gathered operand and its axes, or None.
        others: the other operands, by letters that do not depend on how the product was written.
        out: the result's letters.
    """

    coefficient: float
    node: Circuit
    number: float = 1.0
    rows: Operand | None = None
    others: tuple[Operand, ...] = ()
    out: tuple[int, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for products that differ in their rows alone."""
        return None if self.rows is None else (self.others, self.rows[0].shape, self.rows[1], self.out)


def merge_gathered(roots: Roots, origins: Origins) -> Roots:
    """`c1 * Einsum(x, A) + c2 * Einsum(x, B) --> Einsum(x, c1 * A + c2 * B)` where A and B are gathered rows
    and nothing else reads the products."""
    merged = _merged_sums(roots)
    if not merged:
        return roots
    built: dict[Circuit, Circuit] = {}
    for node in postorder(*roots):
        if node in merged:
            new = _sum(node, merged[node], built)
        else:
            new = node.with_children(tuple([built[child] for child in node.children]))
        built[node] = origins.hand_on(new, node)
    return tuple(built[root] for root in roots)


def _merged_sums(roots: Roots) -> dict[Circuit, list[_Term]]:
    """The sums in which products merge, with their terms; a sum inside a sum belongs to the outer one."""
    readers = readers_of(roots)
    private = {node for node, by in readers.items() if len(by) == 1} - set(roots)
    seen: set[Circuit] = set()
    found: dict[Circuit, list[_Term]] = {}
    for node in reversed(readers):
        if isinstance(node, Add) and node not in seen:
            terms = _terms(node, private, seen, readers)
            keys = [term.key for term in terms if term.rows is not None]
            if len(set(keys)) < len(keys):
                found[node] = terms
    return found


def _terms(
    total: Add, private: set[Circuit], seen: set[Circuit], readers: Mapping[Circuit, Sequence[Circuit]]
) -> list[_Term]:
    """The terms of a sum, through inner sums (which go into `seen`) and scalings that nothing else reads."""
    terms: list[_Term] = []
    stack = [(1.0, child) for child in reversed(total.children)]
    while stack:
        coefficient, node = stack.pop()
        if node not in private:
            terms.append(_Term(coefficient, node))
        elif isinstance(node, Add):
            seen.add(node)
            stack += [(coefficient, child) for child in reversed(node.children)]
        elif isinstance(node, Einsum):
            number, operands = node.without_numbers()
            if len(operands) == 1 and operands[0][1] == node.out_axes and _distinct(node.out_axes):
                stack.append((coefficient * number, operands[0][0]))
            else:
                terms.append(_product(coefficient, node, number, operands, readers))
        else:
            terms.append(_Term(coefficient, node))
    return terms


def _distinct(axes: Sequence[int]) -> bool:
    return len(set(axes)) == len(axes)


def _product(
    coefficient: float,
    node: Einsum,
    number: float,
    operands: list[Operand],
    readers: Mapping[Circuit, Sequence[Circuit]],
) -> _Term:
    """A product with its rows: of several gathered operands the one that the fewest nodes read."""
    gathered = [operand for operand in operands if function_of(operand[0], GenIndex)]
    if not gathered or len(operands) < 2:
        return _Term(coefficient, node)
    rows = min(gathered, key=lambda operand: len(readers[operand[0]]))
    others = sorted((operand for operand in operands if operand is not rows), key=lambda o: id(o[0]))
    letters: dict[int, int] = {}

    def renamed(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(letters.setdefault(axis, len(letters)) for axis in axes)

    shared = tuple((child, renamed(axes)) for child, axes in others)
    own = (rows[0], renamed(rows[1]))
    return _Term(coefficient, node, number, own, shared, renamed(node.out_axes))


def _sum(total: Circuit, terms: Sequence[_Term], built: dict[Circuit, Circuit]) -> Circuit:
    groups: dict[Hashable, list[_Term]] = {}
    for i, term in enumerate(terms):
        groups.setdefault(i if term.rows is None else term.key, []).append(term)
    summands = [_summand(group, built) for group in groups.values()]
    if len(summands) == 1 and summands[0].shape == total.shape:
        return summands[0]
    return Add(*summands, name=None)


def _summand(group: Sequence[_Term], built: dict[Circuit, Circuit]) -> Circuit:
    first = group[0]
    if first.rows is None or len(group) == 1:
        return _scaled(built[first.node], first.coefficient)
    rows = [_scaled(built[term.rows[0]], term.coefficient * term.number) for term in group if term.rows is not None]
    others = [(built[child], axes) for child, axes in first.others]
    return Einsum(*others, (Add(*rows, name=None), first.rows[1]), out_axes=first.out, name=None)


def _scaled(node: Circuit, coefficient: float) -> Circuit:
    return node if coefficient == 1.0 else Einsum.scalar_mul(node, coefficient, name=None)
