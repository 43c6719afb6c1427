"""Labels: what names and kinds occur at and below a node, as bits of one integer.

Names and kinds are numbered as they are first searched for. A node's labels are computed once, on the
first search that reaches it; a search then skips whatever holds no label that it looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapeout.ir.circuit import Circuit

_bits: dict[str | type | None, int] = {None: 0}
_numbered: list[str | type] = []


def _new_bit(label: str | type) -> int:
    bit = _bits[label] = 1 << len(_numbered)
    _numbered.append(label)
    return bit


def bit_of_name(name: str) -> int:
    """The bit of a name; 0 if no node that was searched has it."""
    return _bits.get(name, 0)


def bit_of_kind(kind: type[Circuit]) -> int:
    """The bit of a kind; 0 if no node that was searched is of it."""
    return _bits.get(kind, 0)


def label_over(node: Circuit, children: tuple[Circuit, ...]) -> int:
    """The labels of a node of this kind and name over the children; 0 (unknown) if those of a child are."""
    kind, name = node.__class__, node.op_name
    bits = _bits.get(name)
    if bits is None:
        bits = _new_bit(name)  # type: ignore[arg-type]
    bits |= _bits.get(kind) or _new_bit(kind)
    for child in children:
        below = child._labels
        if not below:
            return 0
        bits |= below
    return bits


def labels(root: Circuit) -> int:
    """The labels at and below the node."""
    if root._labels:
        return root._labels
    stack = [root]
    while stack:
        node = stack[-1]
        if node._labels:
            stack.pop()
            continue
        pending = [child for child in node.children if not child._labels]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        node._labels = label_over(node, node.children)
    return root._labels


def names_in(bits: int) -> Iterator[str]:
    """The names that the bits stand for."""
    for number, digit in enumerate(reversed(bin(bits)[2:])):
        if digit == "1" and isinstance(name := _numbered[number], str):
            yield name


class NamesFound:
    """The bits of names that satisfy a predicate. It is asked about each name once.

    Args:
        accepts: the predicate.
    """

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self._accepts = accepts
        self._bits = self._asked = 0

    def within(self, below: int) -> int:
        """Those among the labels `below`."""
        new = below & ~self._asked
        if new:
            for name in names_in(new):
                if self._accepts(name):
                    self._bits |= _bits[name]
            self._asked |= new
        return self._bits & below
