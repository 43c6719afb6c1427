"""`tapeout compile`: the IOI logit difference of a model as an artefact."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer
from rich.console import Console

from tapeout.compiler import compile as compile_circuit
from tapeout.compiler.saving import check_target
from tapeout.json_output import json_text
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.options import MODEL, AsJson, Dtype, Force, ModelToo, Out, the_model
from tapeout.tasks.ioi.circuit import logit_diff_circuit


def compile(
    out: Out,
    model: Annotated[str, typer.Option(help='A local directory, a hub id, or "smollm2-135m".')] = MODEL,
    model_too: ModelToo = None,
    backend: Annotated[
        Literal["fx", "torchscript", "inductor", "onnx"], typer.Option(help="What the artefact is for.")
    ] = "fx",
    dtype: Dtype = "float32",
    length: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, the beginning-of-text token included.")] = 16,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compiles the IOI logit difference of a model and writes it to a folder.

    The artefact takes `tokens` [N, length] and `labels` [N, 2] (the IO and the S token), both int64, for any N,
    and gives one logit difference a prompt. `tapeout.load(PATH)` reads it. `tapeout export` adds a certificate and a
    page that says how to run it.

    Exit code 2: bad options or model, an existing folder. 130: interrupted; nothing half-written is left.

    Example: `tapeout compile smollm2-135m --out ioi.tapeout --backend torchscript`
    """
    name = the_model(model_too, model)

    def say(line: str) -> None:
        if not as_json:
            print(line, file=sys.stderr)

    check_target(out.resolve(), force)
    checkpoint = load_checkpoint(name, progress=say)
    circuits, info = circuit_of(checkpoint.model, source=checkpoint.source)
    say("splitting the circuit by head and position")
    split, _ = split_circuit(circuits, info, length)
    say(f"compiling with {backend}")
    compiled = compile_circuit(logit_diff_circuit(split), backend, ["tokens", "labels"], dtype)
    say(f"writing {out}")
    compiled.save(out, force=force)
    cost = compiled.cost(1)
    facts = {
        "path": str(out),
        "model": checkpoint.source,
        "backend": backend,
        "dtype": dtype,
        "length": length,
        "nodes_before": compiled.passes[0].nodes_before,
        "nodes": cost.nodes,
        "gflop_per_prompt": cost.flops / 1e9,
        "weight_bytes": cost.weight_bytes,
        "packed_bytes": cost.packed_bytes,
    }
    if as_json:
        print(json_text(facts))
        return
    console = Console()
    console.print(
        f"{out}: {facts['nodes_before']} nodes compiled to {cost.nodes}; {cost.flops / 1e9:.2f} GFLOP a prompt, "
        f"{cost.weight_bytes / 1e6:.0f} MB of weights",
        highlight=False,
        soft_wrap=True,
    )
