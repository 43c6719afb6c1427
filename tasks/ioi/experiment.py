"""The main job: the IOI logit difference of a model, through its circuit split by head and by position."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.common.devices import as_device
from tapeout.backends.common.precision import wide
from tapeout.backends.reference import evaluate_many
from tapeout.compiler import compile
from tapeout.compiler.checks.reference import Progress, silent
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import TypeMismatchError
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import Checkpoint
from tapeout.passes import PassRecord, count_nodes
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.tasks.ioi.dataset import IOIDataset, Lengths
from tapeout.tasks.ioi.loading import copy_in, load_in_full_precision, tokenizer_of
from tapeout.tasks.ioi.prompts import PromptType
from tapeout.tasks.ioi.report import TokenValue, top_tokens

TOLERANCES = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 1.0}
"""Largest difference from Hugging Face's logit differences, which are computed in float32 or float64.

float64 has that of float32, because Hugging Face's Llama computes norms and rotary tables in float32
whatever its dtype. A bfloat16 run of SmolLM2 in Hugging Face itself is up to 0.45 off on 100 prompts.
"""

_ROWS = 50  # a chunk of a dataset: bounds the logits of all positions that Hugging Face's model returns


@dataclass(frozen=True, slots=True)
class IOIResult:
    """What came out.

    Attributes:
        model: the model's name.
        n: prompts.
        backend: what ran the circuit.
        dtype: what the circuit was computed in.
        logit_diff_mean: mean of logit(IO) - logit(S) at the last position.
        logit_diff_std: its standard deviation over prompts (0 for one prompt).
        accuracy: the share of prompts where IO beats S.
        max_abs_error_vs_hf: largest difference from the Hugging Face model's own logit differences.
        tolerance: how large that may be.
        seconds: the whole job, loading included.
        nodes: distinct nodes of the split circuit.
        passes: the passes that ran, the compiler's last, summed over the lengths of prompts.
        top: for the first prompts the text and the likeliest next tokens.
        logit_diffs: one a prompt, in the order of the dataset.
    """

    model: str
    n: int
    backend: str
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
        """Whether the circuit agrees with the Hugging Face model; a value that is no number does not."""
        return self.max_abs_error_vs_hf <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The result as JSON's types, without single prompts' values; None for what is no finite number."""
        return {
            "model": self.model,
            "n": self.n,
            "backend": self.backend,
            "dtype": self.dtype,
            "logit_diff_mean": _finite(self.logit_diff_mean),
            "logit_diff_std": _finite(self.logit_diff_std),
            "accuracy": self.accuracy,
            "max_abs_error_vs_hf": _finite(self.max_abs_error_vs_hf),
            "tolerance": self.tolerance,
            "seconds": self.seconds,
            "nodes": self.nodes,
            "passes": [asdict(record) for record in self.passes],
            "top": [
                {
                    "prompt": prompt,
                    "tokens": [
                        {"token": text, "id": number, "logit": _finite(value)} for text, number, value in tokens
                    ],
                }
                for prompt, tokens in self.top
            ],
        }


def _finite(value: float) -> float | None:
    """JSON has no infinity and nothing that is no number."""
    return value if math.isfinite(value) else None


def run_ioi(
    model: str | Path | Any,
    *,
    n: int = 100,
    prompt_type: PromptType = "mixed",
    seed: int = 0,
    backend: str = "fx",
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    lengths: Lengths = "equal",
    show: int = 3,
    progress: Progress | None = None,
) -> IOIResult:
    """Loads a model, splits its circuit, evaluates it on IOI prompts, and compares with Hugging Face.

    Args:
        model: see `load_circuit`.
        n: prompts.
        prompt_type: "mixed", "ABBA" or "BABA".
        seed: of the prompts.
        backend: what runs the circuit: "fx", "torchscript", "inductor", "onnx", or "reference", node by node.
        dtype: to compute in: "float32", "float64" or "bfloat16".
        device: where the compiled circuit runs; Hugging Face's model and the reference run on the CPU.
        lengths: "equal" or "any"; see `IOIDataset`.
        show: for how many prompts the likeliest tokens are returned.
        progress: see `Progress`.

    Raises:
        TypeMismatchError: for another dtype.
        ModelError: if the model cannot be loaded, or has no tokenizer.
        DataError: if the prompts cannot be made.
        UnsupportedError: for a device that is not here.
    """
    notify = progress or silent
    if dtype not in TOLERANCES:
        raise TypeMismatchError(f"dtype {dtype!r} is not supported here", hint=f"use {', '.join(TOLERANCES)}")
    run = _run_reference if backend == "reference" else partial(_run_compiled, backend, as_device(device))
    start = time.perf_counter()
    checkpoint = load_in_full_precision(model, notify)
    tokenizer = tokenizer_of(checkpoint)
    notify("making prompts", 0, 0)
    dataset = IOIDataset(prompt_type, n, seed, tokenizer=tokenizer, lengths=lengths)
    diffs, logits, records, nodes = _evaluate(checkpoint, dataset, run, dtype, min(show, n), notify)
    reference = hf_logit_diffs(checkpoint, dataset, dtype, notify)
    numbers = diffs.double()
    return IOIResult(
        model=checkpoint.source,
        n=n,
        backend=backend,
        dtype=dtype,
        logit_diff_mean=float(numbers.mean()),
        logit_diff_std=float(numbers.std()) if n > 1 else 0.0,
        accuracy=float((numbers > 0).double().mean()),
        max_abs_error_vs_hf=float((numbers - reference.double()).abs().max()),
        tolerance=TOLERANCES[dtype],
        seconds=time.perf_counter() - start,
        nodes=nodes,
        passes=records,
        top=[(text, top_tokens(row, 5, tokenizer)) for text, row in zip(dataset.prompts_text, logits, strict=False)],
        logit_diffs=diffs,
    )


