"""The text form of a circuit: a line a node, children indented, a repeated node by its name alone.

`'name' [shape] Kind args`. A number stands before a name that several nodes have, and instead of one
that a node lacks. An argument of a module ends in `! 'symbol name'`; a symbol that does not occur in the
module's body is written out there. Flags of the argument, if they are not the usual ones, follow
another `!`. Deeper than 40 levels the indentation stops growing and `~depth` stands before the line.
`tapeout.ir.parse` reads all of this back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.iterative import IterativeMatcher, Next, State, new_traversal
from tapeout.ir.module import Module, ModuleArgSpec
from tapeout.ir.quote import quote
from tapeout.ir.sizes import format_shape
from tapeout.ir.symbol import Symbol

DEEPEST_INDENT = 40
CUT_OFF = " ..."
"""Ends the line of a node whose children are not printed."""

_FEW = 4
"""How many readers an excerpt shows; of what is below three times as many lines."""

ARG_FLAGS = tuple(field.name for field in fields(ModuleArgSpec) if field.type == "bool")
"""What an argument spec says beside its symbol, each usually true."""


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """What is printed of a circuit.

    Attributes:
        traversal: where printing goes on below a node (`new_traversal(end_depth=3)`); None for everywhere.
        bijection: quote names, print a hash for each array: what can be read back.
        commenters: functions whose text for a node is put behind it.
    """

    traversal: IterativeMatcher | None = None
    bijection: bool = True
    commenters: tuple[Callable[[Circuit], str], ...] = ()


def circuit_text(*circuits: Circuit, options: PrintOptions | None = None) -> str:
    """The circuits as text."""
    printer = _Printer(options or PrintOptions(), circuits)
    return "\n".join(printer.lines(circuits))


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
class _Place:
    """Where a node is to be printed.

    Attributes:
        binds: for an argument of a module, what it is bound to.
        state: of the traversal; None for the end of a path, or if there is no traversal.
    """

    node: Circuit
    depth: int
    binds: ModuleArgSpec | None
    state: State | None


class _Printer:
    def __init__(self, options: PrintOptions, roots: tuple[Circuit, ...]) -> None:
        self.options = options
        self.numbers = _numbers(roots)
        self.printed: set[Circuit] = set()

    def lines(self, roots: tuple[Circuit, ...]) -> Iterator[str]:
        start = None if self.options.traversal is None else self.options.traversal.state
        opened: set[Circuit] = set()
        stack = [_Place(root, 0, None, start) for root in reversed(roots)]
        while stack:
            place = stack.pop()
            node, again = place.node, place.node in opened
            following = None if place.state is None or again else place.state.step(node)[1]
            goes_on = bool(node.children) and not again and (start is None or following is not None)
            cut_off = bool(node.children) and not again and not goes_on
            yield self._line(place, cut_off)
            if goes_on:
                opened.add(node)
                stack.extend(_places_below(place, following))

    def _line(self, place: _Place, cut_off: bool) -> str:
        first = place.node not in self.printed
        self.printed.add(place.node)
        text = self._definition(place.node) if first else self._label(place.node)
        if place.binds is not None:
            text += self._binding(place.binds)
        if cut_off:
            text += CUT_OFF
        if first and (comments := [c for comment in self.options.commenters if (c := comment(place.node))]):
            text += "  # " + "; ".join(comments)
        if place.depth > DEEPEST_INDENT:
            return f"{'  ' * DEEPEST_INDENT}~{place.depth} {text}"
        return "  " * place.depth + text

    def _definition(self, node: Circuit) -> str:
        details = node._text() if self.options.bijection or node.kind != "Array" else ""
        words = (self._label(node), format_shape(node.shape), node.kind, details)
        return " ".join(word for word in words if word)

    def _label(self, node: Circuit) -> str:
        number, name = self.numbers.get(node), node.op_name
        quoted = None if name is None else quote(name) if self.options.bijection else name
        return " ".join(str(part) for part in (number, quoted) if part is not None)

    def _binding(self, spec: ModuleArgSpec) -> str:
        whole = self.options.bijection and self.options.traversal is None
        if whole and spec.symbol not in self.printed:
            self.printed.add(spec.symbol)
            text = f" ! {self._definition(spec.symbol)}"
        else:
            text = f" ! {self._label(spec.symbol)}"
        unusual = [f"not {flag}" for flag in ARG_FLAGS if not getattr(spec, flag)]
        return text + (f" ! {', '.join(unusual)}" if unusual else "")


def _places_below(place: _Place, following: Next) -> Iterator[_Place]:
    """The children's places, the last one first."""
    node = place.node
    specs = (None, *node.arg_specs) if isinstance(node, Module) else (None,) * len(node.children)
    for i in reversed(range(len(node.children))):
        state = following[i] if isinstance(following, tuple) else following
        yield _Place(node.children[i], place.depth + 1, specs[i], state)


def _numbers(roots: tuple[Circuit, ...]) -> dict[Circuit, int]:
    """A number for each node whose name is missing or not its own, in the order of the text."""
    named: dict[str | None, Circuit] = {}
    unclear: set[str | None] = {None}
    order = list(_preorder(roots))
    for node in order:
        if named.setdefault(node.op_name, node) is not node:
            unclear.add(node.op_name)
    numbered = (node for node in order if node.op_name in unclear)
    return {node: number for number, node in enumerate(numbered)}


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
