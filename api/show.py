"""`tapeout show`: prints a saved circuit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tapeout.compiler.saving import CIRCUITS
from tapeout.ir import Array, Circuit, Matcher, PrintOptions, Regex, circuit_text, new_traversal, postorder
from tapeout.ir.errors import MatchError


def show(
    path: Annotated[
        Path, typer.Argument(help="A folder that Circuit.save wrote, or an artefact: then the optimised circuit.")
    ],
    depth: Annotated[int, typer.Option(min=-1, help="How many levels below the top to print; -1 for all of them.")] = 3,
    types: Annotated[bool, typer.Option("--types", help="Print the dtype of every node.")] = False,
    names: Annotated[
        str | None, typer.Option(help="Print only the nodes whose names this regular expression finds.")
    ] = None,
) -> None:
    """Print a saved circuit: names, shapes and kinds, and what it is made of.

    A line is a node, its children are indented; `...` ends a line whose children are too deep to be
    printed, and a node that occurs again is printed by its name alone.

    Example: `tapeout show ioi.tapeout --depth 5`, after `tapeout compile --out ioi.tapeout`
    """
    circuit = Circuit.load(path / CIRCUITS if (path / CIRCUITS).is_dir() else path)
    tops = (circuit,) if names is None else _named(circuit, names)
    options = PrintOptions(
        traversal=None if depth < 0 else new_traversal(end_depth=depth + 1),
        commenters=(_type_of,) if types else (),
    )
    print(circuit_text(*tops, options=options))
    print(f"\n{_summary(circuit)}")


def _named(circuit: Circuit, pattern: str) -> tuple[Circuit, ...]:
    """The nodes whose names the pattern finds, those nearest to the top first.

    Raises:
        MatchError: if there are none.
        ParseError: if it is no regular expression.
    """
    matcher = Matcher(Regex(pattern))
    found = [node for node in postorder(circuit) if matcher(node)]
    if not found:
        raise MatchError(
            f"no node of {circuit!r} has a name that {pattern!r} finds",
            hint="print the circuit without --names to see its names; a dot stands for itself",
        )
    return tuple(reversed(found))


def _type_of(node: Circuit) -> str:
    return node.dtype or "undetermined"


def _summary(circuit: Circuit) -> str:
    """How many nodes of which kinds, the free symbols, and the size of the constants."""
    nodes = list(postorder(circuit))
    counts = Counter(node.kind for node in nodes).most_common()
    tensors = {node.tensor_hash: node.value.nbytes for node in nodes if isinstance(node, Array)}
    free = sorted(f"{symbol.name!r} {list(symbol.shape)}" for symbol in circuit.free_symbols)
    lines = [
        f"{len(nodes)} nodes: " + ", ".join(f"{count} {kind}" for kind, count in counts),
        f"{sum(tensors.values()) / 1e6:.1f} MB of constants in {len(tensors)} tensors",
    ]
    return "\n".join(lines + ([f"free symbols: {', '.join(free)}"] if free else []))
