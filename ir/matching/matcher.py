"""`Matcher`: a yes-or-no question about one node, with what is known of the names that can answer yes.

Search never walks below a node under which nothing can match. Every node can carry an exact summary
of the names and kinds below it (see `tapeout.ir.labels`). A matcher turns itself into such a set as
well (`mask`), or None where it cannot tell.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import ParseError, TypeMismatchError
from tapeout.ir.fluent.finding import Finding
from tapeout.ir.labels import NamesFound, bit_of_kind, bit_of_name

if TYPE_CHECKING:
    from tapeout.ir.matching.iterative import IterativeMatcherIn

Atom = tuple[str, Callable[[Circuit], bool]]
"""One name, kind, regex, node or predicate: how it is written, and whether a node satisfies it."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Matches a node in whose name the pattern is found.

    Args:
        pattern: a regular expression, searched for anywhere in the name.
        escape_dot: whether a bare dot means a dot (names are full of them). `\\.` is the wildcard then,
            `\\.*` any text; without it, the dot and the escaped dot mean what they usually do.
    """

    pattern: str
    escape_dot: bool = True
    _compiled: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        text = re.sub(r"\\?.", _swapped_dot, self.pattern) if self.escape_dot else self.pattern
        try:
            object.__setattr__(self, "_compiled", re.compile(text))
        except re.error as error:
            raise ParseError(
                f"not a regular expression: {self.pattern!r} ({error})",
                hint="escape brackets that are meant literally",
            ) from None

    def call(self, s: str) -> bool:
        """Whether the pattern is found in the text."""
        return self._compiled.search(s) is not None


def _swapped_dot(token: re.Match[str]) -> str:
    return {".": r"\.", r"\.": "."}.get(token[0], token[0])


MatcherIn = Any
"""What a matcher can be made of: a Matcher, a name, a set of names, a Regex, a kind, a predicate, or a bool."""


class Matcher(Finding):
    """A yes-or-no question about a node. Several inputs mean "any of them".

    Args:
        inps: names, sets of names, `Regex`, kinds (`Module`), predicates, matchers, or bools.

    Raises:
        TypeMismatchError: for anything else.
    """

    __slots__ = ("_accepts", "_atoms", "_mask", "_text")

    _accepts: Callable[[Circuit], bool]
    _mask: Callable[[int], int | None]
    _text: str
    _atoms: Callable[[], Sequence[Atom]]

    def __init__(self, *inps: MatcherIn) -> None:
        parts = [_parse(inp) for inp in inps]
        names = [part for part in parts if isinstance(part, frozenset)]
        others = [part for part in parts if isinstance(part, Matcher)]
        if names:
            others.append(_names_matcher(frozenset().union(*names)))
        merged = others[0] if len(others) == 1 else _any(others)
        self._accepts, self._mask, self._text = merged._accepts, merged._mask, merged._text
        self._atoms = merged._atoms

    @classmethod
    def _new(
        cls,
        accepts: Callable[[Circuit], bool],
        mask: Callable[[int], int | None],
        text: str,
        atoms: Callable[[], Sequence[Atom]] | None = None,
    ) -> Matcher:
        """A matcher of its parts; without `atoms` it is one itself."""
        out = object.__new__(cls)
        out._accepts, out._mask, out._text = accepts, mask, text
        out._atoms = (lambda: ((text, accepts),)) if atoms is None else atoms
        return out

    def __call__(self, circuit: Circuit) -> bool:
        """Whether this very node matches."""
        return self._accepts(circuit)

    call = __call__

    def get_first(self, circuit: Circuit) -> Circuit | None:
        """A matching node, the one that a depth-first walk meets first; None if there is none."""
        from tapeout.ir.matching.search import matches

        return next(matches(circuit, self), None)

    def atoms(self) -> Sequence[Atom]:
        """The names, kinds, regexes, nodes and predicates of which each should be found: not those under a `~`."""
        return self._atoms()

    def mask(self, below: int) -> int | None:
        """Labels of which a matching node has one, among the labels `below`; None if it cannot tell."""
        return self._mask(below)

    @staticmethod
    def regex(pattern: str, escape_dot: bool = True) -> Matcher:
        return Matcher(Regex(pattern, escape_dot))

    @staticmethod
    def true_matcher() -> Matcher:
        return Matcher(True)

    @staticmethod
    def false_matcher() -> Matcher:
        return Matcher(False)

    @staticmethod
    def types(*types: type[Circuit]) -> Matcher:
        return Matcher(*types)

    @staticmethod
    def circuits(*circuits: Circuit) -> Matcher:
        """Matches these very nodes."""
        wanted = frozenset(circuits)
        return Matcher._new(
            wanted.__contains__,
            lambda _: None,
            f"circuits({len(wanted)})",
            lambda: [(repr(node), partial(operator.is_, node)) for node in wanted],
        )

    @staticmethod
    def match_any_found(finder: IterativeMatcherIn) -> Matcher:
        """Matches a node at or below which `finder` finds something."""
        from tapeout.ir.matching.search import are_any_found

        return Matcher(lambda node: are_any_found(node, finder))

    @staticmethod
    def match_any_child_found(finder: IterativeMatcherIn) -> Matcher:
        """Matches a node below which `finder` finds something."""
        from tapeout.ir.matching.iterative import restrict

        return Matcher.match_any_found(restrict(finder, start_depth=1))

    @staticmethod
    def any(*matchers: MatcherIn) -> Matcher:
        return Matcher(*matchers)

    @staticmethod
    def all(*matchers: MatcherIn) -> Matcher:
        parts = [Matcher(matcher) for matcher in matchers]
        return Matcher._new(
            lambda node: all(part._accepts(node) for part in parts),
            lambda below: _intersect([part._mask(below) for part in parts]),
            " & ".join(part._text for part in parts) or "True",
            lambda: [atom for part in parts for atom in part._atoms()],
        )

    def new_not(self) -> Matcher:
        """`~self`"""
        return Matcher._new(lambda node: not self._accepts(node), lambda _: None, f"~({self._text})", tuple)

    def new_and(self, *others: MatcherIn) -> Matcher:
        """`self & other & ...`"""
        return Matcher.all(self, *others)

    def new_or(self, *others: MatcherIn) -> Matcher:
        """`self | other | ...`"""
        return Matcher(self, *others)

    __invert__ = new_not

    def __and__(self, other: MatcherIn) -> Matcher:
        return self.new_and(other)

    def __or__(self, other: MatcherIn) -> Matcher:
        return self.new_or(other)

    __rand__, __ror__ = __and__, __or__

    def __bool__(self) -> bool:
        raise TypeMismatchError(
            f"a matcher has no truth value: {self._text}",
            hint="combine matchers with & | ~, not with and / or / not",
        )

    def __repr__(self) -> str:
        return f"Matcher({self._text})"


def _parse(inp: MatcherIn) -> Matcher | frozenset[str]:
    if isinstance(inp, Matcher):
        return inp
    if isinstance(inp, str):
        return frozenset((inp,))
    if isinstance(inp, bool):
        return Matcher._new(lambda _: inp, lambda below: None if inp else 0, str(inp))
    if isinstance(inp, (set, frozenset, list, tuple)) and all(isinstance(item, str) for item in inp):
        return frozenset(inp)
    if isinstance(inp, (set, frozenset, list, tuple)):
        return Matcher(*inp)
    if isinstance(inp, Regex):
        return _regex_matcher(inp)
    if isinstance(inp, type) and issubclass(inp, Circuit):
        return _kind_matcher(inp)
    if isinstance(inp, Circuit):
        return Matcher.circuits(inp)
    if callable(inp):
        return Matcher._new(lambda node: bool(inp(node)), lambda _: None, getattr(inp, "__name__", "predicate"))
    raise TypeMismatchError(
        f"not a matcher: {inp!r}",
        hint="a matcher is a name, a set of names, a Regex, a kind such as Module, a predicate, or another Matcher",
    )


def _names_matcher(names: frozenset[str]) -> Matcher:
    def mask(below: int) -> int:
        bits = 0
        for name in names:
            bits |= bit_of_name(name)
        return bits

    if len(names) == 1:
        (only,) = names
        return Matcher._new(lambda node: node.op_name == only, mask, repr(only))
    return Matcher._new(
        lambda node: node.op_name in names,
        mask,
        "{" + ", ".join(map(repr, sorted(names))) + "}",
        lambda: [(repr(name), _names_matcher(frozenset((name,)))._accepts) for name in sorted(names)],
    )


@lru_cache(maxsize=1 << 16)
def _regex_finds(regex: Regex, name: str) -> bool:
    return regex.call(name)


def _regex_matcher(regex: Regex) -> Matcher:
    found = NamesFound(partial(_regex_finds, regex))

    def accepts(node: Circuit) -> bool:
        return node.op_name is not None and _regex_finds(regex, node.op_name)

    return Matcher._new(accepts, found.within, f"Regex({regex.pattern!r})")


def _kind_matcher(kind: type[Circuit]) -> Matcher:
    def mask(below: int) -> int | None:
        return None if kind is Circuit else bit_of_kind(kind)

    return Matcher._new(lambda node: isinstance(node, kind), mask, kind.__name__)


def _any(parts: list[Matcher]) -> Matcher:
    def mask(below: int) -> int | None:
        bits = 0
        for part in parts:
            more = part._mask(below)
            if more is None:
                return None
            bits |= more
        return bits

    accepts = tuple(part._accepts for part in parts)
    return Matcher._new(
        lambda node: any(accept(node) for accept in accepts),
        mask,
        " | ".join(part._text for part in parts) or "False",
        lambda: [atom for part in parts for atom in part._atoms()],
    )


def _intersect(masks: list[int | None]) -> int | None:
    """Labels that suffice for a node that must match all: any one of the masks does; the smallest is best."""
    known = [mask for mask in masks if mask is not None]
    return min(known, key=int.bit_count, default=None)
