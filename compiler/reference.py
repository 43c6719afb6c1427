"""Values over a batch by the reference evaluator: what every backend is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tapeout.backends.reference import evaluate_many
from tapeout.compiler.inputs import Input, check_values, find_inputs
from tapeout.ir import Array, Circuit
from tapeout.ir.concat import repeat_to_batch
from tapeout.ir.expand import substitute_in_all

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 if that is not known)."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def reference_values(
    circuits: Sequence[Circuit],
    inputs: Mapping[str, torch.Tensor],
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """The circuits' values in float64, node by node; no pass of the compiler has a part in them.

    Args:
        circuits: circuits of one row.
        inputs: values for inputs by name, with a batch axis first; see `compile`.
        progress: see `Progress`.

    Returns:
        For each circuit its value [N, ...].

    Raises:
        See `compile` and `Compiled`.
    """
    rows, found = find_inputs(circuits, list(inputs), torch.float64)
    given = check_values(found, in_dtype(found, inputs), torch.device("cpu"))
    table: dict[Circuit, Circuit] = {
        each.symbol: Array(value, each.name) for each, value in zip(found, given, strict=True)
    }
    bound = substitute_in_all(rows, table)  # type: ignore[arg-type]
    if given:
        count = (len(given[0]),)
        bound = [
            new if new.rank > old.rank else repeat_to_batch(new, 0, count) for new, old in zip(bound, rows, strict=True)
        ]
    notify = progress or silent
    return evaluate_many(bound, torch.float64, progress=lambda done, of: notify("the float64 reference", done, of))


def in_dtype(inputs: Sequence[Input], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values, floating ones in the dtypes of the inputs; what is no tensor or no input stays for the check."""
    wanted = {each.name: each.dtype for each in inputs}
    return {
        name: value.to(wanted[name])
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and wanted.get(name, value.dtype).is_floating_point
        else value
        for name, value in values.items()
    }
