"""The command line: its commands, each in a file of its own, and how it ends."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import Annotated

import typer

import tapeout
from tapeout.bench import bench
from tapeout.compare_command import compare
from tapeout.compile_command import compile
from tapeout.compiler.allocator import keep_freed_memory
from tapeout.export_command import export
from tapeout.ioi import ioi
from tapeout.ir.errors import TapeoutError
from tapeout.patch_command import patch
from tapeout.show import show
from tapeout.verify_command import verify

INTERRUPTED = 130
"""The exit code after Ctrl-C, which typer has by then turned into a SystemExit."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
app.command()(ioi)
app.command()(compile)
app.command()(bench)
app.command()(compare)
app.command()(export)
app.command()(verify)
app.command()(patch)
app.command()(show)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tapeout {tapeout.__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """tapeout: a static-graph compiler for transformer circuits.

    Begin with `tapeout ioi`, which takes SmolLM2 apart and measures it; `tapeout patch --sweep direct --out direct`
    says which heads move the answer; `tapeout export smollm2-135m --out ioi` writes a model that runs without
    tapeout. `tapeout COMMAND --help` says what can be varied.
    """


def main() -> None:
    """The entry point: errors as messages, Ctrl-C as a clean stop."""
    keep_freed_memory()
    sys.unraisablehook = _unraisable
    try:
        try:
            app(prog_name="tapeout")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here its errors can still be told
    except TapeoutError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        _fail(f"{error}{notes}")
    except MemoryError:
        _fail("memory ran out\nhint: ask for fewer prompts (-n)")
    except BrokenPipeError:  # who reads our output has seen enough
        sys.stdout = None  # what could not be written is not tried again at the end
        sys.exit(1)
    except OSError as error:
        sys.stdout = None
        _fail(f"{error}\nhint: check that the files are there, and the disk's space")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("stopped", file=sys.stderr)
        raise


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Sends a Ctrl-C again that Python dropped, because it came while a callback of a weak reference ran."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(what)
