"""IOI prompts as tokens: which words a tokenizer keeps whole, and where they stand in a prompt."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Protocol

from tapeout.ir.errors import DataError, ModelError
from tapeout.tasks.ioi.prompts import FAMILY_NAMES, FRESH_NAMES, IOIPrompt
from tapeout.tasks.ioi.templates import NAMES, OBJECTS, PLACES, TEMPLATES

DEFAULT_TOKENIZER = "gpt2"
HUB_TIMEOUT_SECONDS = 3.0

FEWEST_NAMES = max(FAMILY_NAMES.values()) + FRESH_NAMES
"""With this many names every prompt of every family can be made, and flipped."""

_CARRIER = "the"
"""What words are put behind when they are tokenized on their own, so that they have a space before them."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it.

    `bos_token_id`, `eos_token_id`, `pad_token_id` and `unk_token_id` are read where there are any.
    """

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """The tokens of several texts, under "input_ids"."""

    def decode(self, token_ids: list[int]) -> Any:
        """The text of some tokens."""


def special_token(tokenizer: Tokenizer, *kinds: str) -> int | None:
    """The id of the first of these special tokens ("bos", "eos", "pad", "unk") that the tokenizer has."""
    for kind in kinds:
        token = getattr(tokenizer, f"{kind}_token_id", None)
        if token is not None:
            return int(token)
    return None


def tokenize(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """The tokens of each text as the tokenizer makes them of the whole text, without special tokens."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that are one token each, with a space before them, in a tokenizer.

    Attributes:
        names: token id of each name; places and objects likewise. No id occurs twice.
        left_out: the candidates that the tokenizer splits, does not know, or writes like another word.
    """

    names: dict[str, int]
    places: dict[str, int]
    objects: dict[str, int]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Filters the candidates in `templates`.

        Raises:
            DataError: too few names, places or objects are left.
        """
        known = single_tokens(tokenizer, (*NAMES, *PLACES, *OBJECTS))
        vocabulary = cls(
            names={word: known[word] for word in NAMES if word in known},
            places={word: known[word] for word in PLACES if word in known},
            objects={word: known[word] for word in OBJECTS if word in known},
            left_out=tuple(word for word in (*NAMES, *PLACES, *OBJECTS) if word not in known),
        )
        vocabulary._check()
        return vocabulary

    def _check(self) -> None:
        counts = (
            ("names", len(self.names), len(NAMES), FEWEST_NAMES),
            ("places", len(self.places), len(PLACES), 1),
            ("objects", len(self.objects), len(OBJECTS), 1),
        )
        if any(found < needed for _, found, _, needed in counts):
            raise DataError(
                "too few of the IOI words are single tokens of this tokenizer",
                facts=[
                    f"{kind}: {found} of {candidates} are single tokens, at least {needed} needed"
                    for kind, found, candidates, needed in counts
                ],
                hint="pass the tokenizer of a model of English text",
            )


