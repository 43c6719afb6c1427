"""What each kind looks like in the text of a circuit: how a node is made of its line and of what stands below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tapeout.ir.circuit import Circuit
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import ParseError
from tapeout.ir.nodes.add import Add
from tapeout.ir.nodes.array import Array
from tapeout.ir.nodes.concat import Concat
from tapeout.ir.nodes.discrete_var import DiscreteVar
from tapeout.ir.nodes.einsum import Einsum
from tapeout.ir.nodes.general_function import GeneralFunction, function_by_name
from tapeout.ir.nodes.index import Index
from tapeout.ir.nodes.module import Module, ModuleArgSpec
from tapeout.ir.nodes.rearrange import Rearrange
from tapeout.ir.nodes.scalar import Scalar
from tapeout.ir.nodes.scatter import Scatter
from tapeout.ir.nodes.set_symbolic_shape import SetSymbolicShape
from tapeout.ir.nodes.tag import Tag
from tapeout.ir.quote import quote
from tapeout.ir.sizes import Shape
from tapeout.ir.symbol import Symbol
from tapeout.ir.text.parse_details import (
    TensorTable,
    check_content,
    read_axes,
    read_index,
    read_shape,
    read_spec,
    read_uuid,
)

FORM = "a line is 'name' [shape] Kind details, with a number before a name that several nodes have"


class Label(NamedTuple):
    """What a node is called in the text."""

    number: str | None
    name: str | None

    def __str__(self) -> str:
        return " ".join(part for part in (self.number, None if self.name is None else quote(self.name)) if part)


class Entry(NamedTuple):
    """A node as it is written: a reference if it has no kind."""

    label: Label
    shape: Shape | None
    kind: str | None
    details: str


class Parts(NamedTuple):
    """What a node is built of."""

    entry: Entry
    children: tuple[Circuit, ...]
    specs: tuple[ModuleArgSpec, ...]
    tensors: TensorTable

    @property
    def name(self) -> str | None:
        return self.entry.label.name

    @property
    def details(self) -> str:
        return self.entry.details

    @property
    def shape(self) -> Shape:
        if self.entry.shape is None:
            raise ParseError(f"a {self.entry.kind} needs its shape", hint=FORM)
        return self.entry.shape

    def words(self, least: int, most: int, form: str) -> list[str]:
        words = self.details.split()
        if not least <= len(words) <= most:
            raise ParseError(f"the details {self.details!r} cannot be read", hint=f"write {form}")
        return words

    def no_details(self) -> None:
        self.words(0, 0, f"nothing after {self.entry.kind}")


class Rule(NamedTuple):
    """How a node of a kind is built, and how many children it has (None for any number)."""

    build: Callable[[Parts], Circuit]
    arity: int | None


def _add(parts: Parts) -> Circuit:
    parts.no_details()
    return Add(*parts.children, name=parts.name)


def _array(parts: Parts) -> Circuit:
    digest, *dtype = parts.words(1, 2, "the hash and the dtype of its tensor")
    wanted = as_dtype(dtype[0]) if dtype else None
    made = Array(parts.tensors.get(digest, parts.shape, wanted), parts.name)
    check_content(digest, made.tensor_hash)
    return made


def _scalar(parts: Parts) -> Circuit:
    (number,) = parts.words(1, 1, "one number")
    return Scalar(float(number), parts.shape, parts.name)


def _symbol(parts: Parts) -> Circuit:
    uuid, *dtype = parts.words(1, 2, "the uuid and, if it is known, the dtype")
    return Symbol(parts.shape, read_uuid(uuid), parts.name, as_dtype(dtype[0]) if dtype else None)


def _einsum(parts: Parts) -> Circuit:
    (string,) = parts.words(1, 1, "one letter an axis, such as qd,cd->qc")
    left, arrow, right = string.partition("->")
    operands = left.split(",") if left or parts.children else []
    if not arrow or len(operands) != len(parts.children):
        raise ParseError(
            f"the einsum {string!r} does not fit {len(parts.children)} children",
            hint="write one part for each child before the arrow, such as qd,cd->qc",
        )
    return Einsum._build(parts.children, tuple(map(read_axes, operands)), read_axes(right), parts.name)


def _rearrange(parts: Parts) -> Circuit:
    return Rearrange(parts.children[0], read_spec(parts.details), parts.name)


def _index(parts: Parts) -> Circuit:
    return Index(parts.children[0], read_index(parts.details, parts.tensors), parts.name)


def _scatter(parts: Parts) -> Circuit:
    index, bracket, shape = parts.details.partition("] [")
    if not bracket:
        raise ParseError(f"the details {parts.details!r} cannot be read", hint="write [indices] [shape]")
    indices = read_index(index + "]", parts.tensors)
    return Scatter(parts.children[0], indices, read_shape("[" + shape), parts.name)


def _concat(parts: Parts) -> Circuit:
    (axis,) = parts.words(1, 1, "the axis")
    return Concat(*parts.children, axis=int(axis), name=parts.name)


def _general_function(parts: Parts) -> Circuit:
    return GeneralFunction(*parts.children, spec=function_by_name(parts.details), name=parts.name)


def _module(parts: Parts) -> Circuit:
    parts.no_details()
    if not parts.children:
        raise ParseError("a Module needs its body", hint="write the body below it, then each argument")
    return Module.build(parts.children[0], parts.specs, parts.children[1:], parts.name)


def _tag(parts: Parts) -> Circuit:
    (uuid,) = parts.words(1, 1, "the uuid")
    return Tag(parts.children[0], read_uuid(uuid), parts.name)


def _discrete_var(parts: Parts) -> Circuit:
    parts.no_details()
    return DiscreteVar(parts.children[0], parts.children[1], parts.name)


def _set_symbolic_shape(parts: Parts) -> Circuit:
    return SetSymbolicShape(parts.children[0], read_shape(parts.details), parts.name)


KINDS = {
    "Add": Rule(_add, None),
    "Array": Rule(_array, 0),
    "Concat": Rule(_concat, None),
    "DiscreteVar": Rule(_discrete_var, 2),
    "Einsum": Rule(_einsum, None),
    "GeneralFunction": Rule(_general_function, None),
    "Index": Rule(_index, 1),
    "Module": Rule(_module, None),
    "Rearrange": Rule(_rearrange, 1),
    "Scalar": Rule(_scalar, 0),
    "Scatter": Rule(_scatter, 1),
    "SetSymbolicShape": Rule(_set_symbolic_shape, 1),
    "Symbol": Rule(_symbol, 0),
    "Tag": Rule(_tag, 1),
}
LEAVES = frozenset(kind for kind, rule in KINDS.items() if rule.arity == 0)
