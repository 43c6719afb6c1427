"""What heads compute for any rows: attention, and what each head writes by itself."""

from __future__ import annotations

from uuid import uuid5

from tapeout.ir import Circuit, Einsum, GeneralFunction, Symbol
from tapeout.ir.nodes.kernels import Attention, Linear
from tapeout.ir.sizes import dim
from tapeout.tasks.patching.sweeps.compiled import Part, Pieces
from tapeout.tasks.patching.sweeps.cuts import NAMESPACE, AttentionLayer
from tapeout.tasks.patching.sweeps.subgraphs import ROWS

QUERIES, KEYS = dim("QUERIES"), dim("KEYS")


def attend(pieces: Pieces, layer: AttentionLayer) -> Part:
    """Attention over queries, keys, values and a mask of [QUERIES, KEYS]."""
    shapes = [child.shape for child in layer.node.children[:3]]
    symbols = [
        Symbol((ROWS, *shape[1:-2], size, shape[-1]), uuid5(NAMESPACE, name), name)
        for name, shape, size in zip(("q", "k", "v"), shapes, (QUERIES, KEYS, KEYS), strict=True)
    ]
    symbols.append(Symbol((QUERIES, KEYS), uuid5(NAMESPACE, "mask"), "mask"))
    node = GeneralFunction(*symbols, spec=Attention(layer.spec.scale, causal=False), name=None)
    return pieces.made(("attend", node), lambda: pieces.part([node], symbols))  # type: ignore[no-any-return]


def outputs(pieces: Pieces, layer: AttentionLayer) -> Part:
    """What each head writes for its weighted sum of values: [ROWS, HEADS, QUERIES, HIDDEN]."""
    node, z = heads_apart(layer)
    return pieces.made(("outputs", layer.number), lambda: pieces.part([node], [z]))  # type: ignore[no-any-return]


def heads_apart(layer: AttentionLayer) -> tuple[Circuit, Symbol]:
    """The layer's output product without its sum over heads, over a symbol [ROWS, HEADS, QUERIES, VALUE]."""
    spec: Linear = layer.product.spec  # type: ignore[assignment]
    weight = layer.product.children[1]
    contracted = [axis for axis in spec.x_axes if axis in spec.weight_axes]
    (hidden,) = (axis for axis in spec.weight_axes if axis not in contracted)
    rows, query, alone = range(max(spec.x_axes + spec.weight_axes) + 1, max(spec.x_axes + spec.weight_axes) + 4)
    head, value = contracted if len(contracted) > 1 else (alone, *contracted)  # one head's weight has no such axis
    shape = layer.node.shape
    z = Symbol((ROWS, shape[1], QUERIES, shape[-1]), uuid5(NAMESPACE, "z"), "z")
    product = Einsum(
        (z, (rows, head, query, value)), (weight, spec.weight_axes), out_axes=(rows, head, query, hidden), name=None
    )
    return product, z