def single_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, int]:
    """The token of each word that is one known token behind a space; of words with one token, the first."""
    carrier, *behind = tokenize(tokenizer, [_CARRIER, *(f"{_CARRIER} {word}" for word in words)])
    taken = {special_token(tokenizer, "unk")}
    found: dict[str, int] = {}
    for word, ids in zip(words, behind, strict=True):
        if len(ids) == len(carrier) + 1 and ids[:-1] == carrier and ids[-1] not in taken:
            found[word] = ids[-1]
            taken.add(ids[-1])
    return found


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its tokens.

    Attributes:
        prompt: the record.
        text: its text.
        tokens: the token ids, the beginning-of-text token first where there is one.
        positions: where "IO", "S1", "S1+1", "S2" and "END" stand in `tokens`.
        io_token: the token id of the name at IO.
        s_token: the token id of the name at S1.
    """

    prompt: IOIPrompt
    text: str
    tokens: tuple[int, ...]
    positions: dict[str, int]
    io_token: int
    s_token: int


class PromptEncoder:
    """Encodes prompts with one tokenizer, and checks that what it made is what was meant.

    Attributes:
        tokenizer: the tokenizer.
        vocabulary: the words it may be given.
        template_lengths: the number of tokens, with the beginning-of-text token, of each template that
            can be used: one whose own words are known and whose slots stay tokens of their own.

    Raises:
        DataError: too few words are single tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        self._prefix = tuple(token for token in [special_token(tokenizer, "bos")] if token is not None)
        self._unknown = special_token(tokenizer, "unk")
        encoded = zip(range(len(TEMPLATES)), self._encode(self._samples()), strict=True)
        self.template_lengths = {template: len(row.tokens) for template, row in encoded if row is not None}

    def _samples(self) -> list[IOIPrompt]:
        """One prompt of each template."""
        io, s, *_ = self.vocabulary.names
        place, object_ = next(iter(self.vocabulary.places)), next(iter(self.vocabulary.objects))
        return [IOIPrompt(number, "ABBA", io, s, place, object_) for number in range(len(TEMPLATES))]

    def encode(self, prompts: Sequence[IOIPrompt]) -> tuple[EncodedPrompt, ...]:
        """The prompts with their tokens and positions.

        Raises:
            DataError: in the text as a whole a word is not the one token that it is on its own, or the
                prompt is not as long as its template.
        """
        return tuple(
            self._checked(prompt, encoded) for prompt, encoded in zip(prompts, self._encode(prompts), strict=True)
        )

    def _checked(self, prompt: IOIPrompt, encoded: EncodedPrompt | None) -> EncodedPrompt:
        length = self.template_lengths.get(prompt.template)
        if encoded is None or len(encoded.tokens) != length:
            raise DataError(
                f"the tokenizer does not keep the words of this prompt apart: {prompt.text!r}",
                facts=[f"its words: {', '.join(prompt.words.values())}", f"tokens of the template: {length}"],
                hint="pass a tokenizer that makes tokens of whole words, whatever stands around them",
            )
        return encoded

    def _encode(self, prompts: Sequence[IOIPrompt]) -> Iterator[EncodedPrompt | None]:
        """Each prompt encoded, or None where its words cannot be found again in its tokens."""
        texts = [prompt.text for prompt in prompts]
        for prompt, text, ids in zip(prompts, texts, tokenize(self.tokenizer, texts), strict=True):
            tokens = (*self._prefix, *ids)
            slots = None if self._unknown in ids else self._locate(prompt, tokens)
            yield None if slots is None else self._with_positions(prompt, text, tokens, slots)

    def _locate(self, prompt: IOIPrompt, tokens: Sequence[int]) -> dict[str, int] | None:
        """The position of each slot, if the words' tokens occur in the slots' order and nowhere else."""
        slots = [field for _, field, _, _ in Formatter().parse(TEMPLATES[prompt.template]) if field]
        wanted = [self._word_token(slot, prompt.words[slot]) for slot in slots]
        places = [position for position, token in enumerate(tokens) if token in wanted]
        if [tokens[position] for position in places] != wanted:
            return None
        return dict(zip(slots, places, strict=True))

    def _word_token(self, slot: str, word: str) -> int:
        words = {"place": self.vocabulary.places, "object": self.vocabulary.objects}
        return words.get(slot, self.vocabulary.names)[word]

    def _with_positions(
        self, prompt: IOIPrompt, text: str, tokens: tuple[int, ...], slots: Mapping[str, int]
    ) -> EncodedPrompt:
        io, s1 = ("first", "second") if prompt.order == "ABBA" else ("second", "first")
        positions = {
            "IO": slots[io],
            "S1": slots[s1],
            "S1+1": slots[s1] + 1,
            "S2": slots["giver"],
            "END": len(tokens) - 1,
        }
        return EncodedPrompt(prompt, text, tokens, positions, tokens[slots[io]], tokens[slots[s1]])


def load_default_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer, from transformers' cache or else from the hub.

    Raises:
        ModelError: it is not in the cache and the hub does not answer within a few seconds, or it
            cannot be loaded from there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(DEFAULT_TOKENIZER, local_files_only=True)
    except OSError as error:
        missing = error
    if not _hub_answers():
        raise _no_default_tokenizer("the hub does not answer") from missing
    try:
        return AutoTokenizer.from_pretrained(DEFAULT_TOKENIZER)
    except OSError as error:
        raise _no_default_tokenizer(str(error)) from error


def _no_default_tokenizer(reason: str) -> ModelError:
    return ModelError(
        "no tokenizer was given, and GPT-2's, the default, cannot be loaded",
        facts=["it is not in the local cache of transformers", reason],
        hint="pass tokenizer=...: tapeout.models.load_circuit(...) returns one with the model",
    )


def _hub_answers() -> bool:
    """Whether the hub can be reached at all: its client retries for most of a minute before it says no."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(hub, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
