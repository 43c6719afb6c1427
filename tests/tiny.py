"""Tiny random models in which no weight is zero or one, and a tokenizer for them: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from tapeout.tasks.ioi.templates import NAMES, OBJECTS, PLACES, TEMPLATES

Model = TypeVar("Model", bound=PreTrainedModel)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Every word and sign of the IOI templates is one token; a beginning-of-text token is there."""
    split = pre_tokenizers.Whitespace()
    slots = {"first": "", "second": "", "giver": "", "place": "", "object": ""}
    known = [word for text in TEMPLATES for word, _ in split.pre_tokenize_str(text.format_map(slots))]
    words = ["[UNK]", "<s>", "the", *known, *NAMES, *PLACES, *OBJECTS]
    vocabulary = {word: token for token, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<s>", pad_token="<s>")


def randomised(model: Model, seed: int = 0) -> Model:
    """The model with every parameter drawn anew: biases not 0, norms not 1, attention not flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (name.endswith("weight")))
            else:
                parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
    return model.eval()


def gpt2(vocabulary: int, layers: int = 2, heads: int = 2, head_size: int = 4) -> GPT2LMHeadModel:
    """A GPT-2 of 64 positions."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * head_size,
        bos_token_id=1,
        eos_token_id=1,
    )
    return randomised(GPT2LMHeadModel(config))


def llama(vocabulary: int, layers: int = 2, heads: int = 4, kv_heads: int = 2) -> LlamaForCausalLM:
    """A Llama of 64 positions with grouped keys and values."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4 * heads,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=1,
    )
    return randomised(LlamaForCausalLM(config))


def save(model: PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Writes a checkpoint, printing nothing; returns its directory."""
    logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        logging.enable_progress_bar()
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory
