"""Tables of the tokens that a model finds most and least likely."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tapeout.ir.errors import DataError, ShapeError
from tapeout.tasks.ioi.tokens import Tokenizer

TokenValue = tuple[str, int, float]
"""A token's text, its id and its value."""

_default_tokenizer: Tokenizer | None = None


def set_default_tokenizer(tokenizer: Tokenizer | None) -> None:
    """Sets the tokenizer that tables use when none is given; an `IOIDataset` sets its own."""
    global _default_tokenizer
    _default_tokenizer = tokenizer


def default_tokenizer() -> Tokenizer | None:
    """The tokenizer that tables use when none is given."""
    return _default_tokenizer


def top_tokens(logits: Tensor, k: int, tokenizer: Tokenizer | None) -> list[TokenValue]:
    """The `k` tokens with the largest logits, largest first; of equal ones, the smaller id first.

    Args:
        logits: [vocab], of any dtype and device.
        k: how many, at most vocab.
        tokenizer: says the tokens' text; without one the text is the id.

    Raises:
        ShapeError: `logits` has not one axis.
        DataError: `k` is less than 1 or more than there are tokens.
    """
    return _extreme_tokens(logits, k, tokenizer, largest=True)


def bottom_tokens(logits: Tensor, k: int, tokenizer: Tokenizer | None) -> list[TokenValue]:
    """The `k` tokens with the smallest logits, smallest first; arguments and errors as `top_tokens`."""
    return _extreme_tokens(logits, k, tokenizer, largest=False)


def print_max_min_by_tok_k_torch(logits: Tensor, k: int = 5, tokenizer: Tokenizer | None = None) -> None:
    """Prints the `k` tokens with the largest and the smallest logits as a table.

    Args:
        logits: [vocab], of any dtype and device.
        k: how many of each, at most vocab.
        tokenizer: says the tokens' text. None: the default one, which is that of the last `IOIDataset`
            made or the one given to `set_default_tokenizer`; if there is none, ids are printed.

    Raises:
        ShapeError: `logits` has not one axis.
        DataError: `k` is less than 1 or more than there are tokens.
    """
    tokenizer = _default_tokenizer if tokenizer is None else tokenizer
    largest, smallest = top_tokens(logits, k, tokenizer), bottom_tokens(logits, k, tokenizer)
    table = Table()
    for heading in (f"top {k}", "logit", f"bottom {k}", "logit"):
        table.add_column(heading, justify="right" if heading == "logit" else "left")
    for high, low in zip(largest, smallest, strict=True):
        table.add_row(*_cells(high, tokenizer), *_cells(low, tokenizer))
    Console().print(table)


def _cells(token: TokenValue, tokenizer: Tokenizer | None) -> tuple[Text, str]:
    """A token's text, quoted so that its spaces show, and its value."""
    text, _, value = token
    return Text(text if tokenizer is None else repr(text)), f"{value:.4f}"


def _extreme_tokens(logits: Tensor, k: int, tokenizer: Tokenizer | None, *, largest: bool) -> list[TokenValue]:
    if logits.ndim != 1:
        raise ShapeError(
            f"the logits of one position are needed, [vocab], not a tensor of shape {list(logits.shape)}",
            hint="select one prompt and one position, for instance logits[0, -1]",
        )
    if not 1 <= k <= logits.shape[0]:
        raise DataError(
            f"k is {k}, and there are {logits.shape[0]} tokens to choose from",
            hint=f"use k from 1 to {logits.shape[0]}",
        )
    values, ids = torch.sort(logits.detach(), descending=largest, stable=True)
    return [
        (str(token) if tokenizer is None else str(tokenizer.decode([token])), token, float(value))
        for token, value in zip(ids[:k].tolist(), values[:k].tolist(), strict=True)
    ]
