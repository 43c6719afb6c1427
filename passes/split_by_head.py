"""Split by head: the sum over a head axis becomes a sum of heads, each a node with a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from tapeout.ir import Add, Circuit, Einsum, Index, Matcher, Module, Rearrange
from tapeout.ir.axis_index import axis_index, positions
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register

Groups = list[tuple[Any, str]]
SplitConfig = Literal["full"] | Set[int] | Mapping[int, Groups]
"""All layers; a set of layers; or for each layer a list of (index, name), each index an int, slice or tensor."""

_LAYER = re.compile(r"a(\d+)")


@register(
    "split_by_head",
    requires="weights pushed down to the heads (To.ATTN_HEAD_MLP_NORM)",
    ensures="in the layers asked for, a3 is a sum of the nodes a3.h0, a3.h1, ...",
)
@dataclass(frozen=True)
class SplitByHead(Pass):
    """An attention layer that sums over a head axis becomes a sum of single heads (or of groups of heads).

    Args:
        split: "full", a set of layers, or groups: `{layer: [(index, name), ...]}`.
    """

    split: SplitConfig = "full"

    def check(self, circuit: Circuit) -> None:
        if not circuit.are_any_found(Matcher.regex(r"^a\d+.heads$")):
            raise PassError(
                f"split_by_head found no unsplit heads (a0.heads, ...) below {circuit!r}",
                hint="push weights down to the heads first: To.ATTN_HEAD_MLP_NORM",
            )

    def run(self, circuit: Circuit) -> Circuit:
        layers = {
            int(m.group(1)): node
            for node in circuit.get(Matcher.regex(r"^a\d+$"))
            if (m := _LAYER.fullmatch(node.name))
        }
        groups = _groups(self.split, layers)
        unknown = sorted(set(groups) - set(layers))
        if unknown:
            raise PassError(f"no attention layers {unknown} to split", hint=f"there are layers {sorted(layers)}")
        table = {layers[number].name: parts for number, parts in groups.items()}
        return circuit.update(Matcher(frozenset(table)), lambda node: _split(node, table[node.name]))


def _groups(split: SplitConfig, layers: dict[int, Circuit]) -> dict[int, Groups]:
    if isinstance(split, Mapping):
        return dict(split)
    chosen = layers if split == "full" else split
    return {number: _single_heads(layers[number]) if number in layers else [] for number in chosen}


def _single_heads(layer: Circuit) -> Groups:
    return [(head, f"h{head}") for head in range(_head_count(layer))]


def _head_count(layer: Circuit) -> int:
    return int(_heads(layer).shape[0])  # type: ignore[arg-type]


def _heads(layer: Circuit) -> Module:
    heads = layer.children[0] if isinstance(layer, Einsum) and len(layer.children) == 1 else None
    if not isinstance(heads, Module) or not heads.name.endswith(".heads"):
        raise PassError(
            f"{layer!r} is no sum over a head axis",
            hint="it was split already, or its weights are not pushed down to the heads",
        )
    return heads


def _split(layer: Circuit, groups: Groups) -> Circuit:
    heads, count = _heads(layer), _head_count(layer)
    taken = [positions(axis_index(index), count, f"the heads of {layer.name!r}") for index, _ in groups]
    _check_partition(layer, [name for _, name in groups], taken, count)
    terms = []
    for (given, name), members in zip(groups, taken, strict=True):
        index = axis_index(given)
        if isinstance(index, int):
            index = members[0]
        nodes = tuple(
            _take(node, index, name) if node.rank > spec.symbol.rank else node
            for spec, node in zip(heads.arg_specs, heads.nodes, strict=True)
        )
        part = heads.with_nodes(nodes).rename(f"{layer.name}.{name}")
        if part.rank == heads.rank:  # several heads: their sum
            part = Einsum((part.rename(f"{layer.name}.{name}.heads"), (0, 1, 2)), out_axes=(1, 2), name=part.op_name)  # type: ignore[assignment]
        terms.append(part)
    return Add(*terms, name=layer.op_name)


def _check_partition(layer: Circuit, names: list[str], groups: list[list[int]], count: int) -> None:
    """Every head in exactly one group: else the layer's value would change."""
    if len(set(names)) != len(names):
        raise PassError(
            f"the groups of {layer.name!r} are called {', '.join(names)}", hint="give each group a name of its own"
        )
    heads = [head for group in groups for head in group]
    if sorted(heads) != list(range(count)):
        raise PassError(
            f"the groups of {layer.name!r} hold heads {sorted(heads)}, not each of 0 to {count - 1} once",
            hint="put every head into exactly one group",
        )


def _take(node: Circuit, index: Any, name: str) -> Circuit:
    """The node at that index of its leading axis. One key/value head is one node, whatever query head reads it."""
    if isinstance(index, int):
        if isinstance(node, Rearrange) and (group := _repeats(node)):
            return _take(node.node, index // group, f"kv{index // group}")
        if isinstance(node, Module):
            nodes = tuple(
                _take(arg, index, name) if arg.rank > spec.symbol.rank else arg
                for spec, arg in zip(node.arg_specs, node.nodes, strict=True)
            )
            return node.with_nodes(nodes).rename(node.name.replace(".kv.", f".{name}."))
    return Index(node, (index,), name=f"{node.name}_idx_.{name}")


def _repeats(node: Rearrange) -> int:
    """How often each entry of the leading axis is repeated in place, 0 if the node does something else."""
    spec = node.spec
    first = spec.output_ints[0]
    rest_alone = spec.input_ints[1:] == spec.output_ints[1:]
    if len(first) != 2 or (first[0],) != spec.input_ints[0] or not rest_alone:
        return 0
    size = spec.int_sizes[first[1]]
    return size if isinstance(size, int) else 0


def split_by_head(circuit: Circuit, split: SplitConfig = "full") -> Circuit:
    """See `SplitByHead`."""
    return SplitByHead(split)(circuit)
