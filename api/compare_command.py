"""`tapeout compare`: the IOI logit difference of a model on every backend, beside the float64 reference."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tapeout.compiler.backends import BACKENDS
from tapeout.compiler.checks.bisect import REFERENCE, Parting, bisect
from tapeout.compiler.checks.compare import Compared, Comparison
from tapeout.compiler.checks.compare import compare as compare_circuit
from tapeout.compiler.checks.peers import rust_circuit_peer
from tapeout.ir.errors import DataError
from tapeout.json_output import json_text
from tapeout.options import AsJson, Length, Model, Prompts, Seed
from tapeout.progress import progress_line
from tapeout.tasks.ioi.setting import Setting, hugging_face_logit_diff, load_setting

HUGGING_FACE = "Hugging Face"
_BISECTED_ROWS = 4
_WIDTH = 100
"""Of the table, where there is no terminal to fit."""


def compare(
    model: Model = "smollm2-135m",
    backends: Annotated[str, typer.Option(help=f"all, or some of {','.join(BACKENDS)}.")] = "all",
    dtypes: Annotated[str, typer.Option(help="Some of float32,bfloat16,float64.")] = "float32",
    n: Prompts = 20,
    length: Length = None,
    seed: Seed = 0,
    repeat: Annotated[int, typer.Option(min=0, help="How often each is timed, in turn; 0 for not.")] = 5,
    sizes: Annotated[bool, typer.Option(help="Write each artefact, to a temporary folder, to see its size.")] = True,
    bisecting: Annotated[
        bool,
        typer.Option(
            "--bisect",
            help="Name the first node at which two backends part: the first two of --backends, one alone and the "
            "reference; and each that is out of tolerance from the reference.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compares the IOI logit difference of a model on every backend with the float64 reference.

    Errors are the largest over the prompts: absolute, and as a share of the largest value. Hugging Face's model
    and, where it is installed, rust_circuit stand beside the backends, in float32. Memory is by how much the process
    grew, at most, while a way was made and called first.

    Exit code 1: a backend is out of tolerance. Exit code 2: bad options, model or data. 130: interrupted.

    Example: `tapeout compare smollm2-135m --backends fx,onnx --dtypes float32,bfloat16 --bisect`
    """
    names, kinds = list(BACKENDS) if backends == "all" else _words(backends), _words(dtypes)
    if not kinds:
        raise DataError("no dtype was named", hint="there are float32, bfloat16, float64")
    with progress_line(quiet=as_json) as notify:
        setting = load_setting(model, n, length, seed, notify)
        peers = {
            HUGGING_FACE: lambda: lambda: hugging_face_logit_diff(setting, logits_to_keep=1),
            "rust_circuit": lambda: rust_circuit_peer(setting.metric, setting.inputs),
        }
        result = compare_circuit(
            setting.metric, setting.inputs, names, kinds, peers=peers, repeat=repeat, sizes=sizes,
            progress=notify,
        )  # fmt: skip
        partings = _partings(setting, result, names, notify) if bisecting else {}
    if as_json:
        print(json_text(_facts(setting, result, partings, bisecting)))
    else:
        _print(setting, result, partings)
    if not result.within:
        _say_what_is_wrong(result, bisecting)
        raise typer.Exit(1)


def _say_what_is_wrong(result: Comparison, bisecting: bool) -> None:
    worst = [f"{way.name} in {way.dtype}" for way in result.ways if not way.within]
    if not worst:
        refused = [f"\n  {way.name} in {way.dtype}: {way.note}" for way in result.ways if way.tolerance is not None]
        print(f"error: no backend gave values{''.join(refused)}\nhint: other --backends or --dtypes", file=sys.stderr)
        return
    print(f"error: out of tolerance: {', '.join(worst)}", file=sys.stderr)
    if not bisecting:
        print("hint: --bisect names the first node at which two backends part", file=sys.stderr)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _partings(
    setting: Setting, result: Comparison, names: list[str], notify: Any
) -> dict[tuple[str, str, str], Parting | None]:
    """Where backends part, by the two names and the dtype."""
    few = {name: value[:_BISECTED_ROWS] for name, value in setting.inputs.items()}
    ran = [way for way in result.ways if way.tolerance is not None and way.deviation is not None]
    pairs = [(way.name, REFERENCE, way.dtype) for way in ran if not way.within]
    for dtype in dict.fromkeys(way.dtype for way in ran):
        left, right = [*(way.name for way in ran if way.dtype == dtype), REFERENCE][:2]
        pairs.append((left, right, dtype))
    out = {}
    for left, right, dtype in dict.fromkeys(pairs):
        notify(f"bisecting {left} and {right}", 0, 0)
        out[left, right, dtype] = bisect(setting.metric, few, (left, right), dtype)
    return out


def _facts(
    setting: Setting, result: Comparison, partings: dict[tuple[str, str, str], Parting | None], bisecting: bool
) -> dict[str, Any]:
    facts = {
        "model": setting.name,
        "prompts": len(setting.tokens),
        "length": setting.tokens.shape[1],
        "inputs": setting.prompts,
        **result.to_json(),
    }
    if bisecting:
        facts["bisect"] = [
            {"backends": [left, right], "dtype": dtype, "first": None if found is None else found.to_json()}
            for (left, right, dtype), found in partings.items()
        ]
    return facts


def _print(setting: Setting, result: Comparison, partings: dict[tuple[str, str, str], Parting | None]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)

    def line(text: str) -> None:  # whole, where nobody's terminal asks for it to be broken
        console.print(escape(text), highlight=False, soft_wrap=not console.is_terminal)

    count, length = setting.tokens.shape
    title = f"{escape(setting.name)}: {count} {setting.prompts} of {length} tokens"
    table = Table("way", "dtype", "error", "relative", "seconds", "memory", "artefact", "", title=title)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[2:7]:
        column.justify = "right"
    for way in result.ways:
        table.add_row(*_cells(way))
    console.print(table)
    for way in result.ways:
        if way.note:
            line(f"{way.name} in {way.dtype}: {way.note}")
    line(_beside_hugging_face(result))
    for (left, right, dtype), found in partings.items():
        what = "agree at every node" if found is None else f"part at {found}"
        line(f"{left} and {right} in {dtype} {what}")


def _cells(way: Compared) -> list[str]:
    off = way.deviation
    return [
        way.name,
        way.dtype,
        "" if off is None else f"{off.absolute:.1e}",
        "" if off is None else f"{off.relative:.1e}",
        "" if way.seconds is None else f"{way.seconds:.3f}",
        "" if way.memory is None else f"{way.memory / 1e6:,.0f} MB",
        "" if way.artefact is None else f"{way.artefact / 1e6:,.0f} MB",
        _verdict(way),
    ]


def _verdict(way: Compared) -> str:
    if not way.within:
        return "[red]failed[/red]" if way.deviation is None else f"[red]beyond {way.tolerance:g}[/red]"
    if way.deviation is None:
        return "not compared"
    return "beside" if way.tolerance is None else f"within {way.tolerance:g}"


def _beside_hugging_face(result: Comparison) -> str:
    theirs = result.way(HUGGING_FACE).deviation
    shares = [
        f"{way.name} {way.deviation.absolute / theirs.absolute:.2f}"
        for way in result.ways
        if theirs and theirs.absolute and way.deviation and way.tolerance is not None and way.dtype == "float32"
    ]
    return f"error in float32 as a multiple of Hugging Face's own: {', '.join(shares)}" if shares else ""
