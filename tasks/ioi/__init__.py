"""Indirect object identification: prompts with their tokens and positions, and tables of top tokens."""

from tapeout.tasks.ioi.dataset import IOIDataset
from tapeout.tasks.ioi.prompts import IOIPrompt
from tapeout.tasks.ioi.report import (
    bottom_tokens,
    default_tokenizer,
    print_max_min_by_tok_k_torch,
    set_default_tokenizer,
    top_tokens,
)
from tapeout.tasks.ioi.tokens import Vocabulary

__all__ = [
    "IOIDataset",
    "IOIPrompt",
    "Vocabulary",
    "bottom_tokens",
    "default_tokenizer",
    "print_max_min_by_tok_k_torch",
    "set_default_tokenizer",
    "top_tokens",
]
