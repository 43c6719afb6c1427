"""`tapeout bench`: how fast the IOI logit difference is, every way of computing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tapeout.backends.common.devices import as_device
from tapeout.compiler.backends import BACKENDS
from tapeout.json_output import json_text
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.options import AsJson, Device, Model
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.bench import BenchResult, check_ways, run_bench
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.ioi.loading import tokenizer_of
from tapeout.tasks.ioi.setting import Setting


def bench(
    model: Model = "smollm2-135m",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Number of prompts, of one template.")] = 100,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"A backend to measure ({', '.join(BACKENDS)}), fx by default; may be given several times."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="A dtype to measure (float32, bfloat16, float64), float32 by default; may be given several times."
        ),
    ] = None,
    device: Device = "cpu",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measures the IOI logit difference: Hugging Face's model, and the split circuit on each backend.

    Times are multiples of the limit: the operations that the answer needs, divided by the rate at which this
    machine multiplies matrices, measured in the same run. Everything is measured in turn; medians are reported.
    What a backend does not support is said and left out.

    Exit code 2: bad options, model or data. 130: interrupted.

    Example: `tapeout bench smollm2-135m -n 20 --backend fx --backend onnx`
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    backends, dtypes = list(dict.fromkeys(backend or ["fx"])), list(dict.fromkeys(dtype or ["float32"]))
    check_ways(backends, dtypes)
    where = as_device(device)
    result = run_bench(_setting(model, n, say).to(where), backends, dtypes, repeat, say)
    if as_json:
        print(json_text(result.to_json()))
    else:
        _print_result(result)


def _setting(name: str, n: int, say: Callable[[str], None]) -> Setting:
    checkpoint = load_checkpoint(name, progress=say)
    data = IOIDataset("mixed", n, tokenizer=tokenizer_of(checkpoint), nb_templates=1)
    say("splitting the circuit by head and position")
    circuits, info = circuit_of(checkpoint.model)
    split, _ = split_circuit(circuits, info, data.max_len)
    return Setting(checkpoint.source, checkpoint.model, logit_diff_circuit(split), data.prompts_toks, data.labels)


def _print_result(result: BenchResult) -> None:
    console = Console()
    table = Table("way", "x limit", "seconds", "largest error", "compiled in", title=escape(result.model))
    for column in table.columns[1:]:
        column.justify = "right"
    for way in result.ways:
        made = "" if way.compile_seconds is None else f"{way.compile_seconds:.1f} s"
        table.add_row(way.name, f"{way.multiple:.2f}", f"{way.seconds:.3f}", f"{way.max_abs_error:.1e}", made)
    console.print(table)
    console.print(
        f"limit: {result.flops / 1e9:.0f} GFLOP at {result.flops_per_second / 1e9:.0f} GFLOP/s = "
        f"{result.limit_seconds:.3f} s, {result.prompts} prompts, {result.threads} threads",
        highlight=False,
    )
