"""Options that several commands have, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Argument(help='A local directory, a hub id, or "smollm2-135m".')]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist, unless --force.")]
Seed = Annotated[int, typer.Option(help="Seed of the prompts.")]
Prompts = Annotated[int, typer.Option("-n", "--n", min=1, help="Number of prompts.")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt; that of the IOI prompts by default.")]
Dtype = Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="What it computes in.")]
Device = Annotated[str, typer.Option(help='Where it runs: "cpu", or "cuda" on a machine with a GPU.')]
Force = Annotated[bool, typer.Option("--force", help="Replace an artefact that is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
