"""Split to concat: a node becomes the concatenation of its parts along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapeout.ir import Circuit, Concat, Index
from tapeout.ir.axis_index import FULL, Picks, Span, axis_index, positions
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register


@register("split_to_concat", ensures="what matched is a Concat of Index nodes, by default one a position")
@dataclass(frozen=True)
class SplitToConcat(Pass):
    """Every node that matches becomes `Concat(node[0:1], node[1:2], ...)` along an axis.

    Args:
        matcher: which nodes.
        axis: the axis.
        partitioning_idxs: the parts, in order; positions by default. An int keeps its axis, with size 1.
        partitioning_idx_names: what stands for a part in its name; positions or "i_to_j" by default.
        index_name: the name of a part; `{name}` is the node's, `{flat}` the same with `_` for each dot, `{part}` the
            part's.
        concat_name: the name of the concatenation.
    """

    matcher: Any = True
    axis: int = 0
    partitioning_idxs: tuple[Any, ...] | None = None
    partitioning_idx_names: tuple[str, ...] | None = None
    index_name: str = "{name}_at_idx_{part}"
    concat_name: str = "{name}_by_pos"

    def run(self, circuit: Circuit) -> Circuit:
        return circuit.update(self.matcher, self._split)

    def _split(self, node: Circuit) -> Circuit:
        if not -node.rank <= self.axis < node.rank:
            raise PassError(
                f"cannot split {node!r} along axis {self.axis}: it has {node.rank}",
                hint="axes count from 0, or back from -1",
            )
        axis = self.axis % node.rank
        size = node.shape[axis]
        if not isinstance(size, int) or size == 0:
            raise PassError(
                f"cannot split {node!r} along axis {self.axis}: its size is {size}",
                hint="there is no position" if size == 0 else "symbolic sizes are known after conform_all_modules",
            )
        parts = _parts(self.partitioning_idxs, size, node)
        names = self.partitioning_idx_names or tuple(_part_name(part, size) for part in parts)
        if len(names) != len(parts):
            raise PassError(f"{len(parts)} parts of {node!r}, but {len(names)} names", hint="give one name a part")
        flat = node.name.replace(".", "_")
        indices = [
            Index(node, (FULL,) * axis + (part,), name=self.index_name.format(name=node.name, flat=flat, part=name))
            for part, name in zip(parts, names, strict=True)
        ]
        return Concat(*indices, axis=axis, name=self.concat_name.format(name=node.name))


def _parts(given: Sequence[Any] | None, size: int, node: Circuit) -> list[Span | Picks]:
    """The parts as spans or picks.

    Raises:
        PassError: if they are not the axis, in order, each position once.
    """
    items = range(size) if given is None else given
    covered: list[int] = []
    parts: list[Span | Picks] = []
    for item in items:
        index = axis_index(item)
        at = positions(index, size, repr(node))
        parts.append(Span(at[0], at[0] + 1) if isinstance(index, int) else index)
        covered += at
    if covered != list(range(size)):
        raise PassError(
            f"the parts of {node!r} cover positions {covered}, not 0 to {size - 1} in order",
            hint="a split must be put together again as it was: every position once, in order",
        )
    return parts


def _part_name(part: Span | Picks, size: int) -> str:
    if isinstance(part, Picks):
        return "_".join(map(str, part.values.tolist()))
    start, stop = part.bounds(size)
    return str(start) if stop == start + 1 else f"{start}_to_{stop}"


def split_to_concat(
    circuit: Circuit,
    axis: int,
    partitioning_idxs: Sequence[Any] | None = None,
    partitioning_idx_names: Sequence[str] | None = None,
    index_name: str = "{name}_at_idx_{part}",
    concat_name: str = "{name}_by_pos",
) -> Circuit:
    """This very node as a concatenation of its parts along an axis; see `SplitToConcat`.

    Raises:
        PassError: if the parts are not the axis, or its size is symbolic.
    """
    parts = None if partitioning_idxs is None else tuple(partitioning_idxs)
    names = None if partitioning_idx_names is None else tuple(partitioning_idx_names)
    return SplitToConcat(circuit, axis, parts, names, index_name, concat_name)._split(circuit)
