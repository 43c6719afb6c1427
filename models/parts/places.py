"""How the parts of a split model are found in a circuit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from tapeout.ir import Circuit, Einsum, Matcher, Module
from tapeout.ir.errors import MatchError
from tapeout.ir.labels import labels, names_in
from tapeout.models.parts.names import HeadPart, NameIn, NodeName, parse_name, read_name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part is in a circuit.

    Attributes:
        name: the part.
        node: the node that is its value.
        reader: for parts of heads the node that reads it, in this head alone; else None, and all readers count.
        operand: which child of the reader it is.
    """

    name: NodeName
    node: Circuit
    reader: Circuit | None = None
    operand: int | None = None


def node_names(circuit: Circuit) -> list[NodeName]:
    """The parts of models that a circuit has under their names, in the order of data flow.

    Of a head only its output is listed; its q, k, v and pattern are there with it.
    """
    found: set[NodeName] = set()
    for name in names_in(labels(circuit)):
        if (stream := _RESIDUAL.fullmatch(name)) is not None:
            found.add(NodeName("mlp_input", int(stream["layer"])))
        elif name in _EMBEDS:
            found |= {NodeName("embeds"), NodeName("attn_input", 0)}
        elif (part := read_name(name.removesuffix("_by_pos"))) is not None:
            found.add(part)
    return sorted(found, key=lambda name: (name.order, name.head or 0, str(name)))


_EMBEDS = ("embeds", "tok_embeds")
_RESIDUAL = re.compile(r"b(?P<layer>\d+)\.resid\.a")


def _node_names_of(name: NodeName) -> tuple[str, ...]:
    """What the node of a part may be called, the first that is there counts."""
    match name.kind:
        case "embeds":
            return _EMBEDS
        case "attn_input" if name.layer == 0:
            return ("a0.input", *_EMBEDS)
        case "mlp_input":
            return (f"m{name.layer}.input", f"b{name.layer}.resid.a")
        case "head":
            head = str(name.owner)
            return (head, f"{head}_by_pos")
        case "mlp":
            return (str(name), f"{name}_by_pos")
    return (str(name),)


def locate(circuit: Circuit, names: Iterable[NodeName]) -> dict[NodeName, Place]:
    """Where the parts are in a circuit; one walk for all of them.

    Raises:
        MatchError: for a part that is not there (the message lists near ones), of which there are
            several, or whose head cannot be looked into.
    """
    wanted = dict.fromkeys(names)
    candidates = {name: _node_names_of(name) for name in wanted}
    by_name: dict[str, list[Circuit]] = {}
    for node in circuit.get(Matcher({text for texts in candidates.values() for text in texts})):
        by_name.setdefault(node.name, []).append(node)
    out = dict[NodeName, Place]()
    for name, texts in candidates.items():
        node = _the_one(circuit, name, next((by_name[text] for text in texts if text in by_name), []))
        out[name] = Place(name, node) if name.part is None or name.kind == "kv" else _part_of(name, node)
    return out


def present(circuit: Circuit, names: Iterable[NodeName]) -> list[NodeName]:
    """Those of the parts that are there."""
    out = []
    for name in names:
        try:
            locate(circuit, [name])
        except MatchError:
            continue
        out.append(name)
    return out


def find(circuit: Circuit, name: NameIn) -> Place:
    """Where a part is in a circuit; see `locate`."""
    parsed = parse_name(name)
    return locate(circuit, [parsed])[parsed]


def _the_one(circuit: Circuit, name: NodeName, found: list[Circuit]) -> Circuit:
    if len(found) == 1:
        return found[0]
    if found:
        raise MatchError(
            f"{len(found)} nodes below {circuit!r} are called {found[0].name!r}",
            hint="name parts in the circuit as it was split, before it was patched: a patched circuit holds "
            "a part once for each of its values",
        )
    present = [str(each) for each in node_names(circuit)]
    close = get_close_matches(str(name.owner), present, n=6, cutoff=0.5)
    if name.kind == "kv" and not any(".kv" in each for each in present):
        hint = f"the heads of this circuit do not share keys: use a{name.layer}.h{name.head}.{name.part}"
    elif present:
        hint = "all names are listed by patching.node_names(circuit)"
    else:
        hint = "split the model first (models.split_circuit); the names are listed by patching.node_names(circuit)"
    raise MatchError(
        f"there is no {name} below {circuit!r}",
        facts=[f"near names: {', '.join(close)}"] if close else [],
        hint=hint,
    )


_OPERANDS: Mapping[HeadPart, tuple[str | None, int | None, int | None]] = {
    "q": ("a.attn_scores_raw", 0, None),
    "k": ("a.attn_scores_raw", 1, None),
    "v": ("a.comb_v", None, 1),
    "pattern": ("a.comb_v", 0, None),
    "z": (None, 0, None),
}
"""For each part of a head the product that reads it (None: the head itself), and which axes of the product are its own.

The products are `qc,kc->qk`, `qk,kV->qV` and `sV,dV->sd`: a part is told by the axis that it shares with the result.
"""


def _part_of(name: NodeName, head: Circuit) -> Place:
    """The operand of one of the head's own products that is the part."""
    part = name.part
    if part is None:
        return Place(name, head)
    product, *own = _OPERANDS[part]
    reader = head if product is None else _nearest(head, product)
    if not isinstance(reader, Einsum) or len(reader.out_axes) < 2:
        why = "it is no product itself" if product is None else f"nothing of it is called {product!r}"
        raise MatchError(
            f"{head!r} shows no {part}: {why}",
            hint="substitute the head's modules first, as models.split_circuit does",
        )
    result = reader.out_axes[-2:]
    shared = tuple(None if axis is None else result[axis] for axis in own)
    matching = [
        operand
        for operand, axes in enumerate(reader.in_axes)
        if len(axes) >= 2
        and set(axes[-2:]) != set(result)
        and all(want is None or have == want for want, have in zip(shared, axes[-2:], strict=True))
    ]
    if len(matching) != 1:
        raise MatchError(
            f"{reader!r} of {head!r} has {len(matching)} operands that could be its {part}",
            hint="name parts of heads in the circuit as it was split",
        )
    return Place(name, reader.children[matching[0]], reader, matching[0])


def _nearest(root: Circuit, name: str) -> Circuit | None:
    """The node of that name the fewest steps below the root, not looking into modules."""
    level, seen = [root], {root}
    while level:
        for node in level:
            if node.op_name == name:
                return node
        below = [child for node in level if not isinstance(node, Module) for child in node.children]
        level = [child for child in dict.fromkeys(below) if child not in seen]
        seen.update(level)
    return None
