"""A model with its metric and prompts: what is measured, compared and exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.common.devices import as_device
from tapeout.compiler.checks.reference import Progress, silent
from tapeout.ir import Circuit
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import Checkpoint
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.ioi.dataset import IOIDataset
from tapeout.tasks.ioi.loading import load_in_full_precision

DEFAULT_LENGTH = 16
"""Tokens of a prompt for a model without a tokenizer."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Attributes:
        name: the model's name.
        model: the Hugging Face model.
        metric: its logit difference of one prompt, with inputs `tokens` and `labels`.
        tokens: the prompts [N, SEQ], int64.
        labels: the IO and S tokens [N, 2], int64.
        prompts: what the prompts are, in words.
    """

    name: str
    model: Any
    metric: Circuit
    tokens: torch.Tensor
    labels: torch.Tensor
    prompts: str = "IOI prompts"

    def to(self, device: str | torch.device) -> Setting:
        """The same with the model and the prompts on a device.

        Raises:
            UnsupportedError: if it is not here.
        """
        where = as_device(device)
        return replace(self, model=self.model.to(where), tokens=self.tokens.to(where), labels=self.labels.to(where))

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The metric's inputs by name."""
        return {"tokens": self.tokens, "labels": self.labels}


def load_setting(
    model: str | Path | Any,
    n: int,
    length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Setting:
    """Loads a model, splits its circuit by head and by position, and makes prompts for it.

    The prompts are random tokens if the model has no tokenizer, or its IOI prompts have another length than the
    one asked for.

    Args:
        model: see `load_circuit`.
        n: prompts.
        length: tokens of a prompt; None for that of the IOI prompts.
        seed: of the prompts.
        progress: see `Progress`.

    Raises:
        ModelError: if the model cannot be loaded.
        DataError: if the prompts cannot be made.
    """
    notify = progress or silent
    checkpoint = load_in_full_precision(model, notify)
    notify("making prompts", 0, 0)
    tokens, labels, prompts = _prompts(checkpoint, n, length, seed)
    notify("splitting the circuit by head and position", 0, 0)
    circuits, info = circuit_of(checkpoint.model, source=checkpoint.source)
    split, _ = split_circuit(circuits, info, tokens.shape[1])
    return Setting(checkpoint.source, checkpoint.model, logit_diff_circuit(split), tokens, labels, prompts)


def _prompts(checkpoint: Checkpoint, n: int, length: int | None, seed: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    if checkpoint.tokenizer is not None:
        data = IOIDataset("mixed", n, seed, tokenizer=checkpoint.tokenizer)
        if length in (None, data.max_len):
            return data.prompts_toks, data.labels, "IOI prompts"
    generator = torch.Generator().manual_seed(seed)
    vocabulary = checkpoint.model.config.vocab_size
    tokens = torch.randint(vocabulary, (n, length or DEFAULT_LENGTH), generator=generator)
    return tokens, torch.randint(vocabulary, (n, 2), generator=generator), "random prompts"


def hugging_face_logit_diff(setting: Setting, **options: Any) -> torch.Tensor:
    """The Hugging Face model's own logit differences [N]; `options` are its own."""
    with torch.inference_mode():
        last: torch.Tensor = setting.model(setting.tokens, use_cache=False, **options).logits[:, -1]
    io, s = last.gather(1, setting.labels).unbind(1)
    return io - s
