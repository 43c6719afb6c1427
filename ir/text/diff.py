"""What changed between two circuits: `diff_circuits`."""

from __future__ import annotations

from itertools import zip_longest
from typing import cast

from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.matching.iterative import IterativeMatcher, IterativeMatcherIn, new_traversal
from tapeout.ir.sizes import Shape
from tapeout.ir.text.options import PrintOptions, colored
from tapeout.ir.text.printing import CUT_OFF, indentation, node_line, places

Pair = tuple[Circuit | None, Circuit | None]
"""A node of the new circuit and one of the old; None where there is none."""


def diff_circuits(
    new: Circuit,
    old: Circuit,
    options: PrintOptions | None = None,
    require_child_count_same: bool = True,
    require_child_shapes_same: bool = False,
    require_name_same: bool = False,
    print_legend: bool = True,
    same_self_color: str | int | None = "Blue",
    new_color: str | int | None = "Green",
    removed_color: str | int | None = "Red",
) -> str:
    """Two circuits as one text, a line a node, from the root down to where they are the same.

    Lines begin with a sign: `~` for nodes that differ in their name or in what is below them, `-` for nodes of
    `old`, `+` for nodes of `new`, ` ` for parts that both have, which are not printed further unless `options` say so.

    Args:
        new, old: the circuits.
        options: its `traversal` says how far parts that both have are printed.
        require_child_count_same: whether nodes with different numbers of children are two, not one that changed.
        require_child_shapes_same: likewise with children of different shapes.
        require_name_same: likewise with different names.
        print_legend: whether the signs are explained in the last line.
        same_self_color, new_color, removed_color: of the lines, for a terminal; None for none.
    """

    def same_self(after: Circuit, before: Circuit) -> bool:
        return (
            after.kind == before.kind
            and after.attributes == before.attributes
            and not (require_child_count_same and len(after.children) != len(before.children))
            and not (require_child_shapes_same and _shapes(after) != _shapes(before))
            and not (require_name_same and after.op_name != before.op_name)
        )

    def part(node: Circuit, depth: int, traversal: IterativeMatcherIn) -> list[str]:
        below = places((node,), traversal)
        return [_line(p.node, depth + p.depth, p.again) + CUT_OFF * p.cut_off for p in below]

    shared = IterativeMatcher.term() if options is None or options.traversal is None else options.traversal
    common = set(postorder(new)).intersection(postorder(old))
    apart = new_traversal(term_early_at=common.__contains__)
    lines = list[str]()
    seen = set[Pair]()
    stack: list[tuple[Pair, int]] = [((new, old), 0)]
    while stack:
        pair, depth = stack.pop()
        (after, before), again = pair, pair in seen
        seen.add(pair)
        if after is None or before is None:
            sign, color = ("-", removed_color) if after is None else ("+", new_color)
            node = cast(Circuit, before if after is None else after)
            texts = [_line(node, depth, True)] if again else part(node, depth, apart)
        elif after is before:
            sign, color, texts = " ", None, part(after, depth, shared)
        elif same_self(after, before):
            was = "" if after.op_name == before.op_name else f" # was {before.op_name!r}"
            sign, color, texts = "~", same_self_color, [_line(after, depth, again) + was]
            if not again:
                children = list(zip_longest(after.children, before.children))
                stack.extend((both, depth + 1) for both in reversed(children))
        else:
            stack += [((after, None), depth), ((None, before), depth)]
            continue
        lines += [colored(f"{sign} {text}", color) for text in texts]
    if print_legend:
        lines.append("(~ renamed or changed below, + only in new, - only in old)")
    return "\n".join(lines)


def _shapes(node: Circuit) -> list[Shape]:
    return [child.shape for child in node.children]


def _line(node: Circuit, depth: int, again: bool) -> str:
    """The node's line, or if it was printed before its name alone."""
    return indentation(depth) + (node.op_name if again and node.op_name is not None else node_line(node))
