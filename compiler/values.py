"""Values of named nodes over a dataset, through the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tapeout.compiler.compile import compile_many
from tapeout.ir import Circuit
from tapeout.ir.errors import MatchError


def evaluate_many(
    circuits: Sequence[Circuit],
    data: Mapping[str, torch.Tensor] | None = None,
    backend: str = "fx",
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> list[torch.Tensor]:
    """The values of several circuits; what they share is computed once.

    Args:
        circuits: the circuits.
        data: values for inputs by name, with a batch axis first; the results have it too.
        backend, dtype, device: see `compile`.

    Raises:
        See `compile` and `Compiled`.
    """
    if not circuits:
        return []
    given = dict(data or {})
    result: Any = compile_many(circuits, backend, list(given), dtype, device)(**given)
    return list(result) if len(circuits) > 1 else [result]


def values(
    circuit: Circuit,
    matcher: Any,
    data: Mapping[str, torch.Tensor] | None = None,
    backend: str = "fx",
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """The values of the nodes that match, by name.

    Args:
        circuit: the circuit.
        matcher: which nodes; each must have a name of its own.
        data, backend, dtype, device: see `evaluate_many`.

    Raises:
        MatchError: if nothing matches, or two matching nodes have one name, or one has none.
    """
    nodes = sorted(circuit.get(matcher), key=lambda node: node.name)
    names = [node.name for node in nodes]
    if not nodes or len(set(names)) < len(names) or "" in names:
        raise MatchError(
            f"{len(nodes)} nodes with {len(set(names) - {''})} names match {matcher!r} below {circuit!r}",
            facts=names[:8],
            hint="match at least one node, each with a name of its own",
        )
    return dict(zip(names, evaluate_many(nodes, data, backend, dtype, device), strict=True))
