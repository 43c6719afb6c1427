"""Compiled circuits written to files.

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.common.executable import Executable
from tapeout.compiler import run_artefact
from tapeout.compiler.backends import BACKENDS
from tapeout.compiler.run_artefact import FORMAT, FORMAT_VERSION, MANIFEST, fingerprint, seal
from tapeout.ir import Circuit
from tapeout.ir.errors import ArtefactError, UnsupportedError
from tapeout.ir.files.folders import check_writable, written_folder
from tapeout.ir.files.own_version import own_version
from tapeout.ir.files.store import save_circuits

CIRCUITS, RUN = "circuits", "run.py"


def save(
    path: Path,
    backend: str,
    executable: Executable,
    roots: Sequence[Circuit],
    about: Mapping[str, Any],
    force: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes a compiled circuit to a folder; see `Compiled.save`.

    Args:
        path: the folder.
        backend: what made the executable.
        executable: what runs.
        roots: the circuits.
        about: what else the manifest says.
        force: replace an artefact that is there.
        beside: writes more files to the folder before it gets its name.
    """
    target = path.resolve()
    if backend not in BACKENDS:
        raise UnsupportedError(f"{backend} cannot be saved", hint=f"there are {', '.join(BACKENDS)}")
    check_target(target, force)
    with written_folder(target) as folder:
        _write(folder, backend, executable, roots, about)
        if beside is not None:
            beside(folder)


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


def _write(
    folder: Path, backend: str, executable: Executable, roots: Sequence[Circuit], about: Mapping[str, Any]
) -> None:
    entry = BACKENDS[backend]
    save_circuits(roots, folder / CIRCUITS)
    if entry.model is not None:
        what_runs: Any = executable
        what_runs.save(folder / entry.model)
        shutil.copyfile(run_artefact.__file__, folder / RUN)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tapeout": own_version(),
        "torch": torch.__version__,
        "backend": backend,
        "model": entry.model,
        "platform": run_artefact.this_platform(),
        "note": "inductor packages run only on processors with at least this cpu_capability, and on this torch",
        "least_rows": entry.least_rows,
        **about,
    }
    manifest["files"] = {
        str(file.relative_to(folder).as_posix()): fingerprint(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest["sha256"] = seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
