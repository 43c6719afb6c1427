"""`tapeout verify`: an exported artefact, run again on its recorded inputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tapeout.compiler.artefacts.certificate import CERTIFICATE
from tapeout.compiler.artefacts.certificate import verify as verify_artefact
from tapeout.ir.errors import ArtefactError
from tapeout.json_output import json_text
from tapeout.options import AsJson
from tapeout.progress import progress_line


def verify(
    folder: Annotated[Path, typer.Argument(help="What tapeout export wrote.")],
    as_json: AsJson = False,
) -> None:
    """Runs an exported artefact again on its recorded inputs.

    Exit code 1: a file is missing or altered, the artefact does not run here, or the numbers are not those of the
    certificate. Exit code 2: no folder with a certificate was given. 130: interrupted.

    Example: `tapeout verify ioi`, after `tapeout export smollm2-135m --out ioi`
    """
    if not (folder / CERTIFICATE).is_file():
        raise ArtefactError(f"there is no {folder / CERTIFICATE}", hint="give the folder that tapeout export wrote")
    try:
        with progress_line(quiet=as_json) as notify:
            notify(f"verifying {folder}", 0, 0)
            found = verify_artefact(folder)
    except ArtefactError as error:
        if as_json:
            print(json_text({"path": str(folder), "within": False, "problem": error.message, "hint": error.hint}))
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if as_json:
        print(json_text({"path": str(folder), **found.to_json()}))
    else:
        rows = found.certificate["inputs"]["rows"]
        Console().print(
            f"{folder}: every file is as it was exported\n"
            f"largest error {found.deviation.absolute:.1e} on {rows} recorded rows, recorded was "
            f"{found.certificate['errors']['max_abs_error']:.1e}; the tolerance is {found.tolerance:g} of the largest "
            "value",
            highlight=False,
            soft_wrap=True,
        )
    if not found.within:
        print(
            f"error: the numbers are not those of the certificate: off by {found.deviation.absolute:.3g}, of values up "
            f"to {found.deviation.largest:.3g}\n"
            f"hint: compare the versions: {_versions(found.certificate['versions'])} then, {_versions(found.versions)} "
            "here",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'none'}" for name, version in versions.items())
