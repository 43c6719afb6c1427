"""Names in single quotes, on one line, whatever is in them."""

from __future__ import annotations

import re

QUOTED = r"'[^'\\]*(?:\\.[^'\\]*)*'"
"""A regular expression for a quoted name."""

_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_READ = {escape[1]: char for char, escape in _ESCAPES.items()}
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.?))", re.DOTALL)


def quote(name: str) -> str:
    """The name in quotes; what does not print is written as in a Python string."""
    if name.isprintable() and "'" not in name and "\\" not in name:
        return f"'{name}'"
    return "'" + "".join(map(_escaped, name)) + "'"


def unquote(quoted: str) -> str:
    """The name that `quote` made this of.

    Raises:
        ValueError: if it holds an escape that `quote` does not write.
    """
    inner = quoted[1:-1]
    return _ESCAPED.sub(_unescaped, inner) if "\\" in inner else inner


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescaped(match: re.Match[str]) -> str:
    short, middle, long, char = match.groups()
    if char is None:
        return chr(int(short or middle or long, 16))
    if char not in _READ:
        raise ValueError(f"unknown escape \\{char}")
    return _READ[char]
