"""What a sweep is over: variants of a model, each at its place in a grid with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, get_args

from tapeout.ir import Circuit
from tapeout.ir.errors import DataError, MatchError
from tapeout.models.parts.names import END, NameIn, NodeName, as_positions, parse_name, parse_site
from tapeout.models.parts.places import find, node_names

With = Literal["patch", "zero", "mean"]
"""What a part takes instead of its value: its value on the patch data, zero, or its mean over the patch data."""

Part = Literal["out", "q", "k", "v", "pattern"]
Read = Literal["q", "k", "v"]
Label = int | str
Cell = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of a model.

    Attributes:
        what: the part that takes another value.
        positions: at which positions; None for all.
        into: the only part that sees it; None for everything that reads it.
        with_: what it takes instead.
        also: what else changes in the same run.

    Raises:
        DataError: for another `with_`.
    """

    what: NodeName
    positions: tuple[int, ...] | None = None
    into: NodeName | None = None
    with_: With = "patch"
    also: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        if self.with_ not in get_args(With):
            raise DataError(f"with_ is {self.with_!r}", hint='use "patch", "zero" or "mean"')

    def __str__(self) -> str:
        at = "" if self.positions is None else "@" + ",".join(map(str, self.positions))
        into = "" if self.into is None else f" -> {self.into}"
        return " + ".join([f"{self.what}{at}{into}", *map(str, self.also)])

    @property
    def parts(self) -> tuple[Variant, ...]:
        """The changes of one part each."""
        return (replace(self, also=()), *self.also)

    @staticmethod
    def of(what: NameIn, into: NameIn | None = None, with_: With = "patch") -> Variant:
        """A variant from names: `Variant.of("a5.h3@END", into="a8.h6.q")`.

        Raises:
            ParseError: if a name cannot be read.
            DataError: if positions of the receiver are named.
        """
        site, receiver = parse_site(what), None if into is None else parse_site(into)
        if receiver is not None and receiver.positions is not None:
            raise DataError(
                f"{site} -> {receiver}: a sweep sees the receiver at all positions",
                hint="name those of the sender alone, or use path_patch or sweep_edits",
            )
        return Variant(site.name, site.positions, None if receiver is None else receiver.name, with_)

    @staticmethod
    def together(variants: Iterable[Variant]) -> Variant:
        """One variant that changes what all of them change.

        Raises:
            DataError: without any.
        """
        parts = [part for variant in variants for part in variant.parts]
        if not parts:
            raise DataError("a variant changes no part", hint='name at least one: ["a9.h6", "a9.h9"]')
        return replace(parts[0], also=tuple(parts[1:]))


