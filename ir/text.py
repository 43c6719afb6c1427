"""The text form of a circuit: a line a node, children indented, a repeated node by its name alone.

`'name' [shape] Kind args`. A number stands before a name that several nodes have, and instead of
one that a node lacks. A module's arguments end in `! 'symbol name'`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.iterative import IterativeMatcher
from tapeout.ir.module import Module
from tapeout.ir.sizes import format_shape


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


class _Printer:
    def __init__(self, options: PrintOptions, roots: tuple[Circuit, ...]) -> None:
        self.options = options
        self.numbers = _numbers(roots)

    def lines(self, roots: tuple[Circuit, ...]) -> list[str]:
        out: list[str] = []
        printed: set[Circuit] = set()
        start = None if self.options.traversal is None else self.options.traversal.state
        stack = [(root, 0, "", start) for root in reversed(roots)]
        while stack:
            node, depth, suffix, state = stack.pop()
            indent = "  " * depth
            if node in printed and node.children:
                out.append(f"{indent}{self.label(node)}{suffix}")
                continue
            first = node not in printed
            printed.add(node)
            out.append(f"{indent}{self.line(node) if first else self.label(node)}{suffix}")
            following = None if state is None else state.step(node)[1]
            if start is not None and following is None:
                if node.children:
                    out[-1] += " ..."
                continue
            for i in reversed(range(len(node.children))):
                below = following[i] if isinstance(following, tuple) else following
                stack.append((node.children[i], depth + 1, self._argument(node, i), below))
        return out

    def line(self, node: Circuit) -> str:
        details = node._text() if self.options.bijection or node.kind != "Array" else ""
        comments = [comment for commenter in self.options.commenters if (comment := commenter(node))]
        words = [self.label(node), format_shape(node.shape), node.kind, details]
        text = " ".join(word for word in words if word)
        return text + ("  # " + "; ".join(comments) if comments else "")

    def label(self, node: Circuit) -> str:
        number, name = self.numbers.get(node), node.op_name
        quoted = None if name is None else self._quote(name)
        return " ".join(str(part) for part in (number, quoted) if part is not None)

    def _quote(self, name: str) -> str:
        if not self.options.bijection:
            return name
        return "'" + name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

    def _argument(self, node: Circuit, child: int) -> str:
        if child == 0 or not isinstance(node, Module):
            return ""
        return f" ! {self._quote(node.arg_specs[child - 1].symbol.name)}"


def _numbers(roots: tuple[Circuit, ...]) -> dict[Circuit, int]:
    """A number for each node whose name is missing or not its own, in the order of the text."""
    by_name: dict[str | None, list[Circuit]] = defaultdict(list)
    for node in postorder(*roots):
        by_name[node.op_name].append(node)
    unclear = {node for name, nodes in by_name.items() if name is None or len(nodes) > 1 for node in nodes}
    numbers: dict[Circuit, int] = {}
    stack, seen = list(reversed(roots)), set[Circuit]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in unclear:
            numbers[node] = len(numbers)
        stack.extend(reversed(node.children))
    return numbers
