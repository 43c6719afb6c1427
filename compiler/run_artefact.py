"""Runs a saved artefact: needs neither tapeout nor a compiler, but torch, or for an onnx one numpy and onnxruntime.

This file is copied into every artefact as `run.py`, beside the `manifest.json` that says what the inputs are.

    python run.py inputs.json       where inputs.json is {"tokens": [[1, 2, 3]], ...}; prints the results as JSON

    from run import Artefact
    Artefact("folder")(tokens=torch.tensor([[1, 2, 3]]))  # an onnx one takes and gives numpy arrays
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FORMAT = "tapeout artefact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PORTABLE = ("fx", "onnx")
"""Backends whose artefacts hold no compiled code: they run with other versions, and on other devices."""

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512", "AMX")
"""What torch.backends.cpu.get_cpu_capability() may say on x86, the least first."""


class ArtefactProblem(RuntimeError):
    """The artefact is incomplete, altered, of another version or for another machine."""


class InputProblem(ValueError):
    """An input is wrong: its name, its dtype, its shape, its range, its device."""


class Artefact:
    """A compiled circuit from a folder: call it with its inputs by name.

    Attributes:
        manifest: what the folder says of itself.
    """

    def __init__(self, folder: str | Path) -> None:
        """Reads the folder.

        Raises:
            ArtefactProblem: if it is incomplete or altered, or does not run here.
        """
        self.manifest = verified_manifest(Path(folder))
        check_runs_here(self.manifest)
        make = OnnxModel if self.manifest["backend"] == "onnx" else TorchModel
        self._model = make(Path(folder) / self.manifest["model"], self.manifest)

    def __call__(self, /, **values: Any) -> Any:
        """The result, one row an entry of the batch; a tuple if several circuits were compiled together.

        Raises:
            InputProblem: for a wrong input; what is given never becomes a wrong number.
        """
        given = checked(self.manifest["inputs"], values, self._model.misfit)
        return self._model([values[name] for name in given])

    def from_lists(self, values: dict[str, Any]) -> dict[str, Any]:
        """Arrays of the right dtype of lists of numbers; raises InputProblem."""
        dtypes = {each["name"]: each["dtype"] for each in self.manifest["inputs"]}
        found = {}
        for name, value in values.items():
            try:
                found[name] = self._model.array(value, dtypes.get(name))
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputProblem(f"{name} is no regular list of numbers: {error}") from error
        return found


class TorchModel:
    """A TorchScript module or an ahead-of-time package: torch tensors in and out."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        import torch

        self.device = torch.device(manifest["device"])
        self._least_rows: int = manifest["least_rows"]
        self._run = _loaded(path, manifest["backend"], self.device)

    def misfit(self, value: Any) -> str | None:
        """What is wrong with a value, besides shape and dtype."""
        import torch

        if not isinstance(value, torch.Tensor):
            return f"is {type(value).__name__}, not a torch.Tensor"
        return None if value.device == self.device else f"is on {value.device}, the artefact runs on {self.device}"

    def array(self, value: Any, dtype: str | None) -> Any:
        import torch

        found = torch.tensor(value)
        wanted = None if dtype is None else getattr(torch, dtype)
        integers = not found.is_floating_point() and found.dtype is not torch.bool
        return found if wanted is None or not (integers or wanted.is_floating_point) else found.to(wanted)

    def __call__(self, given: Sequence[Any]) -> Any:
        import torch

        rows = given[0].shape[0] if given else 0
        missing = self._least_rows - rows if given else 0
        if missing > 0:
            given = [torch.cat([each, each[:1].expand(missing, *each.shape[1:])]) for each in given]
        with torch.inference_mode():
            out = self._run(*(each.detach().contiguous() for each in given))
        if missing <= 0:
            return out
        return tuple(each[:rows] for each in out) if isinstance(out, tuple | list) else out[:rows]


