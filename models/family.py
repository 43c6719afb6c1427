"""What a model family is, and the check that its configuration is understood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tapeout.ir import Circuit
from tapeout.ir.errors import ModelError
from tapeout.models.info import TransformerInfo
from tapeout.models.library import Weights

Loaded = tuple[dict[str, Circuit], TransformerInfo]

IRRELEVANT = frozenset(
    "transformers_version architectures output_hidden_states return_dict dtype torch_dtype use_cache id2label label2id "
    "problem_type chunk_size_feed_forward is_encoder_decoder initializer_range _name_or_path model_type "
    "output_attentions "
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id tokenizer_class attn_implementation "
    "_attn_implementation task_specific_params "
    "quantization_config".split()
)
"""Configuration fields that say nothing about what the model computes in inference."""

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Attributes:
        model_type: its name in Hugging Face configurations.
        understood: the configuration fields that `build` reads.
        irrelevant: those that do not matter in inference (dropout and the like).
        build: from configuration, weights, activation option and source to circuits and info.
    """

    model_type: str
    understood: frozenset[str]
    irrelevant: frozenset[str]
    build: Callable[[Any, Weights, str | None, str], Loaded]

    def check_config(self, config: Any) -> None:
        """Every field must be understood, irrelevant, or have its default value.

        Raises:
            ModelError: for the first that is none of these.
        """
        defaults = type(config)().to_dict()
        for name, value in config.to_dict().items():
            if name in self.understood or name in self.irrelevant or name in IRRELEVANT:
                continue
            if name not in defaults or value != defaults[name]:
                default = f"; its default is {defaults[name]!r}" if name in defaults else ""
                raise ModelError(
                    f"the {self.model_type} configuration has {name}={value!r}, which is not supported{default}",
                    hint="the circuit would compute something else than the model; "
                    "only fields with their default values may be unknown",
                )


def unembedding(weights: Weights, config: Any, embeds: torch.Tensor) -> torch.Tensor:
    """The rows that logits are products with: the checkpoint's own, or the embeddings where the two are tied.

    Raises:
        ModelError: if they are not tied and the checkpoint has none.
    """
    if config.tie_word_embeddings and _HEAD not in weights:
        return embeds
    return tensor(weights, _HEAD, *embeds.shape)


def require(condition: bool, what: str, hint: str) -> None:
    """Raises ModelError with `what` if the condition does not hold."""
    if not condition:
        raise ModelError(what, hint=hint)


def tensor(weights: Weights, name: str, *shape: int) -> torch.Tensor:
    """The weight of that name.

    Raises:
        ModelError: if it is missing or of another shape.
    """
    if name not in weights:
        raise ModelError(
            f"the checkpoint lacks the weight {name!r}", hint="is it a causal language model, saved whole?"
        )
    value = weights[name]
    if tuple(value.shape) != shape:
        raise ModelError(
            f"the weight {name!r} has shape {list(value.shape)}; the configuration asks for {list(shape)}",
            hint="configuration and weights are of different models",
        )
    return value.detach()
