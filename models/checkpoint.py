"""From the name of a model to a transformers model and its tokenizer.

A model is named by a transformers object, a local directory, a hub id, or the name of a model that an
installed distribution carries as a GGUF file (`"smollm2-135m"`, see `packaged`). Weights are read from safetensors,
memory-mapped, so loading copies none of them.

Nothing is unpickled and no code from a checkpoint is run. transformers is imported inside the functions
that need it: importing this module stays light.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tapeout.ir.errors import ModelError
from tapeout.models.families import family_of
from tapeout.models.packaged import PACKAGED_MODELS, cached
from tapeout.models.transformers_io import (
    Progress,
    auto_tokenizer,
    first_line,
    quiet_transformers,
    unreadable_as_model_error,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
        return _read(cached(packaged, notify), dtype, notify, source=packaged.name)
    path = Path(model).expanduser()
    if isinstance(model, Path) or path.exists() or _looks_like_path(model):
        _check_directory(path)
        return _read(path, dtype, notify, source=str(path))
    return _from_hub(model, dtype, notify)


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
            facts=[first_line(error)],
            hint="copy or download the file again",
        ) from error


def _read_model(source: str, dtype: torch.dtype | None, *, hint: str, bars: bool = False) -> PreTrainedModel:
    """The model in a directory or on the hub, memory-mapped and complete."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers(bars=bars), unreadable_as_model_error(f"cannot load the model {source}", hint):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        family_of(config)  # before weights are read, or fetched
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
    with quiet_transformers(), unreadable_as_model_error(f"cannot read the tokenizer in {source}", hint):
        return auto_tokenizer(source)


def _tokenizer_from_hub(name: str) -> PreTrainedTokenizerBase | None:
    for only_local in (True, False):
        try:
            with quiet_transformers(bars=True):
                tokenizer = auto_tokenizer(name, local_files_only=only_local)
        except (OSError, ValueError):
            continue
        if len(tokenizer) > len(tokenizer.all_special_tokens):
            return tokenizer
    return None


def _some(items: list[str], limit: int = 5) -> list[str]:
    return items if len(items) <= limit else [*items[:limit], f"... {len(items) - limit} more"]


def _ignore(_stage: str) -> None:
    return None
