"""The HTML form of a circuit, for notebooks: a tree whose nodes fold, a repeated node as a link to where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import count
from typing import Any

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.matching.iterative import IterativeMatcherIn, traverse_until_depth
from tapeout.ir.text.options import CircuitCommenter, elements
from tapeout.ir.text.printing import CUT_OFF, Place, node_line, places

CircuitHtmlColorer = Callable[[Circuit], "str | None"]
"""A CSS colour for a node; None for the usual one."""

_KIND_COLORS = {
    "Array": "gray", "Scalar": "gray", "Symbol": "goldenrod", "Add": "mediumseagreen", "Einsum": "mediumorchid",
    "Rearrange": "royalblue", "Index": "indianred", "Concat": "darkcyan", "Scatter": "indianred",
    "GeneralFunction": "darkorange", "Module": "steelblue", "DiscreteVar": "olivedrab",
}  # fmt: skip
_SIZE_COLORS = ((10**6, "mediumseagreen"), (10**7, "goldenrod"), (10**8, "darkorange"), (10**9, "crimson"))
_STYLE = (
    "<style>.circuit{{font-family:monospace;white-space:nowrap;color:{color}}}"
    ".circuit details,.circuit div{{margin-left:1.2em}}.circuit a{{color:inherit}}</style>"
)
_documents = count()


@dataclass(frozen=True, slots=True)
class PrintHtmlOptions:
    """What is shown of a circuit in a notebook.

    Attributes:
        traversal: which nodes are unfolded at first.
        overall_traversal: which nodes are there at all; None for every one. Choose few of a large circuit.
        colorer: a function that gives a node's line a CSS colour.
        primary_color: the colour of the others.
        comment_arg_names: the axes behind an operand of an Einsum, "Spec" behind the body of a Module.
        commenters: functions whose text for a node is put behind it.
    """

    traversal: IterativeMatcherIn = traverse_until_depth(3)  # noqa: RUF009 (immutable)
    overall_traversal: IterativeMatcherIn = None
    colorer: CircuitHtmlColorer = lambda node: _KIND_COLORS.get(node.kind)
    primary_color: str = "gray"
    comment_arg_names: bool = False
    commenters: Sequence[CircuitCommenter] = ()

    def evolve(self, **changes: Any) -> PrintHtmlOptions:
        """The same options with some changed."""
        return replace(self, **changes)

    def repr(self, *circuits: Circuit) -> str:
        """The circuits as HTML, with all that it needs in it."""
        unfolded = {place.node for place in places(circuits, self.traversal) if not place.cut_off}
        document = f"c{next(_documents)}"
        lines = self._lines(circuits, unfolded, document)
        return _STYLE.format(color=escape(self.primary_color)) + f'<div class="circuit">{"".join(lines)}</div>'

    def _lines(self, circuits: tuple[Circuit, ...], unfolded: set[Circuit], document: str) -> Iterator[str]:
        numbers: dict[Circuit, str] = {}
        open_depths: list[int] = []
        for place in places(circuits, self.overall_traversal):
            while open_depths and place.depth <= open_depths[-1]:
                open_depths.pop()
                yield "</details>"
            node = place.node
            first = node not in numbers
            number = numbers.setdefault(node, f"{document}n{len(numbers)}")
            if not first:
                yield f'<div><a href="#{number}">{self._text(place, again=True)}</a></div>'
            elif place.cut_off or not node.children:
                yield f'<div id="{number}">{self._text(place)}{CUT_OFF if place.cut_off else ""}</div>'
            else:
                yield f'<details id="{number}"{" open" * (node in unfolded)}><summary>{self._text(place)}</summary>'
                open_depths.append(place.depth)
        yield "</details>" * len(open_depths)

    def _text(self, place: Place, again: bool = False) -> str:
        node = place.node
        text = escape((node.op_name or node_line(node)) if again else node_line(node))
        color = self.colorer(node)
        if color is not None:
            text = f'<span style="color:{escape(color)}">{text}</span>'
        if place.binds is not None:
            text += f" ! {escape(place.binds.symbol.name)}"
        comments = [place.role] if self.comment_arg_names else []
        comments += [] if again else [comment(node) for comment in self.commenters]
        return text + "".join(f" # {escape(comment)}" for comment in comments if comment)

    def print(self, *circuits: Circuit) -> None:
        """Shows the circuits in the cell of a notebook.

        Raises:
            UnsupportedError: if this is no notebook.
        """
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            raise _no_notebook() from None
        if get_ipython() is None:
            raise _no_notebook()
        display(HTML(self.repr(*circuits)))

    @staticmethod
    def print_depth(*circuits: Circuit, depth: int = 3) -> None:
        """Shows the circuits in the cell of a notebook, unfolded down to a depth."""
        PrintHtmlOptions(traversal=traverse_until_depth(depth)).print(*circuits)

    @staticmethod
    def type_colorer() -> CircuitHtmlColorer:
        """A colour for each kind."""
        return lambda node: _KIND_COLORS.get(node.kind)

    @staticmethod
    def size_colorer() -> CircuitHtmlColorer:
        """From green to red for nodes of more than 10^6, 10^7, 10^8 and 10^9 elements."""
        return lambda node: next((color for size, color in reversed(_SIZE_COLORS) if elements(node) >= size), None)

    @staticmethod
    def fixed_color(color: str) -> CircuitHtmlColorer:
        return lambda _: color


def _no_notebook() -> UnsupportedError:
    return UnsupportedError(
        "HTML is shown in notebooks, and this is none",
        hint="use print(), or write PrintHtmlOptions().repr(circuit) to a file and open it in a browser",
    )
