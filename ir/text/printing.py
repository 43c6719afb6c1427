"""The text form of a circuit: a line a node, children indented, a repeated node by its name alone.

`'name' [shape] Kind args`. A number stands before a name that several nodes have, and instead of one
that a node lacks. An argument of a module ends in `! 'symbol name'`; a symbol that does not occur in the
module's body is written out there. Flags of the argument, if they are not the usual ones, follow
another `!`. Deeper than 40 levels the indentation stops growing and `~depth` stands before the line.
`tapeout.ir.text.parse` reads all of this back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count

from tapeout.ir.axis_index import Picks
from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn, new_traversal
from tapeout.ir.matching.states import State, per_child
from tapeout.ir.nodes.einsum import Einsum, write_axes
from tapeout.ir.nodes.index import Index
from tapeout.ir.nodes.module import Module, ModuleArgSpec
from tapeout.ir.quote import quote
from tapeout.ir.sizes import format_shape
from tapeout.ir.symbol import Symbol
from tapeout.ir.text.options import PrintOptions, colored

DEEPEST_INDENT = 40
CUT_OFF = " ..."
"""Ends the line of a node whose children are not printed."""

ARG_FLAGS = tuple(field.name for field in fields(ModuleArgSpec) if field.type == "bool")
"""What an argument spec says beside its symbol, each usually true."""

_FEW = 4
"""How many readers an excerpt shows; of what is below three times as many lines."""

_SHAPE_NEEDED = frozenset(("Array", "Scalar", "Symbol", "Index", "Scatter", "SetSymbolicShape"))
_FLIPPED = str.maketrans("└", "┌")


def indentation(depth: int) -> str:
    """What stands before the line of a node of that depth."""
    return "  " * depth if depth <= DEEPEST_INDENT else f"{'  ' * DEEPEST_INDENT}~{depth} "


def circuit_text(*circuits: Circuit, options: PrintOptions | None = None) -> str:
    """The circuits as text."""
    printer = _Printer(options or PrintOptions(), circuits)
    lines = list(printer.lines(circuits))
    if printer.options.leaves_on_top:
        lines = [line.translate(_FLIPPED) for line in reversed(lines)]
    return "\n".join(lines)


def excerpt(node: Circuit, roots: Sequence[Circuit]) -> list[str]:
    """The circuit around a node, in a few lines: who reads it, itself, and two levels below it."""
    readers = [each for each in postorder(*roots) if node in each.children]
    lines = [f"read by {reader!r}" for reader in readers[:_FEW]]
    below = circuit_text(node, options=PrintOptions(traversal=new_traversal(end_depth=3))).splitlines()
    lines += below[: 3 * _FEW]
    return lines + ["..."] * (len(below) > 3 * _FEW)


def note_around(error: BaseException, node: Circuit, roots: Sequence[Circuit]) -> None:
    """Adds the circuit around a node to an error that was raised while something was done to it."""
    error.add_note("\n".join(["around the node:", *(f"  {line}" for line in excerpt(node, roots))]))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is to be printed.

    Attributes:
        node: the node.
        depth: how far below its root.
        parent, number: of which node it is which child; (None, 0) for a root.
        stem: what leads to it: of its ancestors, and its own part.
        again: whether its children have been printed already, under an earlier place.
        cut_off: whether it has children and they are not printed, because the traversal ends.
        state: of the traversal; None for the end of a path, or if there is no traversal.
    """

    node: Circuit
    depth: int
    parent: Circuit | None
    number: int
    stem: tuple[str, str]
    state: State | None
    again: bool = False
    cut_off: bool = False

    @property
    def binds(self) -> ModuleArgSpec | None:
        """For an argument of a module, what it is bound to."""
        return self.parent.arg_specs[self.number - 1] if isinstance(self.parent, Module) and self.number else None

    @property
    def role(self) -> str:
        """What the node is to its parent, where this is not clear from the order."""
        if isinstance(self.parent, Einsum):
            return write_axes(self.parent.in_axes[self.number])
        names = {"Module": ("Spec",), "DiscreteVar": ("Values", "Probs and Group")}
        roles = names.get(self.parent.kind, ()) if self.parent is not None else ()
        return roles[self.number] if self.number < len(roles) else ""


