"""Values over a batch by the reference evaluator: what every backend is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tapeout.backends.common.rows import joined, split_rows
from tapeout.backends.reference import evaluate_many
from tapeout.compiler.inputs import Input, check_values, find_inputs
from tapeout.ir import Array, Circuit
from tapeout.ir.nodes.concat import repeat_to_batch
from tapeout.ir.substitution import substitute_in_all

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 if that is not known)."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


ROWS_AT_ONCE = 32
"""A model that is split keeps the value of every head until the end: some 20 MB a row in SmolLM2."""


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
    parts = split_rows(given, ROWS_AT_ONCE) if given else [given]
    notify = progress or silent

    def counted(part: int) -> Callable[[int, int], None]:
        return lambda done, of: notify("the float64 reference", part * of + done, len(parts) * of)

    values = [_values(rows, found, part, counted(number)) for number, part in enumerate(parts)]
    return values[0] if len(values) == 1 else list(joined([tuple(each) for each in values]))


def _values(
    rows: Sequence[Circuit], found: Sequence[Input], given: Sequence[torch.Tensor], progress: Callable[[int, int], None]
) -> list[torch.Tensor]:
    """The values of circuits of one row on some rows, all at once."""
    table: dict[Circuit, Circuit] = {
        each.symbol: Array(value, each.name) for each, value in zip(found, given, strict=True)
    }
    bound = substitute_in_all(rows, table)  # type: ignore[arg-type]
    if given:
        count = (len(given[0]),)
        bound = [
            new if new.rank > old.rank else repeat_to_batch(new, 0, count) for new, old in zip(bound, rows, strict=True)
        ]
    return evaluate_many(bound, torch.float64, progress=progress)


def in_parts(call: Callable[..., torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of a compiled circuit on all rows, some at a time."""
    if not inputs:
        return call()
    parts = split_rows(list(inputs.values()), ROWS_AT_ONCE)
    out: torch.Tensor = joined([call(**dict(zip(inputs, part, strict=True))) for part in parts])
    return out


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
