"""The errors of tapeout: one root, a kind for each sort of mistake, each message with facts and a hint."""

from __future__ import annotations

from collections.abc import Iterable


class TapeoutError(Exception):
    """Root of every error that tapeout raises on purpose.

    A message has up to three parts: what is wrong, the facts (the node, its shapes, a few lines of
    the circuit around it) and a hint that says what to do.

    Args:
        message: what is wrong, with the name of the node concerned.
        hint: what the reader can do about it.
        facts: further lines, shown between the message and the hint.
    """

    def __init__(self, message: str, *, hint: str, facts: Iterable[str] = ()) -> None:
        self.message = message
        self.hint = hint
        self.facts = tuple(facts)
        super().__init__("\n".join([message, *(f"  {fact}" for fact in self.facts), f"hint: {hint}"]))


class ShapeError(TapeoutError):
    """Shapes, ranks, axes or indices that do not fit together."""


class TypeMismatchError(TapeoutError):
    """Dtypes that do not mix, or a value of a kind that a node cannot take."""


class MatchError(TapeoutError):
    """A matcher that found nothing, or several nodes where one was asked for."""


class ModuleBindingError(TapeoutError):
    """Arguments that do not fit a module's symbols, unbound symbols, a captured symbol."""


class PassError(TapeoutError):
    """A pass whose requirements are not met, or that broke the circuit."""


class LoweringError(TapeoutError):
    """A circuit that a backend could not lower."""


class UnsupportedError(TapeoutError):
    """Something that is well formed and not supported, with the reason."""


class ParseError(TapeoutError):
    """A string (einsum, rearrange, circuit text) that cannot be read."""


class ModelError(TapeoutError):
    """A checkpoint, configuration or tokenizer that cannot be used."""


class DataError(TapeoutError):
    """A dataset that cannot be made or does not fit the model."""


class DeviceError(TapeoutError):
    """A device that has too little memory, or that failed."""


class ArtefactError(TapeoutError):
    """A saved artefact that is missing, altered or of another version."""
