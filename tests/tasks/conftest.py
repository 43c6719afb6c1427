"""Tokenizers for the tests of tasks, made here: no file and no network is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from transformers import PreTrainedTokenizerFast

from tapeout.tasks.ioi.report import default_tokenizer, set_default_tokenizer
from tapeout.tasks.ioi.templates import NAMES, OBJECTS, PLACES, TEMPLATES

MakeWordLevel = Callable[..., PreTrainedTokenizerFast]

SPLIT_NAMES = NAMES[-6:]
"""Names that the BPE tokenizer has not seen, so that it splits them."""


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE that begins texts with a token, knows nearly all words and has no padding token."""
    names = NAMES[: -len(SPLIT_NAMES)]
    words = " ".join(["the", *names, *PLACES, *OBJECTS])
    text = [template.format(first="", second="", giver="", place="", object="") for template in TEMPLATES]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {words}", *text] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def make_word_level() -> MakeWordLevel:
    """Makes tokenizers of whole words, without a beginning-of-text token."""

    def make(
        names: int = len(NAMES),
        places: int = len(PLACES),
        objects: int = len(OBJECTS),
        templates: int = len(TEMPLATES),
    ) -> PreTrainedTokenizerFast:
        """A tokenizer that knows only the first so many of each."""
        split = pre_tokenizers.Whitespace()
        slots = {"first": "", "second": "", "giver": "", "place": "", "object": ""}
        known = [word for text in TEMPLATES[:templates] for word, _ in split.pre_tokenize_str(text.format_map(slots))]
        words = ["[UNK]", "[PAD]", "the", *known, *NAMES[:names], *PLACES[:places], *OBJECTS[:objects]]
        vocabulary = {word: token for token, word in enumerate(dict.fromkeys(words))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = split
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")

    return make


@pytest.fixture(scope="session")
def word_level(make_word_level: MakeWordLevel) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that knows them all."""
    return make_word_level()


@pytest.fixture(params=["bpe", "word_level"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of the two kinds of tokenizer."""
    made: PreTrainedTokenizerFast = request.getfixturevalue(request.param)
    return made


@pytest.fixture(autouse=True)
def _default_tokenizer_is_restored() -> Iterator[None]:
    """Datasets set the default tokenizer of the tables."""
    before = default_tokenizer()
    set_default_tokenizer(None)
    yield
    set_default_tokenizer(before)
