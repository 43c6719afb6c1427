"""Rules: for every kind of node and every function how a backend lowers it, or why it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tapeout.ir import Array, Circuit, DiscreteVar, GeneralFunction, Module, SetSymbolicShape, Symbol, Tag
from tapeout.ir.errors import LoweringError, TapeoutError, UnsupportedError
from tapeout.ir.text.printing import excerpt, note_around

R = TypeVar("R")


class Lowers(Protocol):
    """The state of a lowering, as far as every backend has it."""

    @property
    def backend(self) -> str:
        """The backend's name."""

    def name_of(self, node: Circuit) -> str:
        """What a node is called in messages."""

    def value(self, node: Circuit) -> Any:
        """What has become of a node that was lowered before."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The rule of what is not lowered, and why."""

    reason: str
    hint: str | None = None

    def __call__(self, low: Lowers, node: Circuit) -> Any:
        raise UnsupportedError(
            f"{low.backend} cannot lower {node!r}: {self.reason}", hint=self.reason if self.hint is None else self.hint
        )


def lowered(low: Lowers, rules: Mapping[type[Circuit], Any], node: Circuit, roots: Sequence[Circuit]) -> Any:
    """What the rule of the node's kind makes of it.

    Raises:
        UnsupportedError: for a kind or function without a rule.
        LoweringError: for anything else that goes wrong, with the node.
    """
    try:
        rule = rules.get(type(node))
        if rule is None:
            raise UnsupportedError(f"{low.backend} has no rule for {node.kind} ({node!r})", hint="add it to RULES")
        return rule(low, node)
    except TapeoutError as error:
        note_around(error, node, roots)
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise LoweringError(
            f"lowering {low.name_of(node)} ({node!r}) to {low.backend} failed: {error}",
            facts=excerpt(node, roots),
            hint="report it with the circuit's text",
        ) from error


def function_rule(low: Lowers, rules: Mapping[object, R], node: GeneralFunction) -> R:
    """The rule of the node's function, which is listed by name or by class.

    Raises:
        UnsupportedError: if there is none.
    """
    spec = node.spec
    rule = rules.get(spec.name) or rules.get(type(spec))
    if rule is None:
        raise UnsupportedError(
            f"{low.backend} has no rule for the function {spec.name}", hint="add it to FUNCTION_RULES"
        )
    return rule


def _free(low: Lowers, node: Symbol) -> Any:
    raise LoweringError(f"{node!r} is free and no input", hint="name it in `inputs`, or bind it")


def _pass_on(low: Lowers, node: Circuit) -> Any:
    return low.value(node.children[0])


COMMON_RULES: dict[type[Circuit], Any] = {
    Array: Refused("an Array is a constant and no call"),
    Symbol: _free,
    Tag: _pass_on,
    SetSymbolicShape: _pass_on,
    Module: Refused("modules are inlined before lowering"),
    DiscreteVar: Refused("sample random variables first"),
}
"""The kinds that every backend treats alike."""
