"""Circuits in files: a folder with the text, the tensors and a manifest that holds their hashes.

    NAME/circuit.txt          the text form, for people and for `tapeout.ir.text.parse`
    NAME/arrays.safetensors   every tensor once, under its content hash
    NAME/manifest.json        format, versions, hashes of both files and of itself

Nothing is unpickled, and nothing is believed: hashes of files and of tensors are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tapeout.ir.axis_index import Picks
from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.errors import ArtefactError, ParseError
from tapeout.ir.files.folders import existing_folder, written_folder
from tapeout.ir.files.own_version import own_version
from tapeout.ir.nodes.array import Array
from tapeout.ir.nodes.index import Index
from tapeout.ir.nodes.scatter import Scatter
from tapeout.ir.text.parse import parse_circuits
from tapeout.ir.text.printing import circuit_text

FORMAT = "tapeout circuit"
FORMAT_VERSION = 1
TEXT, TENSORS, MANIFEST = "circuit.txt", "arrays.safetensors", "manifest.json"

_CHUNK = 1 << 22
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls the dtypes; tensors of others are stored as bytes."""


def tensors_of(*circuits: Circuit) -> dict[str, torch.Tensor]:
    """The tensors of Arrays and of indices below, by content hash: what a text needs beside it."""
    arrays: dict[str, torch.Tensor] = {}
    picks: dict[str, torch.Tensor] = {}
    for node in postorder(*circuits):
        if isinstance(node, Array):
            arrays.setdefault(node.tensor_hash, node.value)
        elif isinstance(node, Index | Scatter):
            picks.update((i.digest, i.values) for i in node.axis_indices if isinstance(i, Picks))
    return picks | arrays  # an Array stays on its device; an index may come from any


def save_circuit(circuit: Circuit, path: str | Path) -> None:
    """Writes the circuit to a folder, in place of what was saved there; see `Circuit.save`."""
    save_circuits((circuit,), path)


def save_circuits(circuits: Sequence[Circuit], path: str | Path) -> None:
    """Writes several circuits to one folder, what they share once; see `Circuit.save`."""
    target = Path(path).resolve()
    _check_replaceable(target)
    tensors, text = tensors_of(*circuits), circuit_text(*circuits)
    _check_reads_back(circuits, text, tensors)
    with written_folder(target) as folder:
        _write(folder, text, tensors)


def load_circuit(path: str | Path) -> Circuit:
    """Reads a circuit that was saved; see `Circuit.load`."""
    circuits = load_circuits(path)
    if len(circuits) != 1:
        raise ArtefactError(
            f"{Path(path) / TEXT} cannot be read as one circuit: it holds {len(circuits)}",
            hint="several circuits that were saved together are read by load_circuits",
        )
    return circuits[0]


def load_circuits(path: str | Path) -> list[Circuit]:
    """Reads circuits that were saved together; errors as of `Circuit.load`."""
    folder = existing_folder(Path(path).resolve(), MANIFEST, "Circuit.save")
    manifest = _read_manifest(folder)
    files = manifest.get("files")
    for name in (TEXT, TENSORS):
        if not isinstance(files, dict) or files.get(name) != _fingerprint(folder / name):
            raise _altered(folder / name)
    text, tensors = _read_text(folder / TEXT), _read_tensors(folder / TENSORS)
    try:
        return parse_circuits(text, tensors)
    except ParseError as error:
        raise ArtefactError(
            f"{folder / TEXT} cannot be read: {error.message}",
            facts=error.facts,
            hint=f"it was written by tapeout {manifest.get('tapeout')}: load it there, or save it again",
        ) from error


# -- writing


def _check_replaceable(target: Path) -> None:
    """Raises ArtefactError if there is something at the path that is no saved circuit."""
    if not target.name:
        raise ArtefactError(f"{target} is no name for a folder", hint="give the name of a new folder")
    if not target.exists():
        return
    if not target.is_dir() or not {item.name for item in target.iterdir()} <= {TEXT, TENSORS, MANIFEST}:
        raise ArtefactError(
            f"{target} exists and is no saved circuit",
            hint="a circuit is saved as a folder: give another name, or remove what is there",
        )


def _check_reads_back(circuits: Sequence[Circuit], text: str, tensors: dict[str, torch.Tensor]) -> None:
    try:
        found: object = parse_circuits(text, tensors)
    except ParseError as error:
        found = error
    if found == list(circuits):
        return
    raise ArtefactError(
        f"{', '.join(map(repr, circuits))} cannot be saved: its text does not read back as the same circuit",
        facts=[found.message, *found.facts] if isinstance(found, ParseError) else [],
        hint="functions of your own and those that the compiler makes have no text that can be read; "
        "all tensors must be on one device if some are equal: save the circuit from before",
    )


def _write(folder: Path, text: str, tensors: dict[str, torch.Tensor]) -> None:
    (folder / TEXT).write_bytes((text + "\n").encode())
    _write_tensors(folder / TENSORS, tensors)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tapeout": own_version(),
        "files": {name: _fingerprint(folder / name) for name in (TEXT, TENSORS)},
    }
    manifest["sha256"] = _seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, written piece by piece: no tensor is copied whole.

    A header of JSON behind its length, then the tensors; those of the largest elements come first, so that
    all are aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for digest, tensor in ordered:
        start, end = end, end + tensor.nbytes
        dtype = _DTYPES.get(tensor.dtype)
        shape = [tensor.nbytes] if dtype is None else list(tensor.shape)
        header[digest] = {"dtype": dtype or "U8", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in ordered:
            for piece in _pieces(tensor):
                file.write(piece)


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The elements' bytes in row-major order."""
    if not tensor.numel():
        return
    rows = tensor.reshape(-1) if tensor.is_contiguous() or tensor.ndim == 0 else tensor
    step = max(1, _CHUNK // max(1, rows[0].numel()))
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].contiguous().cpu().view(-1).view(torch.uint8)
        yield chunk.numpy().data


# -- reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(_bytes_of(path))
    except (ValueError, RecursionError) as error:
        raise _altered(path) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _altered(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtefactError(
            f"{folder} has format version {manifest.get('format_version')}; {FORMAT_VERSION} can be read",
            hint=f"it was written by tapeout {manifest.get('tapeout')}: install that, or save it again",
        )
    seal = manifest.pop("sha256", None)
    if seal != _seal(manifest):
        raise _altered(path)
    return manifest


def _read_text(path: Path) -> str:
    try:
        return _bytes_of(path).decode()
    except ValueError as error:
        raise _altered(path) from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError) as error:
        raise _altered(path) from error


def _altered(path: Path) -> ArtefactError:
    return ArtefactError(
        f"{path} was altered or truncated since it was saved",
        hint="copy the folder again from where it was saved, or save the circuit again",
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"{path} cannot be read: {error.strerror}",
        hint=f"a saved circuit is a folder with {TEXT}, {TENSORS} and {MANIFEST}",
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    return {"bytes": path.stat().st_size, "sha256": digest}


def _seal(manifest: dict[str, Any]) -> str:
    """The hash of the manifest itself, without its seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
