"""The main job: the IOI logit difference of a model, through its circuit split by head and by position."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.reference import evaluate_many
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import ModelError, TypeMismatchError
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import Checkpoint, load_checkpoint
from tapeout.passes import PassRecord, count_nodes
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.tasks.ioi.dataset import IOIDataset
from tapeout.tasks.ioi.report import TokenValue, top_tokens

TOLERANCES = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 0.5}
"""Largest difference from Hugging Face's logit differences. In float64 too: its Llama computes norms in float32."""

_ROWS = 50  # a chunk of a dataset: bounds the logits of all positions that Hugging Face's model returns

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 if that is not known)."""


@dataclass(frozen=True, slots=True)
class IOIResult:
    """What came out.

    Attributes:
        model: the model's name.
        n: prompts.
        dtype: what the circuit was computed in.
        logit_diff_mean: mean of logit(IO) - logit(S) at the last position.
        logit_diff_std: its standard deviation over prompts (0 for one prompt).
        accuracy: the share of prompts where IO beats S.
        max_abs_error_vs_hf: largest difference from the Hugging Face model's own logit differences.
        tolerance: how large that may be.
        seconds: the whole job, loading included.
        nodes: distinct nodes of the circuit that was evaluated.
        passes: the passes that ran, summed over the lengths of prompts.
        top: for the first prompts the text and the likeliest next tokens.
        logit_diffs: one a prompt, in the order of the dataset.
    """

    model: str
    n: int
    dtype: str
    logit_diff_mean: float
    logit_diff_std: float
    accuracy: float
    max_abs_error_vs_hf: float
    tolerance: float
    seconds: float
    nodes: int
    passes: list[PassRecord]
    top: list[tuple[str, list[TokenValue]]]
    logit_diffs: torch.Tensor = field(repr=False)

    @property
    def within_tolerance(self) -> bool:
        return self.max_abs_error_vs_hf <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The result as JSON's types."""
        out = {name: getattr(self, name) for name in self.__slots__ if name not in ("logit_diffs", "passes", "top")}
        out["passes"] = [asdict(record) for record in self.passes]
        out["top"] = [
            {"prompt": prompt, "tokens": [{"token": token, "id": number, "logit": value} for token, number, value in tokens]}
            for prompt, tokens in self.top
        ]
        return out


def run_ioi(
    model: str | Path | Any,
    *,
    n: int = 100,
    prompt_type: str = "mixed",
    seed: int = 0,
    dtype: str = "float32",
    lengths: str = "equal",
    show: int = 3,
    progress: Progress | None = None,
) -> IOIResult:
    """Loads a model, splits its circuit, evaluates the logit difference on IOI prompts, compares with Hugging Face.

    Args:
        model: see `load_circuit`.
        n: prompts.
        prompt_type: "mixed", "ABBA" or "BABA".
        seed: of the prompts.
        dtype: to compute in: "float32", "float64" or "bfloat16".
        lengths: "equal" or "any"; see `IOIDataset`.
        show: for how many prompts the likeliest tokens are returned.
        progress: see `Progress`.

    Raises:
        ModelError: if the model cannot be loaded, or has no tokenizer.
        DataError: if the prompts cannot be made.
    """
    notify = progress or (lambda what, done, total: None)
    if dtype not in TOLERANCES:
        raise TypeMismatchError(f"dtype {dtype!r} is not supported here", hint=f"use {', '.join(TOLERANCES)}")
    start = time.perf_counter()
    checkpoint = load_checkpoint(model, dtype=None, progress=lambda line: notify(line, 0, 0))
    if checkpoint.tokenizer is None:
        raise ModelError(
            f"{checkpoint.source} has no tokenizer, and IOI prompts are made of text", hint="use a checkpoint with its tokenizer files"
        )
    notify("making prompts", 0, 0)
    dataset = IOIDataset(prompt_type, n, seed, tokenizer=checkpoint.tokenizer, lengths=lengths)  # type: ignore[arg-type]
    diffs, logits, records, nodes = _evaluate(checkpoint, dataset, dtype, min(show, n), notify)
    reference = hf_logit_diffs(checkpoint, dataset, dtype, notify)
    numbers = diffs.double()
    return IOIResult(
        model=checkpoint.source,
        n=n,
        dtype=dtype,
        logit_diff_mean=float(numbers.mean()),
        logit_diff_std=float(numbers.std()) if n > 1 else 0.0,
        accuracy=float((numbers > 0).double().mean()),
        max_abs_error_vs_hf=float((numbers - reference.double()).abs().max()),
        tolerance=TOLERANCES[dtype],
        seconds=time.perf_counter() - start,
        nodes=nodes,
        passes=records,
        top=[(dataset.prompts_text[i], top_tokens(logits[i], 5, checkpoint.tokenizer)) for i in range(len(logits))],
        logit_diffs=diffs,
    )


