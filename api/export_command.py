"""`tapeout export`: a model's task as an artefact with a certificate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from tapeout.compiler.artefacts.export import export as export_circuit
from tapeout.compiler.saving import check_target
from tapeout.json_output import json_text
from tapeout.options import AsJson, Dtype, Force, Length, Model, Out
from tapeout.progress import progress_line
from tapeout.tasks.ioi.setting import load_setting


def export(
    model: Model,
    out: Out,
    task: Annotated[Literal["ioi"], typer.Option(help="What is computed: the IOI logit difference.")] = "ioi",
    format: Annotated[
        Literal["onnx", "pt2", "torchscript", "fx"],
        typer.Option(help="onnx runs with onnxruntime, pt2 (ahead of time, Inductor) and torchscript with torch."),
    ] = "onnx",
    dtype: Dtype = "float32",
    length: Length = None,
    opset: Annotated[int | None, typer.Option(help="The version of ONNX's operators (onnx).")] = None,
    attention_op: Annotated[
        bool | None,
        typer.Option("--attention-op/--no-attention-op", help="Whether attention is ONNX's operator for it (onnx)."),
    ] = None,
    external_data: Annotated[
        bool | None, typer.Option("--external-data", help="Weights in a file beside the model (onnx).")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Prompts to record.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the recorded prompts.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Exports the IOI logit difference of a model, with a certificate and a page that says how to run it.

    The artefact takes `tokens` [N, length] and `labels` [N, 2] (the IO and the S token), both int64, for any N, and
    gives one logit difference a prompt. The certificate holds the circuit's hash, versions, and the largest error
    against the float64 reference on recorded prompts; `tapeout verify` runs these again.

    Exit code 2: bad options, model or data, an existing folder, values out of tolerance. 130: interrupted; nothing
    half-written is left.

    Example: `tapeout export smollm2-135m --out ioi --format onnx`; then read `ioi/README.md`
    """
    check_target(out.resolve(), force)
    given = {"opset": opset, "attention_op": attention_op, "external_data": external_data}
    options = {name: value for name, value in given.items() if value is not None}
    with progress_line(quiet=as_json) as notify:
        setting = load_setting(model, n, length, seed, notify)
        about: dict[str, Any] = {"task": task, "model": setting.name, "seed": seed, "prompts": setting.prompts}
        certificate = export_circuit(
            setting.metric, setting.inputs, out, format, dtype, options or None, force=force, about=about,
            progress=notify,
        )  # fmt: skip
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if as_json:
        print(json_text({"path": str(out), "bytes": size, "certificate": certificate}))
        return
    errors, circuit = certificate["errors"], certificate["circuit"]["sha256"]
    console = Console()
    console.print(
        f"{out}: {format} in {dtype}, {size / 1e6:,.0f} MB; circuit {circuit[:12]}\n"
        f"largest error {errors['max_abs_error']:.1e} on {n} {setting.prompts} (values up to "
        f"{errors['largest_value']:.3g}), within the tolerance of {certificate['tolerance']:g} of that",
        highlight=False,
        soft_wrap=True,
    )
