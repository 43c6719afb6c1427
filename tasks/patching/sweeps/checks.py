"""Variants that are none of a circuit are refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from tapeout.ir.errors import DataError, MatchError, ShapeError
from tapeout.models.parts.names import NodeName
from tapeout.tasks.patching.sweeps.cuts import Anatomy
from tapeout.tasks.patching.sweeps.groups import job_of
from tapeout.tasks.patching.sweeps.variants import Cell, Variant, Variants


def check(variants: Variants, anatomy: Anatomy) -> None:
    """Refuses variants that are none of this circuit, or that are there twice.

    Raises:
        DataError: for a variant in two cells, or one that cannot be made.
        MatchError: for a part that is not there, or a receiver that data does not flow to.
        ShapeError: for a position outside of the sequence.
    """
    if not variants.cells:
        raise DataError("the sweep has no variants", hint="give at least one, such as heads(circuit)")
    seen: dict[frozenset[Variant], Cell] = {}
    for cell, variant in variants.cells.items():
        for part in variant.parts:
            _check_positions(part, anatomy.length)
            for name in (part.what, part.into):
                if name is not None:
                    _check_part(name, anatomy)
            _check_kind(part)
        _check_together(variant, anatomy)
        other = seen.setdefault(frozenset(_counted_from_0(part, anatomy.length) for part in variant.parts), cell)
        if other != cell:
            raise DataError(
                f"the variant {variant} is in the sweep twice, at {list(other)} and {list(cell)}",
                hint="list each once; -1 is the last position",
            )


def _counted_from_0(variant: Variant, length: int) -> Variant:
    places = variant.positions
    return replace(variant, positions=None if places is None else tuple(sorted(place % length for place in places)))


def _check_together(variant: Variant, anatomy: Anatomy) -> None:
    """Parts that change together must be apart: each makes its own change of what is written to the stream."""
    parts = variant.parts
    if len(parts) == 1:
        return
    hint = "leave one out; or give the variant to sweep_edits, as an edit or as paths"
    for one, other in combinations(parts, 2):
        if one.into is not None or other.into is not None:
            raise DataError(f"{variant}: paths do not change together with other parts", hint=hint)
        if _cut_and_heads_meet(one.what, other.what, anatomy):
            raise DataError(f"{variant}: {one.what} and {other.what} overlap", hint=hint)


def _cut_and_heads_meet(one: NodeName, other: NodeName, anatomy: Anatomy) -> bool:
    """Whether two parts write to the residual stream at one cut, and are not of different heads."""
    if job_of(Variant(one), anatomy).cut != job_of(Variant(other), anatomy).cut:
        return False
    return one.is_residual or other.is_residual or not _heads(one, anatomy).isdisjoint(_heads(other, anatomy))


def _heads(name: NodeName, anatomy: Anatomy) -> set[int | None]:
    """The heads that a part belongs to; for an MLP none, by the name of None."""
    if name.kind != "kv" or name.head is None:
        return {name.head}
    layer = anatomy.layer(name)
    each = layer.heads // layer.groups
    return set(range(name.head * each, (name.head + 1) * each))


def _check_positions(variant: Variant, length: int) -> None:
    places = variant.positions
    if places is None:
        return
    outside = [place for place in places if not -length <= place < length]
    if outside or not places:
        raise ShapeError(
            f"{variant}: {f'position {outside[0]} is outside of the sequence' if outside else 'there is no position'}",
            hint=f"positions are 0 to {length - 1}, or from the end, END to {-length}",
        )
    if len({place % length for place in places}) < len(places):
        raise DataError(f"{variant} names a position twice", hint="name each once; -1 is the last position")


def _check_part(name: NodeName, anatomy: Anatomy) -> None:
    layers = {layer.number: layer for layer in anatomy.layers}
    if name.layer is not None and name.layer not in layers:
        raise MatchError(f"there is no {name}", hint=f"layers go from 0 to {max(layers)}")
    if name.kind in ("head", "kv") and name.layer is not None and name.head is not None:
        count = layers[name.layer].heads if name.kind == "head" else layers[name.layer].groups
        if name.head >= count:
            raise MatchError(f"there is no {name}", hint=f"they go from 0 to {count - 1}")
        if name.kind == "kv" and count == layers[name.layer].heads:
            raise MatchError(
                f"there is no {name}: the heads of this model do not share keys",
                hint=f"use a{name.layer}.h{name.head}.{name.part}",
            )


def _check_kind(variant: Variant) -> None:
    what, into = variant.what, variant.into
    if what.kind == "logits" or (into is not None and into.kind in ("logits", "embeds")):
        raise MatchError(f"{variant}: a sweep ends at the final norm", hint="patch final.input")
    if what.part == "pattern" and variant.with_ != "patch":
        raise DataError(
            f"{variant}: a pattern is taken from the patch data only, not set to {variant.with_!r}",
            hint="ablate the head's output, or its queries and keys",
        )
    if into is None:
        return
    if what.kind == "kv" or what.part is not None or what.kind in ("attn_input", "mlp_input", "final_input"):
        raise MatchError(
            f"{variant}: {what} writes nothing to the residual stream by itself",
            hint="senders are heads, MLPs and embeds: a5.h5 -> a8.h6.q",
        )
    if into.part in ("pattern", "z") or into.kind == "kv":
        raise MatchError(
            f"{variant}: {into} reads nothing of the residual stream by itself",
            hint="receivers are heads, their q, k and v, MLPs and residual streams: a5.h5 -> a8.h6.q",
        )
    if not what.order < into.order or (what.layer == into.layer and what.kind == into.kind):
        raise MatchError(
            f"{variant} runs against the direction of data flow", hint="the receiver must come after the sender"
        )
