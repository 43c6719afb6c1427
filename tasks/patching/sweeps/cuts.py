"""The anatomy of an optimised model: where its residual stream can be cut, and its attention layers.

A symbol is added to the output of every layer before the circuit is optimised. Where it ends up shows
the stream's cuts: whatever a change there does, it does through the one node that is the sum of all that
was written so far. The symbols are dropped again, and what is left is the optimised circuit itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import torch

from tapeout.compiler.config import from_environment
from tapeout.compiler.inputs import Input, find_inputs
from tapeout.compiler.optimise import optimise
from tapeout.ir import Add, Circuit, GeneralFunction, Index, Rearrange, Symbol, postorder
from tapeout.ir.axis_index import FULL
from tapeout.ir.errors import MatchError, ShapeError, UnsupportedError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.nodes.functions import Cast
from tapeout.ir.nodes.kernels import Attention, Linear
from tapeout.models.parts.names import NodeName
from tapeout.models.parts.places import locate, node_names
from tapeout.passes.execution import readers_of

_ATTENTION_RANK = 4
NAMESPACE = UUID("5b8f0c6e-6a55-4c8e-9a0b-3a3f0d1f7c10")


@dataclass(frozen=True, slots=True)
class Cut:
    """A place of the residual stream, behind everything that was written so far.

    Attributes:
        name: what was written last: `embeds`, `a3`, `m3`.
        node: the stream there, [BATCH, SEQ, HIDDEN] or, where only one position is computed, [BATCH, HIDDEN].
        added: what was written last, as nodes whose sum it is.
        position: the position that is computed, counted from the end (-1 is the last); None for all.
    """

    name: str
    node: Circuit
    added: tuple[Circuit, ...]
    position: int | None


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The attention of one layer.

    Attributes:
        number: the layer.
        node: the attention [BATCH, HEADS, QUERIES, VALUE] of queries, keys and values.
        product: the weight product that makes it the layer's output, a sum over heads.
        heads: how many.
        groups: how many keys and values they read.
        cut: the number of the cut that it writes to; it reads the one before.
    """

    number: int
    node: GeneralFunction
    product: GeneralFunction
    heads: int
    groups: int
    cut: int

    @property
    def spec(self) -> Attention:
        return self.node.spec  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """How many queries are computed."""
        return int(self.node.shape[-2])  # type: ignore[arg-type]

    def allowed(self, length: int) -> torch.Tensor:
        """Which keys each computed query attends to: [QUERIES, length], bool."""
        if self.spec.causal:
            return torch.ones(length, length, dtype=torch.bool).tril()
        if len(self.node.children) > 3:
            mask: Any = self.node.children[3]
            return mask.evaluate().bool().expand(self.rows, length)  # type: ignore[no-any-return]
        return torch.ones(self.rows, length, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """An optimised circuit and its parts.

    Attributes:
        root: the optimised circuit, a metric [BATCH].
        inputs: its inputs.
        cuts: the cuts of its residual stream, in the order of data flow.
        layers: its attention layers.
        length: how many positions a row has.
        origins: names for nodes.
    """

    root: Circuit
    inputs: tuple[Input, ...]
    cuts: tuple[Cut, ...]
    layers: tuple[AttentionLayer, ...]
    length: int
    origins: Mapping[Circuit, str]

    @property
    def is_causal(self) -> bool:
        """Whether a change at some position leaves what comes before it as it is, and the last position is read."""
        single = all(cut.position in (None, -1) for cut in self.cuts)
        last = len(self.layers) - 1
        return single and all(
            layer.spec.causal or (i == last and self.cuts[layer.cut].position is not None)
            for i, layer in enumerate(self.layers)
        )

    def layer(self, name: NodeName) -> AttentionLayer:
        """The layer of a head."""
        return next(layer for layer in self.layers if layer.number == name.layer)

    def cut_after(self, name: str) -> int:
        """The number of the cut behind the layer's output of that name."""
        return next(number for number, cut in enumerate(self.cuts) if cut.name == name)


@without_gc
def anatomy(circuit: Circuit, inputs: Sequence[str], dtype: torch.dtype) -> Anatomy:
    """The optimised circuit and where its parts are.

    Args:
        circuit: a metric of one prompt [], of a model that is split by head.
        inputs: names of its inputs.
        dtype: what it is computed in.

    Raises:
        MatchError: if the circuit has not the names of a split model.
        UnsupportedError: if its residual stream cannot be cut, or a layer's attention is not to be recognised.
    """
    if circuit.shape:
        raise ShapeError(
            f"a sweep takes a metric of one prompt with shape [], not {circuit!r}",
            hint="make one number a prompt, such as logit_diff_circuit(logits)",
        )
    marked, marks = _marked(circuit)
    rows, found = find_inputs([marked], [*inputs, *marks.values()], dtype)
    done = optimise(rows, found, 1, from_environment())
    batched = {each.batched: each.name for each in found[len(inputs) :]}
    names: dict[Circuit, str] = dict(zip(batched, marks, strict=True))
    length = int(next(iter(marks.values())).shape[0])  # type: ignore[arg-type]
    root, cuts = _cuts(done.roots[0], names, length)
    layers = tuple(_layers(root, cuts))
    return Anatomy(root, tuple(found[: len(inputs)]), cuts, layers, length, done.origins)


def _marked(circuit: Circuit) -> tuple[Circuit, dict[str, Symbol]]:
    """The circuit with a symbol added to the embeddings and to every layer's output, and the symbols by name."""
    numbers = sorted({name.layer for name in node_names(circuit) if name.kind == "head" and name.layer is not None})
    if not numbers:
        raise MatchError(
            f"{circuit!r} has no heads a0.h0, a0.h1, ...", hint="split the model first: models.split_circuit"
        )
    names = [NodeName("embeds"), *(NodeName("mlp", number) for number in numbers)]
    embeds, *mlps = (place.node for place in locate(circuit, names).values())
    attention = {node.name: node for node in circuit.get({f"a{number}" for number in numbers})}
    nodes = {"embeds": embeds}
    for number, mlp in zip(numbers, mlps, strict=True):
        nodes[f"a{number}"] = attention.get(f"a{number}") or circuit.get_unique(f"a{number}")
        nodes[f"m{number}"] = mlp
    marks = {
        name: Symbol(node.shape, uuid5(NAMESPACE, name), f"change of {name}", node.torch_dtype)
        for name, node in nodes.items()
    }
    by_name = {node.name: marks[name] for name, node in nodes.items()}
    return circuit.update(set(by_name), lambda node: Add(node, by_name[node.name], name=None)), marks


def _cuts(root: Circuit, marks: Mapping[Circuit, str], length: int) -> tuple[Circuit, tuple[Cut, ...]]:
    """The circuit without its marks, and the cuts that they showed."""
    order = list(postorder(root))
    plain = _without_marks(order, set(marks))
    readers = readers_of((root,))
    cuts = dict[Circuit, Cut]()
    for mark, name in marks.items():
        position = None
        node: Circuit = mark
        while len(readers.get(node, ())) == 1:
            (reader,) = readers[node]
            if isinstance(reader, Index) and position is None and not reader.has_tensor_axes():
                position = _only_position(reader, length)
            elif not isinstance(reader, Add) and not _is_cast(reader):
                break
            node = reader
        if mark not in readers:
            continue
        cuts[node] = Cut(name, node, (), position)
    by_position = {node: i for i, node in enumerate(order)}
    ordered = sorted(cuts.values(), key=lambda cut: by_position[cut.node])
    out = list[Cut]()
    for cut in ordered:
        before = out[-1].node if out else None
        stream = plain[cut.node]
        if stream is None:
            raise _no_chain(cut.name)
        out.append(Cut(cut.name, stream, tuple(_summands(stream, before)), cut.position))
    new = plain[root]
    if new is None:
        raise _no_chain("the root")
    return new, tuple(out)


def _without_marks(order: Sequence[Circuit], marks: set[Circuit]) -> dict[Circuit, Circuit | None]:
    """For every node the same without marks; None for what is made of marks alone."""
    out: dict[Circuit, Circuit | None] = {}
    for node in order:
        if node in marks:
            out[node] = None
            continue
        children = [out[child] for child in node.children]
        left = tuple(child for child in children if child is not None)
        if len(left) == len(children):
            out[node] = node.with_children(left)
        elif isinstance(node, Add) and left:
            out[node] = left[0] if len(left) == 1 and left[0].shape == node.shape else Add(*left, name=None)
        elif not left:
            out[node] = None
        else:
            raise _no_chain(repr(node))
    return out


def _is_cast(node: Circuit) -> bool:
    return isinstance(node, GeneralFunction) and isinstance(node.spec, Cast)


def _only_position(node: Index, length: int) -> int | None:
    """The position that an index of a mark [BATCH, SEQ, HIDDEN] takes, counted from the end."""
    entry = node.axis_indices[-2] if node.node.rank == 3 else FULL
    if not isinstance(entry, int):
        raise UnsupportedError(
            f"of the residual stream {node!r} is computed, which is neither all positions nor one",
            hint="read all positions, or one (END), in the metric",
        )
    return entry % length - length


def _summands(node: Circuit, before: Circuit | None) -> Iterable[Circuit]:
    """What the sum holds besides the stream before, at the same position or all."""
    if before is None or not isinstance(node, Add):
        return [node]
    rest, found = list[Circuit](), False
    stack = list(node.children)
    while stack:
        child = stack.pop()
        if child is before or (isinstance(child, Index) and child.node is before):
            found = True
        else:
            rest.append(child)
    if not found:
        raise _no_chain(repr(node))
    return rest


def _pieces(root: Circuit, cuts: Sequence[Cut]) -> list[list[Circuit]]:
    """For each cut the nodes that read it and lead to the next one, that included.

    Raises:
        UnsupportedError: if a way from a cut to the root leads past the next one.
    """
    numbers = {cut.node: number for number, cut in enumerate(cuts)}
    pieces: list[list[Circuit]] = [[] for _ in cuts]
    last: dict[Circuit, int] = {}  # for what depends on any cut, the last that it does
    for node in postorder(root):
        read = {last[child] for child in node.children if child in last}
        number = numbers.get(node)
        if len(read) > 1 or (number is not None and read != ({number - 1} if number else set())):
            raise _no_chain(cuts[min(read, default=0)].name)
        for before in read:
            pieces[before].append(node)
            last[node] = before
        if number is not None:
            last[node] = number
    return pieces


def _layers(root: Circuit, cuts: Sequence[Cut]) -> Iterable[AttentionLayer]:
    pieces, readers = _pieces(root, cuts), readers_of((root,))
    for i, cut in enumerate(cuts):
        if not cut.name.startswith("a"):
            continue
        number = int(cut.name[1:])
        found = [
            node for node in pieces[i - 1] if isinstance(node, GeneralFunction) and isinstance(node.spec, Attention)
        ]
        if len(found) != 1 or found[0].rank != _ATTENTION_RANK:
            raise UnsupportedError(
                f"layer a{number} has {len(found)} attention kernels where one stands for all of its heads",
                hint="sweep over the circuit as it was split, before it was patched",
            )
        node = found[0]
        above: Circuit = node
        while len(readers[above]) == 1 and isinstance(readers[above][0], Rearrange):
            above = readers[above][0]
        reader = readers[above][0]
        if not (isinstance(reader, GeneralFunction) and isinstance(reader.spec, Linear) and len(readers[above]) == 1):
            raise UnsupportedError(
                f"the heads of layer a{number} are read by {reader!r} and not by one product with their output weights",
                hint="sweep over the circuit as it was split, before it was patched",
            )
        keys = node.children[1]
        repeated = isinstance(keys, Rearrange) and keys.node.rank == keys.rank and keys.node.shape[2:] == keys.shape[2:]
        groups = int((keys.children[0] if repeated else keys).shape[1])  # type: ignore[arg-type]
        yield AttentionLayer(number, node, reader, int(node.shape[1]), groups, i)  # type: ignore[arg-type]


def _no_chain(where: str) -> UnsupportedError:
    return UnsupportedError(
        f"the residual stream cannot be cut at {where}: what comes before reaches the metric past it too",
        hint="sweep over the circuit as it was split, before it was patched; or give the variants as circuits",
    )
