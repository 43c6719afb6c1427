"""`load_circuit`: from a checkpoint to circuits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tapeout.ir import Circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.models.families import family_of
from tapeout.models.info import TransformerInfo

Loaded = tuple[dict[str, Circuit], Any, TransformerInfo]


def load_circuit(
    model: Any,
    *,
    dtype: torch.dtype | None = None,
    activation: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Loaded:
    """A model as circuits. No weight is copied.

    Args:
        model: a transformers model object, a local directory, a hub id, or "smollm2-135m".
        dtype: the dtype to load weights in; the checkpoint's own by default.
        activation: another activation function than the configuration's ("gelu" for GPT-2, as the
            seed's system has it).
        progress: called with one line of text as each stage begins.

    Returns:
        The circuits (`"t.bind_w"`: the model with its weights, logits [SEQ, VOCAB] from `t.input` [SEQ, HIDDEN];
        `"t.w.tok_embeds"`; `"t.w.pos_embeds"` where positions are learnt), the tokenizer (None if the
        checkpoint has none), and what is known of the model, with `bind_to_input`.

    Raises:
        ModelError: if the checkpoint cannot be read or its architecture is not supported.
    """
    checkpoint = load_checkpoint(model, dtype=dtype, progress=progress)
    if progress is not None:
        progress("building the circuit")
    circuits, info = circuit_of(checkpoint.model, activation=activation, source=checkpoint.source)
    return circuits, checkpoint.tokenizer, info


def circuit_of(
    model: Any, *, activation: str | None = None, source: str = ""
) -> tuple[dict[str, Circuit], TransformerInfo]:
    """The circuits of a transformers model object.

    Raises:
        ModelError: if its architecture or a field of its configuration is not supported.
    """
    config = model.config
    family = family_of(config)
    return family.build(config, model.state_dict(), activation, source or getattr(model, "name_or_path", ""))


def load_gpt2_small_circuit(source: str | Path | Any = "gpt2", *, activation: str | None = None) -> Loaded:
    """GPT-2 small, under the name that the seed's system has for it; see `load_circuit`."""
    return load_circuit(source, activation=activation)
