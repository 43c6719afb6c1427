"""Names of a split model's parts.

| name | what it is |
|---|---|
| `embeds` | the residual stream that the first layer reads |
| `a9.h6`, `m3` | the output of a head, of an MLP (without the output bias, which is a node of its own) |
| `a5.input`, `m5.input`, `final.input` | the residual stream before attention 5, MLP 5, the final norm |
| `a8.h6.q`, `.k` | the two factors of the head's scores: with bias, after rotary |
| `a8.h6.v` | what the head's attention weighs: with bias |
| `a8.h6.pattern` | the head's attention probabilities, a row a query |
| `a8.h6.z` | the values that the head has gathered, before its output weights |
| `a8.kv2.k`, `a8.kv2.v` | the key and value of a group of heads that share them; `a8.h6.k` is one head's read |
| `logits` | the logits |

A name may end in positions: `a9.h6@5`, `a9.h6@2,5`, `a9.h6@END`. The names that a split by position
gives, `a9_h6_t5` and `a9.h6_by_pos`, mean `a9.h6@5` and `a9.h6`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from tapeout.ir.errors import ParseError, ShapeError

END = -1
"""The last position."""

Kind = Literal["embeds", "attn_input", "head", "kv", "mlp_input", "mlp", "final_input", "logits"]
HeadPart = Literal["q", "k", "v", "pattern", "z"]

_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("embeds", r"embeds"),
    ("attn_input", r"a(?P<layer>\d+)\.input"),
    ("head", r"a(?P<layer>\d+)\.h(?P<head>\d+)(\.(?P<part>q|k|v|pattern|z))?"),
    ("kv", r"a(?P<layer>\d+)\.kv(?P<head>\d+)\.(?P<part>k|v)"),
    ("mlp_input", r"m(?P<layer>\d+)\.input"),
    ("mlp", r"m(?P<layer>\d+)"),
    ("final_input", r"final\.input"),
    ("logits", r"logits"),
)
_COMPILED = [(kind, re.compile(pattern)) for kind, pattern in _PATTERNS]
_POSITIONS = re.compile(r"(?P<name>[^@\s]+)(\s*@\s*(?P<positions>[^@]+))?")
_BY_POSITION = re.compile(r"(?P<name>.+)_t(?P<position>\d+)")

# Where in a layer a part is computed: data flows from the smaller to the larger.
_STAGE = {"attn_input": 0, "kv": 1, "mlp_input": 6, "mlp": 7}
_HEAD_STAGE = {"q": 2, "k": 2, "v": 2, "pattern": 3, "z": 4, None: 5}


@dataclass(frozen=True, slots=True)
class NodeName:
    """The name of a part of a model.

    Attributes:
        kind: what sort of part.
        layer: its layer; None for `embeds`, `final.input` and `logits`.
        head: the number of the head, or of the group of heads (`kv`).
        part: which part of the head; None for its output.
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    part: HeadPart | None = None

    def __str__(self) -> str:
        of_head = "" if self.part is None else f".{self.part}"
        match self.kind:
            case "attn_input":
                return f"a{self.layer}.input"
            case "head":
                return f"a{self.layer}.h{self.head}{of_head}"
            case "kv":
                return f"a{self.layer}.kv{self.head}{of_head}"
            case "mlp_input":
                return f"m{self.layer}.input"
            case "mlp":
                return f"m{self.layer}"
            case "final_input":
                return "final.input"
        return self.kind

    @property
    def order(self) -> tuple[float, float]:
        """Data flows from smaller to larger; parts of equal order do not reach one another."""
        if self.layer is None:
            return {"embeds": (-1.0, 0.0), "final_input": (float("inf"), 0.0)}.get(self.kind, (float("inf"), 1.0))
        return float(self.layer), _HEAD_STAGE[self.part] if self.kind == "head" else _STAGE[self.kind]

    @property
    def is_residual(self) -> bool:
        """Whether it is the residual stream at some place."""
        return self.kind in ("attn_input", "mlp_input", "final_input", "embeds")

    @property
    def owner(self) -> NodeName:
        """The head that a part belongs to; itself for anything else."""
        return NodeName("head", self.layer, self.head) if self.kind == "head" else self