@dataclass(frozen=True, slots=True)
class Variants:
    """A grid of variants; some of its cells may be empty.

    Attributes:
        dims: the names of the grid's axes.
        coords: the labels along each.
        cells: the variants by their place in the grid.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[Label]]
    cells: Mapping[Cell, Variant] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.coords[dim]) for dim in self.dims)

    def __len__(self) -> int:
        return len(self.cells)


def listed(variants: Iterable[Variant | str] | Variant | str) -> Variants:
    """Any variants, in a row: the axis `variant` has their texts as labels.

    Raises:
        DataError: if one is listed twice, or is none.
        ParseError: if a name cannot be read.
    """
    several = variants if isinstance(variants, Iterable) and not isinstance(variants, str | Mapping) else [variants]
    found = [each if isinstance(each, Variant) else _read(each) for each in several]
    if len(set(found)) < len(found):
        twice = sorted({str(each) for each in found if found.count(each) > 1})
        raise DataError(f"variants are listed twice: {', '.join(twice)}", hint="list each once")
    return Variants(("variant",), {"variant": [str(v) for v in found]}, {(i,): v for i, v in enumerate(found)})


def sets(named: Mapping[str, Iterable[NameIn]], with_: With = "patch") -> Variants:
    """Sets of parts that change together: axis `variant`, with the names of the sets.

    Args:
        named: by name, the parts: `{"name movers": ["a9.h6@END", "a9.h9@END", "a10.h0@END"]}`.
        with_: what they take instead.

    Raises:
        DataError: for a set without parts.
    """
    cells: dict[Cell, Variant] = {
        (i,): Variant.together(Variant.of(part, with_=with_) for part in ([parts] if isinstance(parts, str) else parts))
        for i, parts in enumerate(named.values())
    }
    return Variants(("variant",), {"variant": list(named)}, cells)


def _read(text: object) -> Variant:
    if not isinstance(text, str):
        raise DataError(
            f"{text!r} is no variant",
            hint='give names, ["a5.h3@END", "a5.h5 -> a8.h6.k"], or heads(circuit), edges(circuit), ...; parts by '
            "label go to sets, edits to sweep_edits",
        )
    return Variant.together(map(_read_part, text.split("+")))


def _read_part(text: str) -> Variant:
    what, *into = text.split("->")
    if len(into) > 1:
        raise DataError(
            f"{text!r} has parts on the way", hint="a sweep takes one edge; longer paths go to sweep_edits, by label"
        )
    return Variant.of(what.strip(), into[0].strip() if into else None)


def heads(
    circuit: Circuit,
    part: Part = "out",
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    with_: With = "patch",
) -> Variants:
    """Each head by itself: axes `layer` and `head`.

    Args:
        circuit: the split model.
        part: which part of the heads changes: the output, q, k, v or the pattern.
        layers: which layers; all by default.
        positions: at which positions it changes, one or several, all at once; all by default.
        with_: what it takes instead.

    Raises:
        DataError: for another part, or another `with_`.
        MatchError: for a circuit that is not split by head, or a layer that it does not have.
        ShapeError: for positions that are no numbers.
    """
    rows, columns = _heads_of(circuit, layers)
    at = as_positions(positions)
    return _grid(
        {"layer": rows, "head": columns}, lambda layer, head: Variant(_head(layer, head, part), at, None, with_)
    )


def heads_by_position(
    circuit: Circuit,
    part: Part = "out",
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    with_: With = "patch",
) -> Variants:
    """Each head at each position by itself: axes `layer`, `head` and `position`. Args: see `heads`."""
    rows, columns = _heads_of(circuit, layers)
    places = list(as_positions(positions) or range(_length(circuit)))
    return _grid(
        {"layer": rows, "head": columns, "position": places},
        lambda layer, head, place: Variant(_head(layer, head, part), (place,), None, with_),
    )


def mlps(
    circuit: Circuit,
    layers: Sequence[int] | None = None,
    by_position: bool = False,
    positions: int | Sequence[int] | None = None,
    with_: With = "patch",
) -> Variants:
    """Each MLP by itself: axis `layer`, and `position` if `by_position`. Args: see `heads`."""
    rows = [name.layer for name in node_names(circuit) if name.kind == "mlp" and name.layer is not None]
    rows = sorted(rows if layers is None else layers)
    named = {layer: NodeName("mlp", layer) for layer in rows}
    return _by_layer(circuit, named, by_position, positions, with_)


def residual_streams(
    circuit: Circuit,
    by_position: bool = False,
    positions: int | Sequence[int] | None = None,
    with_: With = "patch",
) -> Variants:
    """The residual stream before each attention and MLP and at the end: axis `layer`, and `position` if `by_position`.

    Args: see `heads`.
    """
    named = {str(name): name for name in node_names(circuit) if name.is_residual and name.kind != "embeds"}
    return _by_layer(circuit, named, by_position, positions, with_)


def _by_layer(
    circuit: Circuit,
    named: Mapping[Any, NodeName],
    by_position: bool,
    positions: int | Sequence[int] | None,
    with_: With,
) -> Variants:
    """Variants of the parts, by label; at each position by itself, or at all of them at once."""
    at, labels = as_positions(positions), list(named)
    if not by_position:
        return _grid({"layer": labels}, lambda label: Variant(named[label], at, None, with_))
    places = list(at or range(_length(circuit)))
    return _grid(
        {"layer": labels, "position": places}, lambda label, place: Variant(named[label], (place,), None, with_)
    )


def direct(
    circuit: Circuit,
    positions: int | Sequence[int] | None = (END,),
    into: NameIn = "final.input",
    layers: Sequence[int] | None = None,
    with_: With = "patch",
) -> Variants:
    """What each head writes directly to one place, everything between frozen: axes `layer` and `head`.

    Args:
        circuit: the split model.
        positions: at which positions; the last by default, None for all.
        into: what reads it: `final.input`, `a8.h6.q`, `m5.input`, ...
        layers: whose heads; by default all before that place.
        with_: what the heads take instead.
    """
    receiver = parse_name(into)
    rows, columns = _heads_of(circuit, layers)
    rows = [layer for layer in rows if layers is not None or NodeName("head", layer, 0).order < receiver.order]
    at = as_positions(positions)
    return _grid(
        {"layer": rows, "head": columns},
        lambda layer, head: Variant(NodeName("head", layer, head), at, receiver, with_),
    )


def edges(
    circuit: Circuit,
    part: Read = "q",
    positions: int | Sequence[int] | None = (END,),
    senders: Iterable[NameIn] | None = None,
    receivers: Iterable[NameIn] | None = None,
    with_: With = "patch",
) -> Variants:
    """What each head writes directly to the queries (keys, values) of each head of a later layer.

    Axes `sender` and `receiver`; cells against the direction of data flow are empty.

    Args:
        circuit: the split model.
        part: which read of the receiver.
        positions: at which positions of the sender's output; the last by default, None for all.
        senders: heads, MLPs or `embeds`; all heads by default.
        receivers: heads; all by default.
        with_: what the senders take instead.
    """
    if part not in get_args(Read):
        raise _no_part(part, Read)
    layers, columns = _heads_of(circuit, None)
    everyone = [NodeName("head", layer, head) for layer in layers for head in columns]
    sending = everyone if senders is None else [parse_name(name) for name in senders]
    receiving = everyone if receivers is None else [parse_name(name).owner for name in receivers]
    at = as_positions(positions)
    cells = dict[Cell, Variant]()
    for (i, sender), (j, receiver) in product(enumerate(sending), enumerate(receiving)):
        into = NodeName("head", receiver.layer, receiver.head, part)
        if sender.order[0] < into.order[0]:
            cells[i, j] = Variant(sender, at, into, with_)
    coords = {"sender": [str(name) for name in sending], "receiver": [str(name) for name in receiving]}
    return Variants(("sender", "receiver"), coords, cells)


def _grid(coords: Mapping[str, Sequence[Any]], make: Callable[..., Variant]) -> Variants:
    """A variant in every cell, made of the cell's labels."""
    axes = [list(enumerate(labels)) for labels in coords.values()]
    cells: dict[Cell, Variant] = {}
    for places in product(*axes):
        cells[tuple(number for number, _ in places)] = make(*(label for _, label in places))
    return Variants(tuple(coords), coords, cells)


def _head(layer: int, head: int, part: Part) -> NodeName:
    if part not in get_args(Part):
        raise _no_part(part, Part)
    return NodeName("head", layer, head, None if part == "out" else part)


def _no_part(part: object, known: object) -> DataError:
    return DataError(f"part is {part!r}", hint=f"use one of {', '.join(get_args(known))}")


def _heads_of(circuit: Circuit, layers: Sequence[int] | None) -> tuple[list[int], list[int]]:
    names = [name for name in node_names(circuit) if name.kind == "head" and name.part is None]
    if not names:
        raise MatchError(
            f"{circuit!r} has no heads a0.h0, a0.h1, ...", hint="split the model first: models.split_circuit"
        )
    present = sorted({name.layer for name in names if name.layer is not None})
    missing = sorted(set(layers or ()) - set(present))
    if missing:
        raise MatchError(
            f"there are no layers {', '.join(map(str, missing))}", hint=f"layers go from 0 to {present[-1]}"
        )
    heads = sorted({name.head for name in names if name.head is not None})
    return list(present if layers is None else layers), heads


def _length(circuit: Circuit) -> int:
    return int(find(circuit, "embeds").node.shape[0])  # type: ignore[arg-type]
