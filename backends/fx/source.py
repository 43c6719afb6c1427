"""The code of a GraphModule as a person would write it: to read, not to run."""

from __future__ import annotations

import re

_FREED = re.compile(r";  (?:\w+ = )+None$")
_ATTRIBUTE = re.compile(r"^ +(\w+) = (self\.\w+)$")
_WORD = re.compile(r"(?<![.\w])\w+\b(?! = )")
_SHORT = (("torch._C._nn.", "F."), ("torch.nn.functional.", "F."), ("torch.functional.", "torch."))


def readable(code: str) -> str:
    """The code without what frees values and what only gives an attribute another name.

    Args:
        code: `GraphModule.code`.
    """
    lines = [_FREED.sub("", line.rstrip()) for line in code.strip().splitlines()]
    names: dict[str, str] = {}
    out = []
    for line in lines:
        attribute = _ATTRIBUTE.match(line)
        if attribute is not None:
            names[attribute[1]] = attribute[2]
            continue
        for long, short in _SHORT:
            line = line.replace(long, short)
        if not line.startswith("def "):
            line = _WORD.sub(lambda word: names.get(word[0], word[0]), line)
        if line.strip():
            out.append(line)
    return "\n".join(out) + "\n"