@dataclass(frozen=True, slots=True)
class Site:
    """A part of a model at some positions.

    Attributes:
        name: the part.
        positions: the positions, counted from 0, or back from -1; None for all.
    """

    name: NodeName
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        at = "" if self.positions is None else "@" + ",".join("END" if p == END else str(p) for p in self.positions)
        return f"{self.name}{at}"

    def overlaps(self, other: Site) -> bool:
        """Whether two sites, their positions counted from 0, have a position of one part in common."""
        if self.name != other.name:
            return False
        return self.positions is None or other.positions is None or not {*self.positions}.isdisjoint(other.positions)

    def counted_from_0(self, length: int) -> Site:
        """The same site of a sequence of that length, its positions in order; as it is if one is outside."""
        if self.positions is None or not all(-length <= position < length for position in self.positions):
            return self
        return Site(self.name, tuple(sorted({position % length for position in self.positions})))

    def row_name(self, position: int) -> str:
        """The name of one position's node, as a split by position gives it: `a9_h6_t5`."""
        return f"{str(self.name).replace('.', '_')}_t{position}"


def as_positions(positions: object) -> tuple[int, ...] | None:
    """Positions given as one number or several; None stays, for all.

    Raises:
        ShapeError: for none, or what is no number. A tensor is refused: it looks like a position for each prompt.
    """
    if positions is None:
        return None
    given = tuple(positions) if isinstance(positions, Iterable) and not isinstance(positions, str) else (positions,)
    if not given or not all(isinstance(each, Integral) and not isinstance(each, bool) for each in given):
        raise ShapeError(
            f"positions are {positions!r}",
            hint="give a number from 0, END (patching.END), or several, [2, 5]; they are the same for every prompt "
            "(masked() takes others for each)",
        )
    return tuple(int(each) for each in given)


NameIn = str | NodeName | Site
"""What stands for a part of a model."""


def parse_name(name: NameIn) -> NodeName:
    """The part that a name stands for, whatever its position.

    Raises:
        ParseError: if it is no name of a part.
    """
    return parse_site(name).name


def parse_site(name: NameIn) -> Site:
    """The part and the positions that a name stands for.

    Raises:
        ParseError: if it is no name of a part, or its positions cannot be read.
    """
    if isinstance(name, Site):
        return name
    if isinstance(name, NodeName):
        return Site(name)
    found = _POSITIONS.fullmatch(name.strip()) if isinstance(name, str) else None
    if found is None:
        raise _not_a_name(name)
    text = found["name"].removesuffix("_by_pos")
    positions = None if found["positions"] is None else _positions(found["positions"], name)
    if (row := _BY_POSITION.fullmatch(text)) is not None and positions is None:
        text, positions = row["name"].replace("_", "."), (int(row["position"]),)
    if (plain := read_name(text)) is None:
        raise _not_a_name(name)
    return Site(plain, positions)


def read_name(text: str) -> NodeName | None:
    """The part of that very name, without positions; None if it is none."""
    for kind, pattern in _COMPILED:
        if (parts := pattern.fullmatch(text)) is not None:
            values = parts.groupdict()
            layer, head = (None if values.get(key) is None else int(values[key]) for key in ("layer", "head"))
            return NodeName(kind, layer, head, values.get("part"))  # type: ignore[arg-type]
    return None


def _positions(text: str, name: str) -> tuple[int, ...]:
    out = []
    for part in text.split(","):
        part = part.strip()
        if part != "END" and re.fullmatch(r"-?\d+", part) is None:
            raise ParseError(
                f"the position {part!r} of {name!r} cannot be read",
                hint="positions are numbers from 0, or END: a9.h6@3, a9.h6@2,5, a9.h6@END",
            )
        out.append(END if part == "END" else int(part))
    return tuple(out)


def _not_a_name(name: object) -> ParseError:
    return ParseError(
        f"{name!r} is no name of a part of a model",
        hint="use names such as a9.h6, m3, embeds, a5.input, m5.input, final.input, a8.h6.q, a8.h6.pattern, a8.kv2.k",
    )
