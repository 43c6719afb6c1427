"""`bisect`: the first node at which two backends part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tapeout.backends.common.program import Program
from tapeout.backends.reference import evaluate_many
from tapeout.compiler.backends import builder
from tapeout.compiler.checks.reference import in_dtype
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation, number
from tapeout.compiler.config import from_environment
from tapeout.compiler.inputs import Input, check_values, find_inputs
from tapeout.compiler.optimise import Optimised, optimise
from tapeout.ir import Array, Circuit, GeneralFunction, postorder
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import DataError
from tapeout.ir.sizes import format_shape
from tapeout.ir.substitution import substitute_in_all
from tapeout.passes.execution import readers_of

REFERENCE = "reference"
"""The reference evaluator, in float64, in the place of a backend."""


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two backends part.

    Attributes:
        name: what the node is called in the circuit; empty for what the compiler made.
        towards: the first node on the way to the result whose name no other has: `m.act` is in every layer's MLP.
        node: the node of the optimised circuit: what it computes, and its shape.
        position: its place in topological order, among `nodes`.
        nodes: how many nodes compute something.
        deviation: how far the two values are from each other.
    """

    name: str
    towards: str
    node: str
    position: int
    nodes: int
    deviation: Deviation

    def __str__(self) -> str:
        place = f" on the way to {self.towards}" if self.towards not in ("", self.name) else ""
        return (
            f"{self.name or 'a node'}{place} ({self.node}, number {self.position} of {self.nodes}): "
            f"apart by {self.deviation.absolute:.3g}, of values up to {self.deviation.largest:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON's types."""
        return {
            "name": self.name,
            "towards": self.towards,
            "node": self.node,
            "position": self.position,
            "nodes": self.nodes,
            "max_abs_difference": number(self.deviation.absolute),
            "largest": self.deviation.largest,
        }


def bisect(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    backends: tuple[str, str],
    dtype: str | torch.dtype = torch.float32,
    level: int = 1,
) -> Parting | None:
    """The first node, in topological order, at which two backends part by more than the dtype's tolerance.

    Both compute every node of the optimised circuit as a result of its own, so what a backend fuses on its way
    to the circuit's value is not fused here.

    Args:
        circuit: a circuit of one row.
        inputs: values for its inputs by name, with a batch axis first; a few rows are enough.
        backends: two backends, see `compile`; "reference" is the reference evaluator on the optimised circuit.
        dtype: what both compute in.
        level: see `compile`.

    Returns:
        The node; None if the two agree at every node.

    Raises:
        See `compile` and `Compiled`.
    """
    kind = as_dtype(dtype)
    if len(backends) != 2 or backends[0] == backends[1]:
        raise DataError(f"{', '.join(backends)} are not two backends", hint="name two different ones")
    rows, found = find_inputs([circuit], list(inputs), kind)
    given = check_values(found, in_dtype(found, inputs), torch.device("cpu"))
    optimised = optimise(rows, found, level, from_environment())
    nodes = [node for node in postorder(*optimised.roots) if node.children]
    left, right = (_values(name, nodes, found, given, optimised, kind) for name in backends)
    for position, (node, one, other) in enumerate(zip(nodes, left, right, strict=True), start=1):
        deviation = Deviation.of(one, other)
        if not deviation.within(TOLERANCES[kind]):
            name, towards = optimised.origins.get(node, ""), _towards(node, optimised)
            return Parting(name, towards, _description(node), position, len(nodes), deviation)
    return None


def _towards(node: Circuit, optimised: Optimised) -> str:
    """The name of the nearest reader, or reader's reader, whose name is its own; empty if there is none."""
    readers = readers_of(optimised.roots)
    names = Counter(optimised.origins[each] for each in readers if each in optimised.origins)
    level = [node]
    while level:
        found = [optimised.origins[each] for each in level if names[optimised.origins.get(each, "")] == 1]
        if found:
            return found[0]
        level = list(dict.fromkeys(reader for each in level for reader in readers[each]))
    return ""


def _description(node: Circuit) -> str:
    what = node.spec.name if isinstance(node, GeneralFunction) else node.kind
    return f"{what} {format_shape(node.shape)}"


def _values(
    name: str,
    nodes: Sequence[Circuit],
    inputs: Sequence[Input],
    given: Sequence[torch.Tensor],
    optimised: Optimised,
    dtype: torch.dtype,
) -> Sequence[torch.Tensor]:
    """The values of all nodes."""
    if name == REFERENCE:
        table: dict[Any, Circuit] = {each.batched: Array(value) for each, value in zip(inputs, given, strict=True)}
        return evaluate_many(substitute_in_all(nodes, table), torch.float64)
    symbols = [each.batched for each in inputs]
    executable, _ = builder(name)(Program(nodes, symbols, optimised.origins, dtype))
    out = executable(*given)
    return out if isinstance(out, tuple | list) else (out,)
