"""What a pass is: a named, typed function from a circuit to a circuit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from tapeout.ir import Circuit
from tapeout.ir.errors import PassError
from tapeout.ir.gc_pause import without_gc

Kind = Literal["preserving", "edit"]


@dataclass(frozen=True)
class Pass:
    """A rewrite of circuits. Its fields are its options.

    Attributes:
        name: how it is asked for, in pipelines and on the command line.
        kind: "preserving" (the same value for every input) or "edit" (changes the value on purpose).
        requires: what a circuit must be like, in words; `check` enforces it.
        ensures: what the result is like, in words.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[Kind] = "preserving"
    requires: ClassVar[str] = "any circuit"
    ensures: ClassVar[str] = ""

    def check(self, circuit: Circuit) -> None:
        """Raises PassError if the circuit is not as the pass requires."""

    def run(self, circuit: Circuit) -> Circuit:
        """The rewritten circuit; the very same object if nothing changed."""
        raise PassError(f"pass {self.name!r} has no rewrite", hint="override Pass.run")

    def __call__(self, circuit: Circuit) -> Circuit:
        self.check(circuit)
        return without_gc(self.run)(circuit)

    @classmethod
    def summary(cls) -> str:
        """The first line of its documentation."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Its options with their types."""
        return {field.name: field.type for field in fields(cls)}


PASSES: dict[str, type[Pass]] = {}
"""Every pass by name."""

_P = TypeVar("_P", bound=type[Pass])


def register(
    name: str, *, kind: Kind = "preserving", requires: str = "any circuit", ensures: str
) -> Callable[[_P], _P]:
    """Enters a pass into `PASSES` under a name, with its contract."""

    def enter(cls: _P) -> _P:
        cls.name, cls.kind, cls.requires, cls.ensures = name, kind, requires, ensures
        PASSES[name] = cls
        return cls

    return enter
