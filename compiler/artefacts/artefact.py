"""Compiled circuits read from files; `tapeout.compiler.saving` says what is in them, and writes them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.common.devices import as_device
from tapeout.backends.common.executable import Executable
from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.compiler import run_artefact
from tapeout.compiler.backends import BACKENDS
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.inputs import Input
from tapeout.compiler.optimise import ORDER
from tapeout.compiler.order import evaluation_order
from tapeout.compiler.run_artefact import MANIFEST, ArtefactProblem
from tapeout.compiler.saving import CIRCUITS
from tapeout.ir import postorder
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import ArtefactError
from tapeout.ir.files.folders import existing_folder
from tapeout.ir.files.store import load_circuits
from tapeout.passes import PassRecord


def load(path: str | Path, device: str | torch.device | None = None) -> Compiled:
    """Reads a compiled circuit that `Compiled.save` wrote.

    Args:
        path: the folder.
        device: where it is to run; None for where it ran when it was saved. Only fx and onnx artefacts can go
            elsewhere.

    Raises:
        ArtefactError: if it is missing, truncated, altered or of another version, or does not run here.
    """
    folder = existing_folder(Path(path).resolve(), MANIFEST, "Compiled.save")
    try:
        manifest = run_artefact.verified_manifest(folder)
        run_artefact.check_runs_here(manifest)
    except ArtefactProblem as error:
        raise ArtefactError(
            str(error), hint="copy the folder again, or compile the circuit and save it again"
        ) from error
    try:
        return _compiled(folder, manifest, _device(manifest, device))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"{folder / MANIFEST} does not say what it must: {error!r}", hint="compile the circuit and save it again"
        ) from error


def _device(manifest: dict[str, Any], asked: str | torch.device | None) -> torch.device:
    saved = torch.device(manifest["device"])
    device = saved if asked is None else as_device(asked)
    if device != saved and manifest["backend"] not in run_artefact.PORTABLE:
        raise ArtefactError(
            f"a {manifest['backend']} artefact for {saved} cannot run on {device}",
            hint="compile the circuit for that device, or save it from backend='fx'",
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArtefactError(
            f"the artefact runs on {device}, which is not here", hint="load an fx artefact with device='cpu'"
        )
    return device


def _compiled(folder: Path, manifest: dict[str, Any], device: torch.device) -> Compiled:
    roots = tuple(load_circuits(folder / CIRCUITS))
    order = list(postorder(*roots))
    origins = {order[int(i)]: str(name) for i, name in manifest["origins"]}
    inputs = tuple(Input.from_json(each) for each in manifest["inputs"])
    dtype = as_dtype(manifest["dtype"])
    passes = tuple(PassRecord(**each) for each in manifest["passes"])
    batch = tuple(map(int, manifest.get("batch", ())))
    typical = max(batch, default=None)
    evaluated = evaluation_order(roots, dtype, typical) if any(each.name == ORDER for each in passes) else None
    symbols = [each.batched for each in inputs]
    numerics = Numerics(**manifest.get("numerics", {}))
    program = Program(roots, symbols, origins, dtype, device, typical, evaluated, numerics)
    return Compiled(
        manifest["backend"],
        _executable(folder, manifest, program),
        program,
        inputs,
        passes,
        int(manifest["packed_bytes"]),
        manifest["max_memory"],
        batch,
    )


def _executable(folder: Path, manifest: dict[str, Any], program: Program) -> Executable:
    entry = BACKENDS[manifest["backend"]]
    backend: Any = import_module(entry.module)
    options = {} if manifest["options"] is None else {"options": backend.Options(**manifest["options"])}
    executable: Executable
    if entry.model is None:
        executable, _ = backend.build(program, **options)
    else:
        executable = backend.load(folder / entry.model, program.device, numerics=program.numerics, **options)
    return executable
