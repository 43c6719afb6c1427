"""`export`: an artefact with its certificate, and a page that says how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tapeout.compiler.artefacts.certificate import ARTEFACT, CERTIFICATE, INPUTS, OUTPUTS, REFERENCE, write_certificate
from tapeout.compiler.backends import BACKENDS
from tapeout.compiler.checks.reference import Progress, in_dtype, in_parts, reference_values, silent
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation
from tapeout.compiler.compile import compile
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.inputs import Input
from tapeout.compiler.saving import check_target, save
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import ArtefactError, DataError, UnsupportedError

README = "README.md"
EXAMPLE_ROWS = 2


@dataclass(frozen=True, slots=True)
class Format:
    """What can be exported.

    Attributes:
        backend: what makes it.
        needs: what it needs to run.
        library: the module whose arrays it takes; empty for what tapeout alone runs.
        also: what else there is to say.
    """

    backend: str
    needs: str
    library: str
    also: str


FORMATS = {
    "onnx": Format(
        "onnx", "numpy and onnxruntime", "numpy",
        "Any runtime for ONNX reads `{model}`: it does not check what indices it is given.",
    ),
    "pt2": Format(
        "inductor", "torch, on a processor like the one it was compiled on", "torch",
        "`torch._inductor.aoti_load_package` reads `{model}`: it checks no inputs.",
    ),
    "torchscript": Format("torchscript", "torch", "torch", "`torch.jit.load` reads `{model}`, in C++ too."),
    "fx": Format("fx", "tapeout", "", "What `tapeout export` makes with another `--format` runs without tapeout."),
}  # fmt: skip
"""By name; the first is the default."""


def export(
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    path: str | Path,
    format: str = "onnx",
    dtype: str | torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a circuit to a folder: what runs, its certificate with recorded inputs, and a page for people.

    The folder appears whole or not at all.

    Args:
        circuit: a circuit of one row.
        inputs: the inputs to record, by name, with a batch axis first; they are run once.
        path: the folder.
        format: a name of `FORMATS`.
        dtype: what it computes in.
        options: what the backend can be told; see `compile`.
        force: replace an artefact that is there.
        about: what the certificate is to say besides, as JSON's types: the task, the model, the seed of the inputs.
        progress: see `Progress`.

    Returns:
        The certificate.

    Raises:
        UnsupportedError: for a format that is not there, or a circuit that the backend or the opset cannot express.
        ArtefactError: if the folder exists and `force` is not set, cannot be written, or the values are not within
            the dtype's tolerance of the reference.
        TapeoutError: see `compile` and `Compiled`.
    """
    if format not in FORMATS:
        raise UnsupportedError(f"there is no format {format!r}", hint=f"there are {', '.join(FORMATS)}")
    if not isinstance(inputs, Mapping):
        raise DataError(
            f"inputs are a {type(inputs).__name__}", hint='give their values, which are recorded: {"tokens": [N, SEQ]}'
        )
    target, kind = Path(path), as_dtype(dtype)
    check_target(target.resolve(), force)
    notify = progress or silent
    (reference,) = reference_values([circuit], inputs, progress)
    backend = FORMATS[format].backend
    notify(f"compiling with {backend}", 0, 0)
    compiled = compile(circuit, backend, list(inputs), kind, options=options)
    notify("running it on the recorded inputs", 0, 0)
    values = in_parts(compiled, in_dtype(compiled.inputs, inputs))
    _check_within(values, reference, kind)
    certificates: list[dict[str, Any]] = []

    def beside(folder: Path) -> None:
        notify("writing the certificate", 0, 0)
        outputs = {REFERENCE: reference, ARTEFACT: values}
        said = {"export": format, **(about or {})}
        certificates.append(write_certificate(folder, compiled, circuit, inputs, outputs, said))
        page = readme(target.resolve().name, format, compiled, certificates[0])
        (folder / README).write_text(page, encoding="utf-8")

    notify(f"writing {target}", 0, 0)
    save(target, compiled.backend, compiled.executable, compiled.roots, compiled.manifest(), force, beside)
    return certificates[0]


def _check_within(values: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    off = Deviation.of(values, reference)
    if not off.within(TOLERANCES[dtype]):
        raise ArtefactError(
            f"the values are off by {off.absolute:.3g}, of up to {off.largest:.3g}: too much for {dtype_name(dtype)}",
            facts=[f"the tolerance is {TOLERANCES[dtype]:g} of the largest value"],
            hint="tapeout compare --bisect names the node; another dtype may do",
        )


# -- the page


def readme(name: str, format: str, compiled: Compiled, certificate: Mapping[str, Any]) -> str:
    """The page for people: what is in the folder, and how to run it without tapeout."""
    made = FORMATS[format]
    errors = certificate["errors"]
    model = BACKENDS[compiled.backend].model
    lines = [
        f"# {name}",
        "",
        f"A circuit that tapeout compiled, as {format}, in {dtype_name(compiled.dtype)}. It needs {made.needs}.",
        "",
        "| input | dtype | shape | values |",
        "|---|---|---|---|",
        *(_row(each) for each in compiled.inputs),
        "",
        "It gives one result a row.",
        "",
        "```python",
        *_example(made.library, compiled.inputs),
        "```",
        "",
        made.also.format(model=model),
        "",
        f"`{INPUTS}` holds {certificate['inputs']['rows']} recorded rows of inputs, `{OUTPUTS}` what came out and what",
        f"comes out in float64. The largest difference is {errors['max_abs_error']:.3g} ({CERTIFICATE}).",
        "`tapeout verify` runs them again and compares.",
    ]
    return "\n".join(lines) + "\n"


def _row(each: Input) -> str:
    shape = ", ".join(["N", *map(str, each.symbol.shape)])
    values = "any" if each.below is None else f"0 to {each.below - 1}"
    return f"| {each.name} | {dtype_name(each.dtype)} | [{shape}] | {values} |"


def _example(library: str, inputs: tuple[Input, ...]) -> list[str]:
    zeros = [
        f'    "{each.name}": {library or "torch"}.zeros({[EXAMPLE_ROWS, *each.symbol.shape]}, '
        f"dtype={library or 'torch'}.{dtype_name(each.dtype)}),"
        for each in inputs
    ]
    given = ["inputs = {", *zeros, "}"]
    if not library:
        return ["import tapeout", "import torch", "", *given, 'result = tapeout.load(".")(**inputs)']
    return [
        f"import {library}",
        "",
        "from run import Artefact  # run.py of this folder: it checks what it is given",
        "",
        *given,
        'result = Artefact(".")(**inputs)',
    ]
