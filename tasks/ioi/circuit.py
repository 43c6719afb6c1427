"""The IOI metric as a circuit: the logit of the indirect object minus the subject's, at the last position."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tapeout.ir import Add, Array, Circuit, DiscreteVar, GeneralFunction, I, Index, Symbol
from tapeout.ir.errors import DataError, ShapeError, TypeMismatchError
from tapeout.passes import RunDiscreteVarAllSpec, Sampler


def logit_diff_circuit(logits: Circuit) -> Add:
    """The logit difference [] of one prompt, from its logits [SEQ, VOCAB].

    The two tokens compared are the placeholder array `labels` [2] (IO, then S), which
    `bind_dataset` replaces. The last position is read: prompts must end there, without padding.

    Raises:
        ShapeError: if `logits` has not two axes.
        TypeMismatchError: if it is no circuit.
    """
    if not isinstance(logits, Circuit):
        raise TypeMismatchError(
            f"the logit difference is made from a circuit of logits, not from a {type(logits).__name__}",
            hint="split_circuit gives the circuit and what the passes did: split, _ = split_circuit(...)",
        )
    if logits.rank != 2:
        raise ShapeError(
            f"the logit difference is made from logits [SEQ, VOCAB], not from {logits!r}",
            hint="give the circuit of one prompt; batches come from the dataset (bind_dataset)",
        )
    labels = Array(torch.zeros(2, dtype=torch.int64), "labels")
    last = logits.index((-1,), name="logits_at_end")
    picked = [
        GeneralFunction.gen_index(
            last, Index(labels, I[i], name=f"labels{i + 1}"), index_dim=0, batch_x=True, name=f"logit{i + 1}"
        )
        for i in (0, 1)
    ]
    return Add.minus(picked[0], picked[1], name="logit_diff")


def bind_dataset(circuit: Circuit, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> Circuit:
    """The circuit over a dataset: a leading axis over its rows, for `tokens` and, if it has them, `labels`.

    Args:
        circuit: with the symbol `tokens` [SEQ] and perhaps the array `labels` [2].
        tokens: int64 [N, SEQ].
        labels: int64 [N, 2], the IO and S tokens; None for a circuit without labels.

    Raises:
        DataError: if the dataset is empty, its shapes do not fit, labels are missing or not asked for, or
            the circuit's tokens are bound already.
        MatchError: if the circuit has no `tokens`.
    """
    symbol = circuit.get_unique("tokens")
    if not isinstance(symbol, Symbol):
        raise DataError(
            f"the tokens of {circuit!r} are bound already: {symbol!r}",
            hint="bind each dataset to the circuit whose tokens are a symbol, as split_circuit makes it",
        )
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] != symbol.shape[0]:
        raise DataError(
            f"tokens of shape {list(tokens.shape)} do not fit the circuit's {symbol!r}",
            hint="give at least one row, and rows of the length that the circuit was built for; "
            "prompts of several lengths need one circuit each (dataset.by_length())",
        )
    if labels is None and circuit.are_any_found("labels"):
        raise DataError(f"{circuit!r} has labels, and none were given", hint="give [N, 2]: the IO and the S token")
    rows = {"tokens": tokens}
    if labels is not None:
        _check_labels(circuit, labels, len(tokens))
        rows["labels"] = labels
    return bind_rows(circuit, rows)


def bind_rows(circuit: Circuit, rows: Mapping[str, torch.Tensor]) -> Circuit:
    """The circuit over rows of data: a leading axis over them.

    Args:
        circuit: of one row.
        rows: for names of symbols and arrays the values that take their place, all with as many rows. Names
            that the circuit does not have are no error.
    """
    group = DiscreteVar.uniform_probs_and_group(len(next(iter(rows.values()))))
    for name, values in rows.items():
        variable = DiscreteVar(Array(values, name), group)
        circuit = circuit.update(name, lambda _, variable=variable: variable)  # type: ignore[misc]
    return Sampler(RunDiscreteVarAllSpec([group])).sample(circuit)


def _check_labels(circuit: Circuit, labels: torch.Tensor, count: int) -> None:
    if tuple(labels.shape) != (count, 2):
        raise DataError(
            f"labels of shape {list(labels.shape)} for {count} prompts",
            hint="give [N, 2]: the IO and the S token",
        )
    if not circuit.are_any_found("labels"):
        raise DataError(
            f"labels were given, and {circuit!r} has no node of that name",
            hint="make the metric first: logit_diff_circuit(logits)",
        )