def _evaluate(
    checkpoint: Checkpoint, dataset: IOIDataset, dtype: str, show: int, notify: Progress
) -> tuple[torch.Tensor, torch.Tensor, list[PassRecord], int]:
    """Logit differences [N], the first prompts' logits [show, VOCAB], the passes, and the number of nodes."""
    notify("building the circuit", 0, 0)
    circuits, info = circuit_of(checkpoint.model, source=checkpoint.source)
    diffs = torch.empty(len(dataset), dtype=as_dtype(dtype))
    logits: dict[int, torch.Tensor] = {}
    records: list[PassRecord] = []
    nodes = 0
    for length, rows, part in dataset.by_length():
        split, ran = split_circuit(circuits, info, length, [lambda each, *_: notify(f"pass {each.name}", 0, 0)])
        records = _summed(records, ran)
        metric = logit_diff_circuit(split)
        nodes += count_nodes(metric)
        labels = torch.stack([part.io_tokenIDs, part.s_tokenIDs], dim=1)
        for first in range(0, len(part), _ROWS):
            chunk = slice(first, first + _ROWS)
            bound = bind_dataset(metric, part.prompts_toks[chunk], labels[chunk])
            at_end = _logits_at_end(bound)
            values = evaluate_many([bound, at_end], dtype, progress=lambda done, total: notify("evaluating", done, total))
            diffs[rows[chunk]] = values[0]
            logits.update((int(row), values[1][i]) for i, row in enumerate(rows[chunk]) if row < show)
    return diffs, torch.stack([logits[row] for row in range(show)]) if show else torch.empty(0), records, nodes


def _logits_at_end(bound: Circuit) -> Circuit:
    return bound.get_unique("logits_at_end")


def _summed(old: list[PassRecord], new: list[PassRecord]) -> list[PassRecord]:
    if not old:
        return new
    return [
        PassRecord(a.name, a.nodes_before + b.nodes_before, a.nodes_after + b.nodes_after, a.seconds + b.seconds, a.changed or b.changed)
        for a, b in zip(old, new, strict=True)
    ]


def hf_logit_diffs(checkpoint: Checkpoint, dataset: IOIDataset, dtype: str, notify: Progress) -> torch.Tensor:
    """The Hugging Face model's own logit differences [N]: in float64 for float64, else in float32."""
    model: Any = checkpoint.model
    stored = next(model.parameters()).dtype
    wanted = torch.float64 if dtype == "float64" else torch.float32
    diffs = torch.empty(len(dataset), dtype=wanted)
    model = model if stored is wanted else _copy_in(model, wanted)
    with torch.no_grad():
        for _, rows, part in dataset.by_length():
            for first in range(0, len(part), _ROWS):
                notify("comparing with Hugging Face", first, len(part))
                chunk = slice(first, first + _ROWS)
                last = model(part.prompts_toks[chunk]).logits[:, -1]
                pair = torch.stack([part.io_tokenIDs[chunk], part.s_tokenIDs[chunk]], dim=1)
                io, s = last.gather(1, pair).unbind(1)
                diffs[rows[chunk]] = io - s
    return diffs


def _copy_in(model: Any, dtype: torch.dtype) -> Any:
    from copy import deepcopy

    return deepcopy(model).to(dtype)
