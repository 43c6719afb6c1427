"""Reading the text form of circuits: `parse_circuit(circuit_text(c), tensors) is c`.

The text is read line by line; a node is built when the lines below it have been. Nothing is recursive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import ParseError, TapeoutError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.nodes.module import ModuleArgSpec
from tapeout.ir.quote import QUOTED, unquote
from tapeout.ir.sizes import format_shape
from tapeout.ir.symbol import Symbol
from tapeout.ir.text.parse_details import BRACKETED, Tensors, TensorTable, read_shape
from tapeout.ir.text.parse_kinds import FORM, KINDS, LEAVES, Entry, Label, Parts
from tapeout.ir.text.printing import ARG_FLAGS, CUT_OFF

_WRONG = (TapeoutError, ValueError, RuntimeError)
"""What building a node from a wrong text raises (torch's errors are RuntimeErrors)."""

_UNTIL = rf"[^'!#]*(?:{QUOTED}[^'!#]*)*"
_LINE = re.compile(rf"( *)(?:~([0-9]{{1,9}}) )?({_UNTIL})(?:!({_UNTIL}))?(?:!({_UNTIL}))?(?:#.*)?", re.DOTALL)
_ENTRY = re.compile(
    rf"(?:([0-9]{{1,18}})(?: +|$))?({QUOTED})?(?: *({BRACKETED}))?(?: *([A-Z][A-Za-z]*)(?: +(.*))?)?",
    re.DOTALL,
)


def parse_circuit(text: str, tensors: Tensors | None = None) -> Circuit:
    """The circuit that has this text.

    Args:
        text: what `circuit_text` gives for one circuit.
        tensors: the tensors of its Arrays and of indices, by content hash (see `tensors_of`).

    Raises:
        ParseError: if it is no such text, a tensor is missing or has another content, or there is not
            exactly one circuit. It names the line.
    """
    circuits = parse_circuits(text, tensors)
    if len(circuits) != 1:
        raise ParseError(
            f"the text holds {len(circuits)} circuits, not one",
            hint="use parse_circuits for several; only the first line of a circuit is not indented",
        )
    return circuits[0]


@without_gc
def parse_circuits(text: str, tensors: Tensors | None = None) -> list[Circuit]:
    """The circuits that have this text; see `parse_circuit`."""
    return _Parser(TensorTable(tensors or {})).read(text)


@dataclass(slots=True)
class _Node:
    """A node whose lines are being read.

    Attributes:
        made: the node, once it is known: at once for a leaf or a repeated node.
        specs: what the children after the first are bound to, if it is a module.
    """

    line: int
    text: str
    entry: Entry
    made: Circuit | None = None
    children: list[Circuit] = field(default_factory=list)
    specs: list[ModuleArgSpec] = field(default_factory=list)
    begun: int = 0


class _Parser:
    def __init__(self, tensors: TensorTable) -> None:
        self.tensors = tensors
        self.named: dict[Label, Circuit] = {}
        self.open: list[_Node] = []
        self.roots: list[Circuit] = []

    def read(self, text: str) -> list[Circuit]:
        for number, line in enumerate(text.split("\n"), start=1):
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                self._read_line(number, line.rstrip())
        self._close(0)
        return self.roots

    def _read_line(self, number: int, text: str) -> None:
        if text.endswith(CUT_OFF):
            raise _at(number, text, ParseError("it is cut off", hint="print the circuit without a traversal"))
        match = _LINE.fullmatch(text)
        if match is None:
            raise _at(number, text, ParseError("it cannot be read", hint=f"{FORM}; check the quotes"))
        indent, depth_text, body, symbol, flags = match.groups()
        depth = len(indent) // 2 if depth_text is None else int(depth_text)
        self._close(depth)
        try:
            self._check_depth(depth, len(indent))
            node = _Node(number, text, _read_entry(body))
            self._check_place(symbol is not None)
            self._make_early(node)
            if symbol is not None:
                self._enter_binding(symbol, flags)
        except _WRONG as error:
            raise _at(number, text, error) from error
        self.open.append(node)

    def _check_depth(self, depth: int, indent: int) -> None:
        if indent % 2 or depth > len(self.open):
            raise ParseError(
                f"{indent} spaces ({depth} levels) of indentation under a line of level {len(self.open) - 1}",
                hint="a child is indented by two spaces more than its parent",
            )

    def _check_place(self, has_symbol: bool) -> None:
        """Checks that a node can stand here, and counts it as a child."""
        needs_symbol = False
        if self.open:
            parent = self.open[-1]
            if parent.made is not None:
                raise ParseError(
                    f"the node above it, {parent.entry.label}, has no children of its own here",
                    hint="a repeated node, an Array, a Scalar and a Symbol have no lines below them",
                )
            needs_symbol = parent.entry.kind == "Module" and parent.begun > 0
            parent.begun += 1
        if has_symbol != needs_symbol:
            raise ParseError(
                "an argument of a module lacks its symbol"
                if needs_symbol
                else "it is bound to a symbol but is no argument",
                hint="below a Module stands first its body, then each argument, ending in ! 'symbol name'",
            )

    def _make_early(self, node: _Node) -> None:
        """Resolves a reference; builds a leaf, because its own line may refer to it."""
        if node.entry.kind is None:
            node.made = self._referred(node.entry.label)
        elif node.entry.kind in LEAVES:
            node.made = self._build(node)

    def _enter_binding(self, symbol: str, flags: str | None) -> None:
        entry = _read_entry(symbol)
        found = self._build(_Node(0, symbol, entry)) if entry.kind else self._referred(entry.label)
        if not isinstance(found, Symbol):
            raise ParseError(f"{found!r} is no Symbol", hint="an argument is bound to a Symbol")
        self.open[-1].specs.append(ModuleArgSpec(found, **_read_flags(flags)))

    def _referred(self, label: Label) -> Circuit:
        found = self.named.get(label)
        if found is not None:
            return found
        if any(node.entry.label == label for node in self.open):
            raise ParseError(f"{label} contains itself", hint="circuits have no cycles")
        raise ParseError(
            f"no node above is called {label}",
            hint=f"a node is written in full where it occurs first ({FORM})",
        )

    def _close(self, depth: int) -> None:
        """Builds the open nodes of this depth and deeper: all lines below them have been read."""
        while len(self.open) > depth:
            node = self.open.pop()
            try:
                made = node.made if node.made is not None else self._build(node)
            except _WRONG as error:
                raise _at(node.line, node.text, error) from error
            (self.open[-1].children if self.open else self.roots).append(made)

    def _build(self, node: _Node) -> Circuit:
        entry = node.entry
        rule = KINDS.get(entry.kind or "")
        if rule is None:
            raise ParseError(f"there is no kind {entry.kind!r}", hint=f"kinds are {', '.join(KINDS)}")
        if rule.arity is not None and len(node.children) != rule.arity:
            raise ParseError(
                f"{entry.kind} has {len(node.children)} children",
                hint=f"it takes {rule.arity}, each on a line of its own, indented by two spaces more",
            )
        made = rule.build(Parts(entry, tuple(node.children), tuple(node.specs), self.tensors))
        if entry.shape is not None and entry.shape != made.shape:
            raise ParseError(
                f"the text says {format_shape(entry.shape)}, but the shape is {format_shape(made.shape)}",
                hint="correct the shape or what it comes from; only nodes without children need one",
            )
        self._name(entry.label, made)
        return made

    def _name(self, label: Label, node: Circuit) -> None:
        if label == Label(None, None):
            return
        if label in self.named:
            raise ParseError(
                f"two nodes are called {label}",
                hint="put different numbers before the names: 0 'x' ..., 1 'x' ...",
            )
        self.named[label] = node


def _at(line: int, text: str, error: Exception) -> ParseError:
    """The error with its place."""
    shown = text.strip() if len(text) < 500 else text.strip()[:500] + "..."
    if isinstance(error, TapeoutError):
        return ParseError(f"line {line}: {error.message}", facts=[shown, *error.facts], hint=error.hint)
    return ParseError(f"line {line}: {error}", facts=[shown], hint=FORM)


def _read_entry(text: str) -> Entry:
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise ParseError("it cannot be read", hint=FORM)
    number, quoted, shape, kind, details = match.groups()
    label = Label(number, None if quoted is None else unquote(quoted))
    if kind is None and (shape is not None or label == Label(None, None)):
        raise ParseError("the kind is missing", hint=FORM)
    return Entry(label, None if shape is None else read_shape(shape), kind, details or "")


def _read_flags(text: str | None) -> dict[str, bool]:
    words = [] if text is None else [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word.removeprefix("not ") not in ARG_FLAGS or not word.startswith("not ")]
    if unknown:
        raise ParseError(
            f"an argument cannot be {', '.join(map(repr, unknown))}",
            hint=f"flags are {', '.join(f'not {flag}' for flag in ARG_FLAGS)}",
        )
    return {word.removeprefix("not "): False for word in words}
