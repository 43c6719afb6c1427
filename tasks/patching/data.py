"""Data for patched circuits: rows for the inputs `tokens`, `labels` and `patch.tokens`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tapeout.ir import Circuit, Symbol
from tapeout.ir.errors import DataError
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import bind_rows
from tapeout.tasks.patching.expose import check_one_row, rebuild

PATCH_TOKENS = "patch.tokens"
"""The name of the symbol [SEQ] that holds the tokens of the patch data."""

Data = IOIDataset | Mapping[str, torch.Tensor]
"""A dataset, or its tensors: `tokens` int64 [N, SEQ] and, for a metric, `labels` int64 [N, 2]."""


_ENTRIES = 'give an IOIDataset, or {"tokens": [N, SEQ], "labels": [N, 2]}; the patch data needs no labels'


def rows_of(data: Data) -> dict[str, torch.Tensor]:
    """The tensors of a dataset: `tokens` [N, SEQ], and `labels` [N, 2] if it has them (IO, then S).

    Raises:
        DataError: if the dataset has rows of several lengths, or tensors that are neither.
    """
    if isinstance(data, IOIDataset):
        if len(set(data.lengths.tolist())) > 1:
            raise DataError(
                f"the dataset's {len(data)} prompts have {len(set(data.lengths.tolist()))} lengths",
                hint="patch prompts of one length at a time: dataset.by_length()",
            )
        return {"tokens": data.prompts_toks, "labels": data.labels}
    if not isinstance(data, Mapping):
        raise DataError(f"the data is a {type(data).__name__}", hint=_ENTRIES)
    rows = dict(data)
    if not {"tokens"} <= rows.keys() <= {"tokens", "labels"}:
        raise DataError(f"the data's entries are {', '.join(map(str, rows)) or 'none'}", hint=_ENTRIES)
    for name, value in rows.items():
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.int64:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise DataError(f"{name} are {kind}", hint=f"give tensors of int64: torch.tensor({name})")
    return rows


def patch_symbol(circuit: Circuit) -> Symbol:
    """The symbol of the patch data's tokens, for a circuit of one row.

    Raises:
        DataError: if the circuit's tokens are bound.
    """
    tokens = check_one_row(circuit)
    return Symbol.new_with_none_uuid(tokens.shape, PATCH_TOKENS, tokens.torch_dtype)


def on_patch_data(circuit: Circuit, symbol: Symbol) -> Mapping[Circuit, Circuit]:
    """For every node of the circuit the same node computed from the patch data; all are made in one walk."""
    return rebuild(circuit, lambda old, new, _: symbol if old.op_name == "tokens" else new)


def check_pair(circuit: Circuit, baseline: Data | None, patch: Data | None) -> dict[str, torch.Tensor] | None:
    """The rows of both datasets, by the names of the inputs; None without data.

    Raises:
        DataError: if only one is given, they are not of equal size and length, or they do not fit the circuit.
    """
    if baseline is None and patch is None:
        return None
    if baseline is None or patch is None:
        raise DataError(
            f"only {'patch' if baseline is None else 'baseline'} data was given",
            hint="give both, or neither: the result is then a circuit of one row with the symbols tokens and "
            f"{PATCH_TOKENS}",
        )
    others = rows_of(patch)["tokens"]
    check_shapes({"tokens": rows_of(baseline)["tokens"]}, {"tokens": others})
    return {**check_rows(circuit, baseline), PATCH_TOKENS: others}


def check_shapes(baseline: Mapping[str, torch.Tensor], patch: Mapping[str, torch.Tensor]) -> None:
    """Raises DataError unless the tensors of both datasets have the same shapes, name by name."""
    for name, value in baseline.items():
        if value.shape != patch[name].shape:
            raise DataError(
                f"baseline {name} {list(value.shape)} and patch {name} {list(patch[name].shape)} do not go together",
                hint="row i of the one is patched into row i of the other: both need as many rows, of equal length "
                "(dataset.gen_flipped_prompts keeps both)",
            )


def check_rows(circuit: Circuit, data: Data) -> dict[str, torch.Tensor]:
    """The rows of a dataset, with labels exactly if the circuit compares labels.

    Raises:
        DataError: if they do not fit the circuit.
    """
    rows, symbol = rows_of(data), check_one_row(circuit)
    tokens, labels = rows["tokens"], rows.get("labels")
    if tokens.ndim != 2 or tokens.shape[1] != symbol.shape[0] or not len(tokens):
        raise DataError(
            f"tokens of shape {list(tokens.shape)} do not fit {symbol!r}",
            hint="give at least one row, and rows of the length that the circuit was built for",
        )
    wanted = circuit.are_any_found("labels")
    if wanted and (labels is None or tuple(labels.shape) != (len(tokens), 2)):
        raise DataError(
            f"{circuit!r} compares labels, and the baseline data has "
            f"{'none' if labels is None else f'them of shape {list(labels.shape)} for {len(tokens)} rows'}",
            hint="give labels [N, 2]: the IO and the S token of each row",
        )
    if labels is not None and not wanted and not isinstance(data, IOIDataset):
        raise DataError(
            f"labels were given, and {circuit!r} has no node of that name",
            hint="make the metric first: logit_diff_circuit(logits)",
        )
    return {name: values for name, values in rows.items() if name != "labels" or wanted}


def bound(circuit: Circuit, rows: Mapping[str, torch.Tensor] | None) -> Circuit:
    """The circuit over rows that were checked; as it is without."""
    return circuit if rows is None else bind_rows(circuit, rows)
