"""`tapeout patch`: a sweep of patched variants on IOI prompts, as numbers and as a heat map."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tapeout.ir.errors import ArtefactError, DataError
from tapeout.ir.files.folders import check_writable, written_folder
from tapeout.json_output import json_text
from tapeout.options import AsJson, Device, Dtype, Model, Out, Prompts, Seed
from tapeout.progress import progress_line
from tapeout.tasks.patching.experiment import FlipName, PatchResult, SweepName, run_patch
from tapeout.tasks.patching.heat_map import heat_map, write_heat_map
from tapeout.tasks.patching.sweeps.sweep import Estimate
from tapeout.tasks.patching.sweeps.variants import Part

SUMMARY = "summary.json"
_INTERRUPTED = 130
_TITLES = {
    "heads": "Activation patching of heads",
    "heads-positions": "Activation patching of heads by position",
    "edges": "Path patching from head to head, at the end",
    "direct": "Path patching from heads to the logits, at the end",
}


def patch(
    out: Out,
    model: Model = "smollm2-135m",
    sweep: Annotated[
        SweepName,
        typer.Option(help="Each head; each at each position; each head as each later one reads it; as the logits do."),
    ] = "heads",
    metric: Annotated[Literal["logit-diff"], typer.Option(help="What is measured.")] = "logit-diff",
    part: Annotated[
        Part | None,
        typer.Option(help="Which part of a head: out by default; of --sweep edges the receiver's q, k or v, q first."),
    ] = None,
    flip: Annotated[
        FlipName, typer.Option(help="What differs in the prompts that values are patched from; names: all names.")
    ] = "names",
    n: Prompts = 20,
    prompt_type: Annotated[
        Literal["mixed", "ABBA", "BABA"], typer.Option(help="Which name comes first; see tapeout ioi.")
    ] = "mixed",
    seed: Seed = 0,
    backend: Annotated[Literal["fx", "torchscript", "inductor", "onnx"], typer.Option(help="What computes.")] = "fx",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    max_memory: Annotated[
        float | None, typer.Option(help="GB that weights and values may take; less is then computed at once.")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="On a GPU, faster products with errors near 1e-3.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that this command wrote.")] = False,
    as_json: AsJson = False,
) -> None:
    """Patches each head of a model and measures the logit difference, all variants in one sweep.

    The prompts are those of tapeout ioi; values are patched from the same prompts with other names. An effect is the
    logit difference with the patch less that without it, its mean over the prompts: strongly negative where the model
    needs what the head brings.

    The folder holds sweep.npz and sweep.json (every variant on every prompt, with labels), summary.json (what --json
    prints), and heat_map.png and heat_map.html (the values under the pointer). Ctrl-C writes what is finished.

    Exit code 2: bad options, model or data. 130: interrupted.

    Example: `tapeout patch smollm2-135m --sweep direct --out direct`
    """
    target, limit = out.resolve(), None if max_memory is None else _bytes(max_memory)
    _check_target(target, force)
    with progress_line(quiet=as_json) as notify:
        result = run_patch(
            model,
            sweep,
            part=part,
            flip=flip,
            n=n,
            prompt_type=prompt_type,
            seed=seed,
            backend=backend,
            dtype=dtype,
            device=device,
            max_memory=limit,
            tf32=tf32,
            planned=None if as_json else _say_estimate,
            progress=notify,
        )
        notify("drawing the heat map", 0, 0)
        _write(result, target)
    if as_json:
        print(json_text(result.to_json()))
    else:
        _print(result, target)
    if not result.result.complete:
        raise typer.Exit(_INTERRUPTED)


def _bytes(gigabytes: float) -> int:
    if not (math.isfinite(gigabytes) and gigabytes > 0):
        raise DataError(f"--max-memory is {gigabytes:g}", hint="give GB, such as 4 or 0.5, or leave it out")
    return int(gigabytes * 1e9)


def _check_target(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise ArtefactError(f"{target} exists", hint="give another name, or --force to replace it")
    if target.exists() and not (target / SUMMARY).is_file():
        raise ArtefactError(
            f"{target} exists and was not written by this command", hint="give another name, or remove what is there"
        )
    check_writable(target)


def _say_estimate(estimate: Estimate) -> None:
    print(
        f"{estimate.variants} variants: {estimate.flops / 1e12:.2f} TFLOP in {estimate.calls} calls, "
        f"about {estimate.seconds:.0f} s or a little more",
        file=sys.stderr,
    )


def _write(result: PatchResult, target: Path) -> None:
    with written_folder(target) as folder:
        result.result.save(folder / "sweep")
        (folder / SUMMARY).write_text(json_text(result.to_json(), indent=1) + "\n", encoding="utf-8")
    # The numbers are there, whatever becomes of the pictures.
    matrix = result.matrix().rename("change of the logit difference")
    write_heat_map(heat_map(matrix, f"{_TITLES[result.sweep]}: {result.model}"), target)


def _print(result: PatchResult, target: Path) -> None:
    console = Console()

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=not console.is_terminal)

    strongest = result.strongest()
    axes = list(strongest[0][0]) if strongest else []
    table = Table(*axes, "effect", title=f"{escape(result.model)}: strongest of {result.estimate.variants} variants")
    for labels, effect in strongest:
        table.add_row(*map(str, labels.values()), f"{effect:+.4f}")
    for column in table.columns:
        column.justify = "right"
    console.print(table)
    line(f"logit difference {float(result.result.baseline.mean()):.4f} over {result.n} prompts without a patch")
    line(f"{result.sweep_seconds:.1f} s for the sweep, {result.seconds:.1f} s in all; written to {escape(str(target))}")
    if not result.result.complete:
        line("interrupted: what was not computed is left blank")
