"""`IOIDataset`: a batch of prompts of the indirect object identification task, with tokens and positions.

The task is Wang et al. 2022, "Interpretability in the Wild": "When Mary and John went to the store,
John gave a drink to" is to be completed by " Mary".
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from tapeout.backends.common.devices import as_device
from tapeout.compiler.measure import available_memory
from tapeout.ir.errors import DataError
from tapeout.tasks.ioi.prompts import (
    FAMILY_NAMES,
    FLIPS,
    PROMPT_ORDERS,
    Flip,
    IOIPrompt,
    PromptFamily,
    PromptSpace,
    PromptType,
    flip_prompt,
)
from tapeout.tasks.ioi.report import set_default_tokenizer
from tapeout.tasks.ioi.templates import TEMPLATES
from tapeout.tasks.ioi.tokens import (
    EncodedPrompt,
    PromptEncoder,
    Tokenizer,
    Vocabulary,
    load_default_tokenizer,
    special_token,
)

Lengths = Literal["equal", "any"]
Rows = slice | Sequence[int] | Sequence[bool] | Tensor

BYTES_A_PROMPT = 4096
"""What a prompt takes while a dataset is made: its record, text and tokens. Measured, and rounded up."""

POSITIONS = ("IO", "S1", "S1+1", "S2", "END")
"""The keys of `IOIDataset.word_idx`."""


class IOIDataset:
    """Distinct prompts of the IOI task.

    Each names an indirect object (IO) and a subject (S, twice); the order ABBA names IO first and
    BABA names S first. In the family ABC a third person stands at S2 in place of S, so that nothing in
    the text says who is meant. Names, places and objects are single tokens, and every position is
    found in the prompt as the tokenizer encodes it as a whole.

    A dataset does not change. Slices (`ds[:10]`), selections (`ds[[3, 5]]`, a mask) and flips are new
    datasets.

    Args:
        prompt_type: "ABBA", "BABA", or "mixed": the two in turn.
        N: the number of prompts.
        seed: of the dataset's own random stream; no global state is read or changed.
        nb_templates: use only the first so many of the templates that can be used; None: all.
        tokenizer: None: GPT-2's, from transformers. It becomes the default tokenizer of the tables in
            `report`.
        prompt_family: "IOI" or "ABC".
        lengths: "equal": only the templates of the most common length in this tokenizer, so that all
            prompts have it and end at position -1. "any": all templates; rows are padded on the right,
            position -1 of a shorter row is padding, and the end of each prompt is at `word_idx["END"]`.
            `by_length` takes such a dataset apart into parts without padding.
        device: where the tensors live.

    Attributes:
        N: the number of prompts, also `len(dataset)`.
        ioi_prompts: the prompts as records.
        prompts_text: the prompts as text, without the expected completion: each ends with "to".
        prompts_toks: int64 [N, max_len], the beginning-of-text token first where the tokenizer has one.
        lengths: int64 [N], the tokens of each prompt without padding.
        max_len: the longest of them.
        io_tokenIDs: int64 [N], the name at IO, with its leading space.
        s_tokenIDs: int64 [N], the name at S1; at S2 too, except in the family ABC and after a flip of
            S1 or S2 alone.
        word_idx: "IO", "S1", "S1+1" (the token after S1), "S2", "END" (the last token of the prompt):
            int64 [N] each, positions in `prompts_toks`.
        tokenizer: the tokenizer in use.
        vocabulary: the words that are single tokens in it, and those left out because they are not.
        templates_used: the templates that the prompts were drawn from.
        device: where the tensors live.

    Raises:
        DataError: an unknown option, or a tokenizer that is none; fewer than one prompt, or more
            than can be distinct or than memory holds; fewer templates of one length than asked for; a tokenizer
            in which too few words are single tokens, in which a prompt's words merge with their surroundings,
            or without a token to pad with.
        ModelError: no tokenizer was given, and GPT-2's cannot be loaded.
        UnsupportedError: a device that is not here.
    """

    N: int
    ioi_prompts: tuple[IOIPrompt, ...]
    prompts_text: list[str]
    prompts_toks: Tensor
    lengths: Tensor
    max_len: int
    io_tokenIDs: Tensor
    s_tokenIDs: Tensor
    word_idx: dict[str, Tensor]
    templates_used: tuple[str, ...]
    device: torch.device

    def __init__(
        self,
        prompt_type: PromptType = "mixed",
        N: int = 100,
        seed: int = 0,
        nb_templates: int | None = None,
        tokenizer: Tokenizer | None = None,
        prompt_family: PromptFamily = "IOI",
        lengths: Lengths = "equal",
        device: str | torch.device = "cpu",
    ) -> None:
        _check_choice("prompt_type", prompt_type, PROMPT_ORDERS)
        _check_choice("prompt_family", prompt_family, FAMILY_NAMES)
        _check_choice("lengths", lengths, ("equal", "any"))
        _check_positive("N", N)
        self.device = as_device(device)
        if tokenizer is not None and not callable(tokenizer):
            raise DataError(
                f"a tokenizer was given as {type(tokenizer).__qualname__}",
                hint="pass the tokenizer that load_circuit returns, or another of transformers'",
            )
        encoder = PromptEncoder(load_default_tokenizer() if tokenizer is None else tokenizer)
        set_default_tokenizer(encoder.tokenizer)
        templates = _choose_templates(encoder.template_lengths, lengths, nb_templates)
        space = PromptSpace(
            templates=templates,
            names=tuple(encoder.vocabulary.names),
            places=tuple(encoder.vocabulary.places),
            objects=tuple(encoder.vocabulary.objects),
            family=prompt_family,
        )
        _check_capacity(N, space, prompt_type)
        _check_memory(N)
        rng = random.Random(seed)
        self._encoder = encoder
        self._rng = rng
        self.templates_used = tuple(TEMPLATES[template] for template in templates)
        self._fill(encoder.encode(space.draw(N, prompt_type, rng)))

    def _fill(self, rows: tuple[EncodedPrompt, ...]) -> None:
        """Sets everything that follows from the rows."""
        self._rows = rows
        self.N = len(rows)
        self.ioi_prompts = tuple(row.prompt for row in rows)
        self.prompts_text = [row.text for row in rows]
        self.lengths = self._column([len(row.tokens) for row in rows])
        self.max_len = max(len(row.tokens) for row in rows)
        self.prompts_toks = torch.tensor(self._padded(rows), dtype=torch.int64, device=self.device)
        self.io_tokenIDs = self._column([row.io_token for row in rows])
        self.s_tokenIDs = self._column([row.s_token for row in rows])
        self.word_idx = {name: self._column([row.positions[name] for row in rows]) for name in POSITIONS}

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _padded(self, rows: Sequence[EncodedPrompt]) -> list[tuple[int, ...]]:
        """The tokens of each row, padded on the right to the longest."""
        if all(len(row.tokens) == self.max_len for row in rows):
            return [row.tokens for row in rows]
        pad = special_token(self.tokenizer, "pad", "eos", "bos")
        if pad is None:
            raise DataError(
                "prompts of different lengths need padding, and the tokenizer has no token for it",
                facts=[f"lengths: {sorted({len(row.tokens) for row in rows})}"],
                hint='set the tokenizer\'s pad_token, or use lengths="equal"',
            )
        return [row.tokens + (pad,) * (self.max_len - len(row.tokens)) for row in rows]

    def _with_rows(self, rows: tuple[EncodedPrompt, ...], rng: random.Random) -> IOIDataset:
        """A dataset of other rows, all else as here."""
        dataset = copy.copy(self)
        dataset._rng = rng
        dataset._fill(rows)
        return dataset

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use."""
        return self._encoder.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that are single tokens of the tokenizer."""
        return self._encoder.vocabulary

    @property
    def labels(self) -> Tensor:
        """int64 [N, 2]: the tokens at IO and S1 of each prompt, which the metric compares."""
        return torch.stack([self.io_tokenIDs, self.s_tokenIDs], dim=1)

    def __len__(self) -> int:
        return self.N

    def __repr__(self) -> str:
        return f"IOIDataset(N={self.N}, max_len={self.max_len}, templates={len(self.templates_used)})"

    def __getitem__(self, rows: Rows) -> IOIDataset:
        """The dataset of some of the prompts, in the order asked for.

        Args:
            rows: a slice, row numbers, or a boolean mask [N].

        Raises:
            DataError: no rows, rows out of range, or a single number.
        """
        chosen = range(self.N)[rows] if isinstance(rows, slice) else _row_numbers(rows, self.N)
        if len(chosen) == 0:
            raise DataError(
                "an IOI dataset cannot be empty",
                facts=[f"none of its {self.N} prompts was selected"],
                hint="select at least one prompt",
            )
        return self._with_rows(tuple(self._rows[row] for row in chosen), copy.copy(self._rng))

    def by_length(self) -> Iterator[tuple[int, Tensor, IOIDataset]]:
        """The parts of equal length, shortest first, each without padding.

        Yields:
            the length; the rows of this dataset, int64 [n], ascending; the dataset of those rows. Results
            are rejoined in order with `results[rows] = part`.
        """
        for length in sorted(set(self.lengths.tolist())):
            rows = torch.nonzero(self.lengths == length).flatten()
            yield length, rows, self[rows]

    def gen_flipped_prompts(self, flip: Flip) -> IOIDataset:
        """The dataset whose prompts differ from these, row by row, in one thing.

        Names are replaced by names that the prompt does not contain, one token for one token, so that
        all positions stay where they are (only "order" exchanges those of IO and S1). `io_tokenIDs` and
        `s_tokenIDs` are those of the new text, the names at IO and S1; for the labels of the original
        prompts use the original dataset's. Two rows may become the same prompt.

        The random stream goes on where this dataset's ended, in the new dataset: the same flip of the
        same dataset gives the same prompts, a flip of a flip draws new names.

        Args:
            flip: "IO": another indirect object. "S": another subject, at S1 and S2 (in the family ABC,
                another name at each). "S1", "S2": another name at that place alone. "order": ABBA becomes
                BABA and the reverse, the first two names exchanged.

        Raises:
            DataError: an unknown flip.
        """
        _check_choice("flip", flip, FLIPS)
        rng = copy.copy(self._rng)
        names = tuple(self.vocabulary.names)
        flipped = [flip_prompt(prompt, flip, names, rng) for prompt in self.ioi_prompts]
        return self._with_rows(self._encoder.encode(flipped), rng)


def _check_choice(option: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise DataError(
            f"{option} is {value!r}, which is not known",
            hint=f"use one of {', '.join(repr(choice) for choice in allowed)}",
        )


def _check_positive(option: str, value: int) -> None:
    if not isinstance(value, int):
        raise DataError(f"{option} is {value!r}, which is no whole number", hint=f"use {option} >= 1")
    if value < 1:
        raise DataError(f"{option} is {value!r}: an IOI dataset cannot be empty", hint=f"use {option} >= 1")


def _check_capacity(count: int, space: PromptSpace, prompt_type: PromptType) -> None:
    possible = space.capacity(prompt_type)
    if count > possible:
        raise DataError(
            f"{count} distinct prompts were asked for, and only {possible} are possible",
            facts=[
                f"templates: {len(space.templates)}, names: {len(space.names)}, "
                f"places: {len(space.places)}, objects: {len(space.objects)}",
                f"prompt type: {prompt_type}, family: {space.family}",
            ],
            hint=f"ask for at most N={possible}, or allow more templates",
        )


def _check_memory(count: int) -> None:
    free = available_memory()
    if free is not None and count * BYTES_A_PROMPT > free:
        raise DataError(
            f"{count} prompts take about {count * BYTES_A_PROMPT / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory "
            "are free",
            hint=f"ask for at most N={free // BYTES_A_PROMPT}, or make one dataset after the other with other seeds",
        )


def _choose_templates(template_lengths: Mapping[int, int], lengths: Lengths, count: int | None) -> tuple[int, ...]:
    """The templates to draw from.

    Args:
        template_lengths: length in tokens of each template that can be used.
        lengths: "equal": those of the most common length, of several the shortest. "any": all.
        count: how many of these; None: all.
    """
    found = Counter(template_lengths.values())
    common = min(found, key=lambda length: (-found[length], length), default=0)
    templates = [template for template, length in template_lengths.items() if lengths == "any" or length == common]
    if count is not None:
        _check_positive("nb_templates", count)
    if len(templates) < (count or 1):
        raise DataError(
            f"{count or 1} templates were asked for, and {len(templates)} can be used",
            facts=[
                f"of {len(TEMPLATES)} templates this tokenizer can write {len(template_lengths)}",
                *(f"{length} tokens: {found[length]} templates" for length in sorted(found)),
            ],
            hint=_template_hint(lengths, len(templates)),
        )
    return tuple(templates[:count])


def _template_hint(lengths: Lengths, available: int) -> str:
    if available == 0:
        return "pass the tokenizer of a model of English text"
    fewer = f"use nb_templates <= {available}"
    return fewer if lengths == "any" else f'{fewer}, or lengths="any" for prompts of several lengths'


def _row_numbers(rows: Sequence[int] | Sequence[bool] | Tensor, count: int) -> list[int]:
    """Row numbers or a mask as a list of row numbers."""
    chosen = torch.as_tensor(rows)
    if chosen.dtype == torch.bool and chosen.shape == (count,):
        return [row for row, wanted in enumerate(chosen.tolist()) if wanted]
    numbers: list[int] = chosen.flatten().tolist()
    integral = not chosen.dtype.is_floating_point and chosen.dtype != torch.bool
    if chosen.ndim != 1 or (numbers and not (integral and all(-count <= row < count for row in numbers))):
        raise DataError(
            f"these rows cannot be selected from {count} prompts: {rows!r}",
            hint=f"use a slice, a list of row numbers from 0 to {count - 1}, or a mask of {count}; "
            "one prompt's record is dataset.ioi_prompts[i]",
        )
    return numbers
