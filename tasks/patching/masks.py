"""Patch masks as inputs: one circuit, and one artefact, for every intervention on a kind of part.

    circuit = masked(metric, "heads")
    compiled = compile(circuit, inputs=["tokens", "labels", "patch.tokens", "masks.heads"])

Each head is `(1 - m) * head + m * head on patch.tokens`, with m a row of the input `masks.heads` [LAYERS, HEADS, SEQ].
A mask of 1 at one head and position patches it there; of 0 everywhere nothing; between 0 and 1 it interpolates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tapeout.ir import Add, Circuit, Einsum, Index, Scalar, Symbol
from tapeout.ir.errors import DataError, MatchError
from tapeout.models.parts.names import HeadPart, NodeName, Site
from tapeout.models.parts.places import node_names
from tapeout.passes.base import Pass, register
from tapeout.tasks.patching.data import on_patch_data, patch_symbol
from tapeout.tasks.patching.expose import expose, rebuild

Maskable = Literal["heads", "mlps", "q", "k", "v"]


@register(
    "masked",
    kind="edit",
    requires="the circuit of one row, split by head, on the symbol `tokens`",
    ensures="parts are mixed from their values on `tokens` and on `patch.tokens`, by masks that are inputs",
)
@dataclass(frozen=True)
class Masked(Pass):
    """Mixes parts of a model from their values on the baseline and on the patch data.

    Args:
        kinds: the kinds of parts; see `masked`.
    """

    kinds: tuple[Maskable, ...] = ("heads",)

    def run(self, circuit: Circuit) -> Circuit:
        symbol = patch_symbol(circuit)
        length = symbol.shape[0]
        masks: dict[NodeName, Circuit] = {}
        for kind in self.kinds:
            masks |= _masks(kind, _parts(circuit, kind), length)
        exposed = expose(circuit, map(Site, masks))
        mask_of = {exposed.nodes[Site(name)][0]: mask for name, mask in masks.items()}

        patched = on_patch_data(exposed.circuit, symbol)

        def mixed(old: Circuit, new: Circuit, _: object) -> Circuit:
            return _mix(new, patched[old], mask_of[old]) if old in mask_of else new

        return rebuild(exposed.circuit, mixed)[exposed.circuit]


def masked(circuit: Circuit, *kinds: Maskable) -> Circuit:
    """The circuit with every part of some kinds patched as far as masks say.

    Args:
        circuit: of one row, split by head (`models.split_circuit`), with the symbol `tokens`.
        kinds: "heads", "mlps", or what every head reads: "q", "k", "v".

    Returns:
        The circuit of one row with the further symbols `patch.tokens` [SEQ] and, for each kind, `masks.heads`
        [LAYERS, HEADS, SEQ] or `masks.mlps` [LAYERS, SEQ]. As compiled inputs they have a batch axis in front.

    Raises:
        DataError: an unknown kind, none, or a circuit whose tokens are bound.
        MatchError: for a circuit without parts of the kind.
    """
    unknown = [kind for kind in kinds if kind not in get_args(Maskable)]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise DataError(
            f"masks for {', '.join(map(repr, kinds)) or 'nothing'}",
            hint=f"give one or several of {', '.join(get_args(Maskable))}, each once",
        )
    return Masked(kinds)(circuit)


def mask_name(kind: Maskable) -> str:
    """The name of the input that holds the masks of a kind of part."""
    return f"masks.{kind}"


def _parts(circuit: Circuit, kind: Maskable) -> list[NodeName]:
    names = node_names(circuit)
    heads = [name for name in names if name.kind == "head"]
    mlps = [name for name in names if name.kind == "mlp"]
    if not (mlps if kind == "mlps" else heads):
        raise MatchError(
            f"there are no {'MLPs' if kind == 'mlps' else 'heads'} below {circuit!r}",
            hint="split the model first (models.split_circuit); the names are listed by patching.node_names(circuit)",
        )
    if kind == "mlps":
        return mlps
    # A head's output is linear in z, which is smaller: mixed there, heads still share one product with the weights.
    part: HeadPart = "z" if kind == "heads" else kind
    return [NodeName("head", head.layer, head.head, part) for head in heads]


def _masks(kind: Maskable, parts: Sequence[NodeName], length: object) -> dict[NodeName, Circuit]:
    """For every part its row [SEQ] of the kind's masks."""
    places = {part: (part.layer or 0, part.head or 0) if part.kind == "head" else (part.layer or 0,) for part in parts}
    sizes = [1 + max(column) for column in zip(*places.values(), strict=True)]
    masks = Symbol.new_with_none_uuid((*sizes, length), mask_name(kind))  # type: ignore[arg-type]
    return {part: Index(masks, place, name=f"{part}.mask") for part, place in places.items()}


def _mix(baseline: Circuit, patch: Circuit, mask: Circuit) -> Add:
    """`(1 - mask) * baseline + mask * patch` [SEQ, ...]: exactly the one or the other for a mask of 0 or 1."""
    axes = tuple(range(baseline.rank))
    kept = Add.minus(Scalar(1.0, (), "one"), mask, name=None)
    terms = [
        Einsum((node, axes), (share, axes[:1]), out_axes=axes, name=None)
        for node, share in ((baseline, kept), (patch, mask))
    ]
    return Add(*terms, name=baseline.op_name)