class OnnxModel:
    """An ONNX model: numpy arrays in and out."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        import onnxruntime

        on_cpu = manifest["device"] == "cpu"
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                providers=["CPUExecutionProvider" if on_cpu else "CUDAExecutionProvider"],
                disabled_optimizers=["MatMulScaleFusion"],  # it keeps a factor of float64 in float32
            )
        except Exception as error:  # onnxruntime has a class an error, without a common one
            raise ArtefactProblem(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {error}") from error
        if not on_cpu and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise ArtefactProblem(f"it runs on {manifest['device']}, and onnxruntime finds no CUDA here")

    def misfit(self, value: Any) -> str | None:
        """What is wrong with a value, besides shape and dtype."""
        import numpy

        return None if isinstance(value, numpy.ndarray) else f"is {type(value).__name__}, not a numpy.ndarray"

    def array(self, value: Any, dtype: str | None) -> Any:
        import numpy

        found = numpy.array(value)
        wanted = None if dtype is None else numpy.dtype(dtype)
        return (
            found
            if wanted is None or found.dtype.kind not in ("i" if wanted.kind != "f" else "if")
            else found.astype(wanted)
        )

    def __call__(self, given: Sequence[Any]) -> Any:
        names = [each.name for each in self._session.get_inputs()]
        out = self._session.run(None, dict(zip(names, given, strict=True)))
        return out[0] if len(out) == 1 else tuple(out)


def checked(inputs: list[dict[str, Any]], values: dict[str, Any], misfit: Callable[[Any], str | None]) -> list[str]:
    """The names of the inputs in their order, after the values were compared with what they must be.

    Args:
        inputs: what the manifest says of them.
        values: arrays by name.
        misfit: what is wrong with an array by itself.

    Raises:
        InputProblem: if one is wrong.
    """
    names = [each["name"] for each in inputs]
    if set(values) != set(names):
        raise InputProblem(f"the inputs are {names}, given were {sorted(values)}")
    rows: int | None = None
    for each in inputs:
        value = values[each["name"]]
        problem = misfit(value)
        if problem is not None:
            raise InputProblem(f"{each['name']} {problem}")
        _check(each, value)
        if rows is not None and value.shape[0] != rows:
            raise InputProblem(f"{each['name']} has {value.shape[0]} rows, {names[0]} has {rows}")
        rows = value.shape[0]
    return names


def _check(each: dict[str, Any], value: Any) -> None:
    name, shape, limit = each["name"], each["row_shape"], each["limit"]
    if list(value.shape[1:]) != shape or value.ndim == 0:
        raise InputProblem(f"{name} has shape {list(value.shape)}, not [rows{''.join(f', {n}' for n in shape)}]")
    if value.shape[0] == 0:
        raise InputProblem(f"{name} has no rows")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != each["dtype"]:
        raise InputProblem(f"{name} has dtype {dtype}, not {each['dtype']}")
    if limit is not None and 0 not in value.shape:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= limit:
            raise InputProblem(f"{name} holds {low if low < 0 else high}, outside 0 to {limit - 1}")


# -- the folder


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after every file's size and hash were compared with it; raises ArtefactProblem."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactProblem(f"{folder / MANIFEST} is missing or altered: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactProblem(f"{folder / MANIFEST} describes no tapeout artefact")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtefactProblem(
            f"{folder} has format version {manifest.get('format_version')}, {FORMAT_VERSION} can be read: "
            f"it was written by tapeout {manifest.get('tapeout')}"
        )
    if manifest.get("sha256") != seal(manifest):
        raise ArtefactProblem(f"{folder / MANIFEST} was altered since it was saved")
    for name, recorded in manifest["files"].items():
        if fingerprint(folder / name) != recorded:
            raise ArtefactProblem(f"{folder / name} is missing, truncated or altered since it was saved")
    return manifest


def fingerprint(path: Path) -> dict[str, Any] | None:
    """Size and hash of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": path.stat().st_size, "sha256": digest}
    except OSError:
        return None


def seal(manifest: dict[str, Any]) -> str:
    """The hash of a manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_runs_here(manifest: dict[str, Any]) -> None:
    """Raises ArtefactProblem if compiled code is for another torch or processor."""
    if manifest["backend"] in PORTABLE:
        return
    import torch

    built, here = release(manifest["torch"]), release(torch.__version__)
    if built != here:
        raise ArtefactProblem(f"it was compiled with torch {built}, here is {here}: install that, or compile it again")
    if manifest["backend"] != "inductor":
        return
    theirs, ours = manifest["platform"], this_platform()
    if (theirs["system"], theirs["machine"]) != (ours["system"], ours["machine"]):
        raise ArtefactProblem(
            f"it was compiled for {theirs['system']} on {theirs['machine']}, "
            f"here is {ours['system']} on {ours['machine']}: compile it again here"
        )
    if _rank(theirs["cpu_capability"]) > _rank(ours["cpu_capability"]):
        raise ArtefactProblem(
            f"it was compiled for a processor with {theirs['cpu_capability']}, this one has {ours['cpu_capability']}: "
            "compile it again here"
        )


def this_platform() -> dict[str, str]:
    """What compiled code depends on besides torch."""
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def release(version: str) -> str:
    """Major and minor number of a version."""
    return ".".join(version.split(".")[:2])


def _rank(capability: str) -> int:
    return CAPABILITIES.index(capability) if capability in CAPABILITIES else 0


def _loaded(path: Path, backend: str, device: Any) -> Any:
    import torch

    if backend == "torchscript":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated")
            return torch.jit.load(str(path), map_location=device)
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))


# -- the command


def main(arguments: list[str]) -> int:
    """`python run.py inputs.json`; the exit code is 2 for wrong inputs and 1 for an artefact that cannot run."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        artefact = Artefact(Path(__file__).resolve().parent)
        print(json.dumps(_as_lists(artefact(**artefact.from_lists(_from_json(Path(arguments[0])))))))
    except (ArtefactProblem, InputProblem) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1 if isinstance(error, ArtefactProblem) else 2
    return 0


def _from_json(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputProblem(f"{path} is no JSON file: {error}") from error
    if not isinstance(given, dict):
        raise InputProblem(f"{path} holds no object of inputs by name")
    return given


def _as_lists(result: Any) -> Any:
    return [each.tolist() for each in result] if isinstance(result, tuple | list) else result.tolist()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
