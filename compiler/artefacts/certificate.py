"""Certificates: what an exported artefact computes, and how far that is from the float64 reference.

    NAME/certificate.json     the circuit's hash, versions, dtype, seed, errors, tolerance; hashes of all files
    NAME/inputs.safetensors   the recorded inputs, by name
    NAME/outputs.safetensors  what came out: of the reference in float64, and of the artefact

They lie in a folder that `Compiled.save` wrote; its manifest holds the hashes of the files that run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tapeout.compiler.artefacts.artefact import load
from tapeout.compiler.checks.reference import in_dtype, in_parts
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation, number
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.run_artefact import MANIFEST, fingerprint, seal
from tapeout.ir import Circuit, circuit_text
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import ArtefactError

FORMAT, FORMAT_VERSION = "tapeout certificate", 1
CERTIFICATE, INPUTS, OUTPUTS = "certificate.json", "inputs.safetensors", "outputs.safetensors"
_PARTS = {"inputs": INPUTS, "outputs": OUTPUTS, "artefact": MANIFEST}
"""The files whose hashes a certificate holds; the manifest holds those of the rest."""

REFERENCE, ARTEFACT = "reference", "artefact"
"""The names of the tensors in the file of outputs."""

LIBRARIES = ("tapeout", "torch", "onnx", "onnxruntime")
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out of an artefact now, beside what was recorded.

    Attributes:
        certificate: what the folder says of itself.
        deviation: how far the values are from the reference.
        from_recorded: how far they are from those that were recorded.
        tolerance: how far they may be.
        versions: of the libraries here.
    """

    certificate: _Json
    deviation: Deviation
    from_recorded: Deviation
    tolerance: float
    versions: dict[str, str | None]

    @property
    def within(self) -> bool:
        """Whether the numbers are those of the certificate."""
        return self.deviation.within(self.tolerance) and self.from_recorded.within(self.tolerance)

    def to_json(self) -> _Json:
        """JSON's types."""
        return {
            "within": self.within,
            "max_abs_error": number(self.deviation.absolute),
            "max_rel_error": number(self.deviation.relative),
            "max_abs_difference_from_recorded": number(self.from_recorded.absolute),
            "tolerance": self.tolerance,
            "versions": self.versions,
            "certificate": self.certificate,
        }


def circuit_hash(circuit: Circuit) -> str:
    """A hash of what the circuit is: of its text, in which each array stands with the hash of its content."""
    return hashlib.sha256(circuit_text(circuit).encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """The versions of tapeout and of what runs artefacts; None for what is not installed."""
    return {name: _version(*_DISTRIBUTIONS.get(name, (name,))) for name in LIBRARIES}


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


# -- writing


def write_certificate(
    folder: Path,
    compiled: Compiled,
    circuit: Circuit,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    about: Mapping[str, Any],
) -> _Json:
    """Writes the certificate of an artefact, with its inputs and outputs, and returns it.

    Args:
        folder: where the artefact was written.
        compiled: the artefact.
        circuit: the circuit that it was compiled from.
        inputs: the recorded inputs by name.
        outputs: `REFERENCE` in float64 and `ARTEFACT`.
        about: what else is to be said, as JSON's types.

    Raises:
        OSError: if that cannot be written.
    """
    off = Deviation.of(outputs[ARTEFACT], outputs[REFERENCE])
    certificate: _Json = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **about,
        "circuit": {"sha256": circuit_hash(circuit)},
        "backend": compiled.backend,
        "dtype": dtype_name(compiled.dtype),
        "versions": versions(),
        "inputs": {
            "rows": _rows(inputs),
            "shapes": {name: list(value.shape) for name, value in inputs.items()},
            "dtypes": {name: dtype_name(value.dtype) for name, value in inputs.items()},
            **_write_tensors(folder / INPUTS, inputs),
        },
        "outputs": _write_tensors(folder / OUTPUTS, outputs),
        "errors": {
            "max_abs_error": number(off.absolute),
            "max_rel_error": number(off.relative),
            "largest_value": off.largest,
        },
        "tolerance": TOLERANCES[compiled.dtype],
        "artefact": {"file": MANIFEST, **_fingerprint(folder / MANIFEST)},
    }
    certificate["sha256"] = seal(certificate)
    (folder / CERTIFICATE).write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
    return certificate


def _rows(inputs: Mapping[str, torch.Tensor]) -> int:
    return next((len(value) for value in inputs.values()), 0)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> _Json:
    from safetensors.torch import save

    path.write_bytes(save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}))
    return {"file": path.name, **_fingerprint(path)}


def _fingerprint(path: Path) -> _Json:
    found = fingerprint(path)
    if found is None:
        raise OSError(f"{path} cannot be read again")
    return found


# -- reading


def read_certificate(folder: str | Path) -> _Json:
    """The certificate of a folder, as it was written.

    Raises:
        ArtefactError: if there is none, or it was altered.
    """
    path = Path(folder) / CERTIFICATE
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read: {error.strerror}", hint="give the folder that tapeout export wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _altered(path) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _altered(path)
    if found.get("format_version") != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format version {found.get('format_version')}, {FORMAT_VERSION} can be read",
            hint="verify it with the version of tapeout that wrote it, or export again",
        )
    if found.get("sha256") != seal(found):
        raise _altered(path)
    return found


def verify(folder: str | Path) -> Verification:
    """Runs an exported artefact again on its recorded inputs.

    Args:
        folder: what `export` wrote.

    Returns:
        The errors now; `within` says whether the numbers are still those of the certificate.

    Raises:
        ArtefactError: if a file is missing, altered or of another version, or the artefact does not run here.
    """
    where = Path(folder)
    certificate = read_certificate(where)
    try:
        for part, name in _PARTS.items():
            _check_file(where / name, certificate[part])
        tolerance, dtype = float(certificate["tolerance"]), as_dtype(certificate["dtype"])
        inputs, outputs = (_read_tensors(where / name) for name in (INPUTS, OUTPUTS))
        reference, recorded = outputs[REFERENCE], outputs[ARTEFACT]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"{where / CERTIFICATE} does not say what it must: {error!r}", hint="export it again"
        ) from error
    compiled = load(where)
    if compiled.dtype is not dtype:
        raise ArtefactError(
            f"{where} computes in {dtype_name(compiled.dtype)}, its certificate says {dtype_name(dtype)}",
            hint="export it again",
        )
    found = in_parts(compiled, in_dtype(compiled.inputs, inputs))
    if found.shape != reference.shape:
        raise ArtefactError(
            f"{where} gives shape {list(found.shape)}, recorded was {list(reference.shape)}", hint="export it again"
        )
    return Verification(
        certificate, Deviation.of(found, reference), Deviation.of(found, recorded), tolerance, versions()
    )


def _check_file(path: Path, recorded: _Json) -> None:
    if fingerprint(path) != {key: recorded[key] for key in ("bytes", "sha256")}:
        raise _altered(path)


def _altered(path: Path) -> ArtefactError:
    return ArtefactError(
        f"{path} is missing, or was altered since it was exported",
        hint="copy the folder again from where it was exported, or export again",
    )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _altered(path) from error
