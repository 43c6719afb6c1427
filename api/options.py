"""Options that several commands have, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL = "smollm2-135m"
"""The model of commands that are given none."""

Model = Annotated[str, typer.Argument(help='A local directory, a hub id, or "smollm2-135m".')]
ModelToo = Annotated[str | None, typer.Argument(metavar="model", help="The same as --model.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist, unless --force.")]
Seed = Annotated[int, typer.Option(help="Seed of the prompts.")]
Prompts = Annotated[int, typer.Option("-n", "--n", min=1, help="Number of prompts.")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt; that of the IOI prompts by default.")]
Dtype = Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="What it computes in.")]
Device = Annotated[str, typer.Option(help='Where it runs: "cpu", or "cuda" on a machine with a GPU.')]
Force = Annotated[bool, typer.Option("--force", help="Replace an artefact that is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def the_model(argument: str | None, option: str) -> str:
    """The model that a command was given by its place or by --model.

    Raises:
        typer.BadParameter: if both are there and differ.
    """
    if argument is not None and option not in (MODEL, argument):
        raise typer.BadParameter(f"the model is {argument} and --model {option}: give one")
    return option if argument is None else argument
