"""What reading with transformers needs: quiet, and its errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tapeout.ir.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str], None]
"""Called with one line of text as each stage of a load begins."""


def auto_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    return tokenizer


@contextmanager
def quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """Keep transformers from printing warnings and (unless `bars`) progress bars; restores both.

    The hub's client too: without a network it warns of each of its attempts.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    if not bars and had_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if not bars and had_bars:
            logging.enable_progress_bar()


@contextmanager
def unreadable_as_model_error(message: str, hint: str) -> Iterator[None]:
    """Turn whatever a library raises on bad input (it can be anything) into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(message, facts=[first_line(error)], hint=hint) from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__