def places(roots: tuple[Circuit, ...], traversal: IterativeMatcherIn = None) -> Iterator[Place]:
    """A place for each line: every node below the roots under each of its parents, its children under the first."""
    start = None if traversal is None else IterativeMatcher(traversal).state
    opened: set[Circuit] = set()
    stack = [Place(root, 0, None, 0, ("", ""), start) for root in reversed(roots)]
    while stack:
        place = stack.pop()
        node, again = place.node, place.node in opened
        following = None if place.state is None or again else place.state.step(node)[1]
        goes_on = bool(node.children) and not again and (start is None or following is not None)
        cut_off = bool(node.children) and not again and not goes_on
        yield Place(node, place.depth, place.parent, place.number, place.stem, place.state, again, cut_off)
        if not goes_on:
            continue
        opened.add(node)
        above, own = place.stem
        if place.parent is not None and place.depth <= DEEPEST_INDENT:
            above += "│ " if own.startswith("├") else "  "
        states = per_child(node, following)
        for i in reversed(range(len(node.children))):
            own = "└‣" if i == len(node.children) - 1 else "├‣"
            stack.append(Place(node.children[i], place.depth + 1, node, i, (above, own), states[i]))


class _Printer:
    def __init__(self, options: PrintOptions, roots: tuple[Circuit, ...]) -> None:
        self.options = options
        self.numbers = _numbers(roots, options.force_use_serial_numbers)
        self.printed: set[Circuit] = set()

    def lines(self, roots: tuple[Circuit, ...]) -> Iterator[str]:
        return map(self._line, places(roots, self.options.traversal))

    def _line(self, place: Place) -> str:
        options, node = self.options, place.node
        first = node not in self.printed
        self.printed.add(node)
        text = _definition(self._label(node), node, self.options) if first else self._label(node)
        if options.colorer is not None:
            text = colored(text, options.colorer(node))
        if place.binds is not None:
            text += self._binding(place.binds)
        if place.cut_off:
            text += CUT_OFF
        comments = [place.role] if options.comment_arg_names else []
        comments += [comment(node) for comment in options.commenters] if first else []
        if any(comments):
            text += " # " + "; ".join(filter(None, comments))
        return self._indent(place) + text

    def _indent(self, place: Place) -> str:
        if not self.options.arrows:
            return indentation(place.depth)
        return "".join(place.stem) + indentation(place.depth).lstrip(" ")

    def _label(self, node: Circuit) -> str:
        number, name = self.numbers.get(node), node.op_name
        quoted = None if name is None else quote(name) if self.options.bijection else name
        return " ".join(str(part) for part in (number, quoted) if part is not None)

    def _binding(self, spec: ModuleArgSpec) -> str:
        whole = self.options.bijection and self.options.traversal is None
        if whole and spec.symbol not in self.printed:
            self.printed.add(spec.symbol)
            text = f" ! {_definition(self._label(spec.symbol), spec.symbol, self.options)}"
        else:
            text = f" ! {self._label(spec.symbol)}"
        unusual = [f"not {flag}" for flag in ARG_FLAGS if not getattr(spec, flag)]
        return text + (f" ! {', '.join(unusual)}" if unusual else "")


def node_line(node: Circuit) -> str:
    """The line of one node, without its place among others."""
    return _definition(node.name, node, PrintOptions(bijection=False))


def _definition(label: str, node: Circuit, options: PrintOptions) -> str:
    shape = format_shape(node.shape)
    if options.shape_only_when_necessary and node.kind not in _SHAPE_NEEDED:
        shape = ""
    return " ".join(word for word in (label, shape, node.kind, _details(node, options)) if word)


def _details(node: Circuit, options: PrintOptions) -> str:
    if node.is_array() and not options.bijection:
        return ""
    if options.tensor_index_literal and isinstance(node, Index):
        parts = (str(i.values.tolist()) if isinstance(i, Picks) else str(i) for i in node.axis_indices)
        return f"[{','.join(parts)}]"
    return node._text()


def _numbers(roots: tuple[Circuit, ...], every: bool) -> dict[Circuit, int]:
    """A number for each node whose name is missing or not its own (or for every one), in the order of the text."""
    named: dict[str | None, Circuit] = {}
    unclear: set[str | None] = {None}
    order = list(_preorder(roots))
    for node in order:
        if every or named.setdefault(node.op_name, node) is not node:
            unclear.add(node.op_name)
    return dict(zip((node for node in order if node.op_name in unclear), count()))


def _preorder(roots: tuple[Circuit, ...]) -> Iterator[Circuit]:
    """Every node once, parents first, and the symbols that modules bind."""
    stack, seen = list(reversed(roots)), set[Circuit]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if isinstance(node, Module):
            bound: list[Symbol] = [spec.symbol for spec in node.arg_specs]
            stack.extend(reversed(bound))
        stack.extend(reversed(node.children))
