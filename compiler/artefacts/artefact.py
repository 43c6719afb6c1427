"""Compiled circuits in files.

    NAME/manifest.json        format, versions, inputs, hashes of every file and of itself
    NAME/circuits/            the optimised circuits as text and tensors (see `tapeout.ir.files.store`)
    NAME/model.pt, .pt2, .onnx  for torchscript, inductor and onnx, what runs; with a second copy of the weights
    NAME/run.py               for these: runs them with torch alone (onnx: numpy and onnxruntime), after checking the
                              inputs

An fx artefact holds no code: it is lowered again when it is loaded. Nothing is unpickled by tapeout; a TorchScript
module or an ahead-of-time package is code all the same: load such artefacts only from people that you trust. The
hashes tell whether a file is as it was saved, not who saved it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import torch

from tapeout.backends.common.devices import as_device
from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.compiler.artefacts import run_artefact
from tapeout.compiler.artefacts.run_artefact import FORMAT, FORMAT_VERSION, MANIFEST, ArtefactProblem, fingerprint, seal
from tapeout.compiler.compile import BACKENDS
from tapeout.compiler.compiled import Compiled, Executable
from tapeout.compiler.inputs import Input
from tapeout.compiler.optimise import ORDER
from tapeout.compiler.order import evaluation_order
from tapeout.ir import Symbol, postorder
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import ArtefactError, UnsupportedError
from tapeout.ir.files.folders import check_writable, existing_folder, written_folder
from tapeout.ir.files.own_version import own_version
from tapeout.ir.files.store import load_circuits, save_circuits
from tapeout.ir.sizes import BATCH
from tapeout.passes import PassRecord

CIRCUITS, RUN = "circuits", "run.py"
MODELS = {"fx": None, "torchscript": "model.pt", "inductor": "model.pt2", "onnx": "model.onnx"}
"""For every backend that can be saved the file of what runs; None where the circuits are enough."""


def save(
    compiled: Compiled, path: str | Path, force: bool = False, beside: Callable[[Path], None] | None = None
) -> None:
    """Writes a compiled circuit to a folder; see `Compiled.save`.

    Args:
        compiled: the compiled circuit.
        path: the folder.
        force: replace an artefact that is there.
        beside: writes more files to the folder before it gets its name.
    """
    target = Path(path).resolve()
    if compiled.backend not in MODELS:
        raise UnsupportedError(f"{compiled.backend} cannot be saved", hint=f"there are {', '.join(MODELS)}")
    check_target(target, force)
    with written_folder(target) as folder:
        _write(compiled, folder)
        if beside is not None:
            beside(folder)


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


# -- writing


def check_target(target: Path, force: bool) -> None:
    """Raises ArtefactError if a folder cannot be written there: something exists and `force` is not set, or is no
    artefact; or no folder can be made there at all."""
    if not target.name:
        raise ArtefactError(f"{target} is no name for a folder", hint="give the name of a new folder")
    if target.exists() and not force:
        raise ArtefactError(f"{target} exists", hint="give another name, or force=True (--force) to replace it")
    if target.exists() and not _is_artefact(target):
        raise ArtefactError(
            f"{target} exists and is no artefact of tapeout", hint="give another name, or remove what is there"
        )
    check_writable(target)


def _is_artefact(target: Path) -> bool:
    try:
        return bool(json.loads((target / MANIFEST).read_bytes()).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def _write(compiled: Compiled, folder: Path) -> None:
    save_circuits(compiled.roots, folder / CIRCUITS)
    model = MODELS[compiled.backend]
    if model is not None:
        executable: Any = compiled.executable
        executable.save(folder / model)
        shutil.copyfile(run_artefact.__file__, folder / RUN)
    manifest = _manifest(compiled, model)
    manifest["files"] = {
        str(file.relative_to(folder).as_posix()): fingerprint(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest["sha256"] = seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _manifest(compiled: Compiled, model: str | None) -> dict[str, Any]:
    order = list(postorder(*compiled.roots))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tapeout": own_version(),
        "torch": torch.__version__,
        "backend": compiled.backend,
        "model": model,
        "dtype": dtype_name(compiled.dtype),
        "device": str(compiled.device),
        "platform": run_artefact.this_platform(),
        "note": "inductor packages run only on processors with at least this cpu_capability, and on this torch",
        "least_rows": 2 if compiled.backend == "inductor" else 1,
        "inputs": [_input_entry(each) for each in compiled.inputs],
        "outputs": len(compiled.roots),
        "max_memory": compiled.max_memory,
        "batch": list(compiled.batch),
        "packed_bytes": compiled.packed_bytes,
        "numerics": asdict(compiled.numerics),
        "options": _options_entry(compiled.executable),
        "passes": [asdict(each) for each in compiled.passes],
        "origins": [[i, compiled.origins[node]] for i, node in enumerate(order) if node in compiled.origins],
    }


def _input_entry(each: Input) -> dict[str, Any]:
    return {
        "name": each.name,
        "dtype": dtype_name(each.dtype),
        "row_shape": [int(size) for size in each.symbol.shape],  # type: ignore[arg-type]
        "limit": each.below,
        "symbol": str(each.symbol.uuid),
        "batched": str(each.batched.uuid),
    }


def _options_entry(executable: Any) -> dict[str, Any] | None:
    options = getattr(executable, "options", None)
    return None if options is None else asdict(options)


# -- reading


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
    inputs = tuple(_input(each) for each in manifest["inputs"])
    dtype = as_dtype(manifest["dtype"])
    passes = tuple(PassRecord(**each) for each in manifest["passes"])
    batch = tuple(map(int, manifest.get("batch", ())))
    typical = max(batch, default=None)
    evaluated = evaluation_order(roots, dtype, typical) if any(each.name == ORDER for each in passes) else None
    symbols = [each.batched for each in inputs]
    numerics = Numerics(**manifest.get("numerics", {}))
    return Compiled(
        manifest["backend"],
        _executable(folder, manifest, Program(roots, symbols, origins, dtype, device, typical, evaluated, numerics)),
        inputs,
        roots,
        origins,
        passes,
        dtype,
        device,
        int(manifest["packed_bytes"]),
        manifest["max_memory"],
        batch,
        evaluated,
        numerics,
    )


def _input(entry: dict[str, Any]) -> Input:
    shape, dtype = tuple(map(int, entry["row_shape"])), as_dtype(entry["dtype"])
    name, limit = str(entry["name"]), entry["limit"]
    symbol = Symbol(shape, UUID(entry["symbol"]), name, dtype)
    batched = Symbol((BATCH, *shape), UUID(entry["batched"]), name, dtype)
    return Input(name, symbol, batched, None if limit is None else int(limit))


def _executable(folder: Path, manifest: dict[str, Any], program: Program) -> Executable:
    backend: Any = import_module(BACKENDS[manifest["backend"]])
    model = MODELS[manifest["backend"]]
    options = {} if manifest["options"] is None else {"options": backend.Options(**manifest["options"])}
    executable: Executable
    if model is None:
        executable, _ = backend.build(program, **options)
    else:
        executable = backend.load(folder / model, program.device, numerics=program.numerics, **options)
    return executable