def _evaluate(
    checkpoint: Checkpoint, dataset: IOIDataset, run: Run, dtype: str, show: int, notify: Progress
) -> tuple[torch.Tensor, list[torch.Tensor], list[PassRecord], int]:
    """Logit differences [N], the logits [VOCAB] of the first prompts, the passes, and the number of nodes."""
    notify("building the circuit", 0, 0)
    circuits, info = circuit_of(checkpoint.model, source=checkpoint.source)
    diffs = torch.empty(len(dataset), dtype=wide(as_dtype(dtype)))
    logits: dict[int, torch.Tensor] = {}
    records: list[PassRecord] = []
    nodes = evaluated = 0
    for length, rows, part in dataset.by_length():
        notify(f"splitting for {length} tokens", 0, 0)
        split, ran = split_circuit(circuits, info, length, [lambda each, *_: notify(f"pass {each.name} done", 0, 0)])
        metric = logit_diff_circuit(split)
        nodes += count_nodes(metric)
        shown = int((rows < show).sum())  # rows are in the order of the dataset: the first ones
        at = partial(_add_offset, notify, evaluated, len(dataset))
        found, first, more = run(metric, part, shown, dtype, at)
        diffs[rows] = found.to(diffs.dtype)
        logits.update((int(row), line) for row, line in zip(rows, first, strict=False))
        records = _summed(records, [*ran, *more])
        evaluated += len(part)
    return diffs, [logits[row] for row in range(show)], records, nodes


def _add_offset(notify: Progress, before: int, total: int, what: str, done: int, of: int) -> None:
    notify(f"{what}, {before} of {total} prompts done" if before else what, done, of)


Found = tuple[torch.Tensor, torch.Tensor, list[PassRecord]]
"""Logit differences [n], the logits [shown, VOCAB] of the first prompts, and the passes of the compiler."""

Run = Callable[[Circuit, IOIDataset, int, str, Progress], Found]
"""What evaluates the metric of some prompts, and how many of them are shown."""


def _run_compiled(
    backend: str, device: torch.device, metric: Circuit, part: IOIDataset, shown: int, dtype: str, notify: Progress
) -> Found:
    """Through the compiler: one artefact for the metric, one for the logits of the prompts that are shown."""
    notify(f"compiling with {backend}", 0, 0)
    compiled = compile(metric, backend, ["tokens", "labels"], dtype, device)
    tokens, labels = part.prompts_toks.to(device), part.labels.to(device)
    chunks = []
    notify("evaluating prompts", 0, len(part))
    for at in range(0, len(part), _ROWS):
        rows = slice(at, at + _ROWS)
        chunks.append(compiled(tokens=tokens[rows], labels=labels[rows]).cpu())
        notify("evaluating prompts", min(at + _ROWS, len(part)), len(part))
    if not shown:
        return torch.cat(chunks), torch.empty(0), list(compiled.passes)
    notify("the likeliest tokens of the first prompts", 0, 0)
    logits = compile(metric.get_unique("logits_at_end"), "fx", ["tokens"], dtype, device)
    return torch.cat(chunks), logits(tokens=tokens[:shown]).cpu(), list(compiled.passes)


def _run_reference(metric: Circuit, part: IOIDataset, shown: int, dtype: str, notify: Progress) -> Found:
    """Through the reference evaluator, node by node."""
    diffs, logits = [], []
    for at in range(0, len(part), _ROWS):
        rows = slice(at, at + _ROWS)
        bound = bind_dataset(metric, part.prompts_toks[rows], part.labels[rows])
        at_end = bound.get_unique("logits_at_end")
        values = evaluate_many([bound, at_end], dtype, progress=partial(notify, "evaluating nodes"))
        diffs.append(values[0])
        logits.append(values[1][: max(0, shown - at)])
    return torch.cat(diffs), torch.cat(logits), []


def _summed(old: list[PassRecord], new: list[PassRecord]) -> list[PassRecord]:
    if not old:
        return new
    return [
        PassRecord(
            name=a.name,
            nodes_before=a.nodes_before + b.nodes_before,
            nodes_after=a.nodes_after + b.nodes_after,
            seconds=a.seconds + b.seconds,
            changed=a.changed or b.changed,
        )
        for a, b in zip(old, new, strict=True)
    ]


def hf_logit_diffs(checkpoint: Checkpoint, dataset: IOIDataset, dtype: str, notify: Progress) -> torch.Tensor:
    """The Hugging Face model's own logit differences [N]: in float64 for float64, else in float32."""
    wanted = torch.float64 if dtype == "float64" else torch.float32
    model: Any = checkpoint.model if checkpoint.model.dtype is wanted else copy_in(checkpoint.model, wanted)
    diffs = torch.empty(len(dataset), dtype=wanted)
    done = 0
    with torch.no_grad():
        for _, rows, part in dataset.by_length():
            for first in range(0, len(part), _ROWS):
                notify("comparing with Hugging Face", done, len(dataset))
                chunk = slice(first, first + _ROWS)
                last = model(part.prompts_toks[chunk]).logits[:, -1]
                pair = part.labels[chunk]
                io, s = last.gather(1, pair).unbind(1)
                diffs[rows[chunk]] = io - s
                done += len(pair)
    return diffs
