"""Models for the task: in full precision, and with the tokenizer that prompts need."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tapeout.compiler.checks.reference import Progress
from tapeout.ir.errors import ModelError
from tapeout.models.checkpoint import Checkpoint, load_checkpoint


def load_in_full_precision(model: str | Path | Any, progress: Progress) -> Checkpoint:
    """A model, one of 16 bits in float32: else its rotary tables too were in 16 bits, as Hugging Face's are not.

    Args:
        model: see `load_circuit`.
        progress: told the stages of the load.

    Raises:
        ModelError: if it cannot be loaded.
    """
    checkpoint = load_checkpoint(model, progress=lambda line: progress(line, 0, 0))
    if checkpoint.model.dtype.itemsize >= torch.float32.itemsize:
        return checkpoint
    return replace(checkpoint, model=copy_in(checkpoint.model, torch.float32))


def copy_in(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a Hugging Face model in another dtype."""
    return deepcopy(model).to(dtype)


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: if it has none.
    """
    if checkpoint.tokenizer is None:
        raise ModelError(
            f"{checkpoint.source} has no tokenizer, and IOI prompts are made of text",
            hint="use a checkpoint with its tokenizer files",
        )
    return checkpoint.tokenizer
