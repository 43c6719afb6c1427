"""What is printed of a circuit, and how: `PrintOptions` for text, and functions that choose colours and comments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn, new_traversal

CircuitColorer = Callable[[Circuit], "str | int | None"]
"""A colour for a node: a name of `COLORS`, a number of the terminal's 256 colours, or None."""

CircuitCommenter = Callable[[Circuit], str]
"""What is put behind a node; "" for nothing."""

COLORS = {"Red": 1, "Green": 2, "Yellow": 3, "Blue": 4, "Magenta": 5, "Cyan": 6, "White": 7}
_KIND_COLORS = {
    "Array": 8, "Scalar": 8, "Symbol": 3, "Add": 14, "Einsum": 13, "Rearrange": 12, "Index": 9, "Concat": 10,
    "Scatter": 9, "GeneralFunction": 5, "Module": 11, "Tag": 7, "DiscreteVar": 2, "SetSymbolicShape": 7,
}  # fmt: skip
_SIZE_COLORS = ((10**6, 2), (10**7, 3), (10**8, 208), (10**9, 1))


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """What is printed of a circuit.

    Text with the default options can be read back (`parse_circuit`), as can text whose other options are
    `force_use_serial_numbers`, `shape_only_when_necessary` and comments.

    Attributes:
        bijection: quote names, print a hash for each array.
        traversal: where printing goes on below a node (`new_traversal(end_depth=3)`); None for everywhere.
        shape_only_when_necessary: shapes of leaves and indices alone; the others follow from them.
        force_use_serial_numbers: a number before every node, not only before those whose names are not their own.
        comment_arg_names: the axes behind an operand of an Einsum, "Spec" behind the body of a Module.
        commenters: functions whose text for a node is put behind it.
        colorer: a function that gives a node's line a colour.
        arrows: lines that lead from a node to its children.
        leaves_on_top: the other way round, the root in the last line.
        tensor_index_literal: the positions in a tensor that indexes, in place of its hash.
    """

    bijection: bool = True
    traversal: IterativeMatcherIn = None
    shape_only_when_necessary: bool = False
    force_use_serial_numbers: bool = False
    comment_arg_names: bool = False
    commenters: Sequence[CircuitCommenter] = ()
    colorer: CircuitColorer | None = None
    arrows: bool = False
    leaves_on_top: bool = False
    tensor_index_literal: bool = False

    def evolve(self, **changes: Any) -> PrintOptions:
        """The same options with some changed."""
        return replace(self, **changes)

    def repr(self, *circuits: Circuit) -> str:
        """The circuits as text."""
        from tapeout.ir.text.printing import circuit_text

        return circuit_text(*circuits, options=self)

    def print(self, *circuits: Circuit) -> None:
        print(self.repr(*circuits))

    @staticmethod
    def repr_depth(*circuits: Circuit, end_depth: int) -> str:
        """The circuits as text, down to a depth that is not included."""
        return PrintOptions(bijection=False, traversal=new_traversal(end_depth=end_depth)).repr(*circuits)

    @staticmethod
    def print_depth(*circuits: Circuit, end_depth: int) -> None:
        """See `repr_depth`."""
        print(PrintOptions.repr_depth(*circuits, end_depth=end_depth))

    @staticmethod
    def debug_default() -> PrintOptions:
        """Two levels."""
        return PrintOptions(bijection=False, traversal=new_traversal(end_depth=2))

    @staticmethod
    def type_nest_default(circuit_type: type[Circuit], traversal: IterativeMatcherIn = None) -> PrintOptions:
        """Nodes of one kind that are nested in each other, and what they read."""
        nest = new_traversal(term_early_at=lambda node: not isinstance(node, circuit_type))
        both = nest if traversal is None else IterativeMatcher.all(nest, traversal)
        return PrintOptions(bijection=False, traversal=both, arrows=True, comment_arg_names=True)

    @staticmethod
    def einsum_nest_default(traversal: IterativeMatcherIn = None) -> PrintOptions:
        from tapeout.ir.nodes.einsum import Einsum

        return PrintOptions.type_nest_default(Einsum, traversal)

    @staticmethod
    def add_nest_default(traversal: IterativeMatcherIn = None) -> PrintOptions:
        from tapeout.ir.nodes.add import Add

        return PrintOptions.type_nest_default(Add, traversal)

    @staticmethod
    def type_colorer() -> CircuitColorer:
        """A colour for each kind."""
        return lambda node: _KIND_COLORS.get(node.kind)

    @staticmethod
    def size_colorer() -> CircuitColorer:
        """From green to red for nodes of more than 10^6, 10^7, 10^8 and 10^9 elements."""
        return lambda node: next((color for size, color in reversed(_SIZE_COLORS) if elements(node) >= size), None)

    @staticmethod
    def fixed_color(color: str | int | None) -> CircuitColorer:
        return lambda _: color

    @staticmethod
    def circuit_set_colorer(map: Mapping[str, Circuit | Sequence[Circuit]]) -> CircuitColorer:
        """A colour, by its name, for each of some nodes."""
        colors = {
            node: color for color, nodes in map.items() for node in ([nodes] if isinstance(nodes, Circuit) else nodes)
        }
        return colors.get

    @staticmethod
    def size_threshold_commenter(threshold: int = 400_000_000) -> CircuitCommenter:
        """The number of elements of nodes that have more."""
        return lambda node: f"{elements(node):,}" if elements(node) > threshold else ""

    @staticmethod
    def dtype_commenter(only_arrays: bool = False) -> CircuitCommenter:
        """The dtype, where it is known."""
        return lambda node: (node.dtype or "") if node.is_array() or not only_arrays else ""


def elements(node: Circuit) -> int:
    """The number of elements; axes of unknown size count as 1."""
    return prod(size for size in node.shape if isinstance(size, int))


def color_code(color: str | int) -> int:
    """The terminal's number of a colour.

    Raises:
        UnsupportedError: if there is no such colour.
    """
    code = COLORS.get(color) if isinstance(color, str) else color
    if code is None or not 0 <= code < 256:
        raise UnsupportedError(f"no colour {color!r}", hint=f"use {', '.join(COLORS)}, or a number below 256")
    return code


def colored(text: str, color: str | int | None) -> str:
    """The text in a colour, for a terminal."""
    return text if color is None else f"\x1b[38;5;{color_code(color)}m{text}\x1b[0m"
