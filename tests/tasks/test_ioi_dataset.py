"""The IOI data: templates, tokens and positions, flips, lengths, bad input, tables of top tokens."""

from __future__ import annotations

import http.server
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any, get_args

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tapeout.ir.errors import DataError, ModelError, ShapeError
from tapeout.tasks.ioi import (
    IOIDataset,
    IOIPrompt,
    bottom_tokens,
    default_tokenizer,
    print_max_min_by_tok_k_torch,
    set_default_tokenizer,
    top_tokens,
)
from tapeout.tasks.ioi.dataset import _choose_templates
from tapeout.tasks.ioi.prompts import FLIPS, Flip, PromptFamily, PromptSpace, PromptType
from tapeout.tasks.ioi.templates import NAMES, OBJECTS, PLACES, TEMPLATES

MakeWordLevel = Callable[..., PreTrainedTokenizerFast]

NAME_SLOTS = {"first", "second", "giver"}
ORDERS_OF: dict[PromptType, set[str]] = {"mixed": {"ABBA", "BABA"}, "ABBA": {"ABBA"}, "BABA": {"BABA"}}


def changed_slots(one: IOIPrompt, other: IOIPrompt) -> set[str]:
    """The slots in which two prompts of one template have different words."""
    return {slot for slot, word in one.words.items() if other.words[slot] != word}


def tokens_at(dataset: IOIDataset, where: str) -> Tensor:
    """The token ids [N] at a named position."""
    return dataset.prompts_toks[torch.arange(len(dataset)), dataset.word_idx[where]]


def words_at(dataset: IOIDataset, where: str) -> list[str]:
    """The decoded words at a named position."""
    return [dataset.tokenizer.decode([token]).strip() for token in tokens_at(dataset, where).tolist()]


def text_of(dataset: IOIDataset, row: int) -> str:
    """The decoded tokens of a row, without padding and special tokens, and without spaces."""
    tokens = dataset.prompts_toks[row, : int(dataset.lengths[row])].tolist()
    decoded: str = dataset.tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[call-arg]
    return decoded.replace(" ", "")


# --- the tables of text ---------------------------------------------------------------------------


def test_the_tables_are_large_enough_and_without_repetition() -> None:
    assert len(TEMPLATES) >= 15
    assert len(NAMES) >= 80
    for table in (TEMPLATES, (*NAMES, *PLACES, *OBJECTS)):
        assert [entry for entry, times in Counter(table).items() if times > 1] == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_can_be_read_token_by_token(template: str) -> None:
    parts = list(Formatter().parse(template))
    assert Counter(field for _, field, _, _ in parts if field) == dict.fromkeys([*NAME_SLOTS, "place", "object"], 1)
    assert all(literal.endswith(" ") for literal, field, _, _ in parts if field), "a word without a space before it"
    assert template.endswith(" to")
    own_words = set(re.findall(r"\w+", "".join(literal for literal, *_ in parts).lower()))
    assert own_words.isdisjoint(word.lower() for word in (*NAMES, *PLACES, *OBJECTS))
    assert template.index("{first}") < template.index("{second}") < template.index("{giver}")


def test_every_object_goes_with_the_article_a() -> None:
    assert [word for word in OBJECTS if word[0] in "aeiou"] == []
    assert all(" a {object}" in template for template in TEMPLATES)


# --- prompts, tokens, positions -------------------------------------------------------------------


def test_the_default_is_a_hundred_mixed_prompts_of_one_length(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(tokenizer=tokenizer)
    assert len(dataset) == dataset.N == len(dataset.prompts_text) == len(dataset.ioi_prompts) == 100
    assert dataset.prompts_toks.shape == (100, dataset.max_len)
    assert dataset.lengths.tolist() == [dataset.max_len] * 100
    assert [prompt.order for prompt in dataset.ioi_prompts] == ["ABBA", "BABA"] * 50
    assert len(dataset.templates_used) >= 15
    assert repr(dataset) == (f"IOIDataset(N=100, max_len={dataset.max_len}, templates={len(dataset.templates_used)})")


def test_the_tensors_are_int64_and_on_the_device(bpe: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=3, tokenizer=bpe, device="meta")
    tensors = [dataset.prompts_toks, dataset.lengths, dataset.io_tokenIDs, dataset.s_tokenIDs, dataset.labels]
    tensors += dataset.word_idx.values()
    assert dataset.device == torch.device("meta")
    assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(torch.int64, "meta")}
    assert dataset.gen_flipped_prompts("IO").prompts_toks.device.type == "meta"
    assert dataset[:1].io_tokenIDs.device.type == "meta"


def test_the_text_is_the_template_with_its_words_in() -> None:
    prompt = IOIPrompt(template=0, order="ABBA", io="Mary", s="John", place="store", object="book")
    assert prompt.text == "Today, Mary and John went to the store. John gave a book to"
    swapped = IOIPrompt(template=0, order="BABA", io="Mary", s="John", place="store", object="book", c="Tom")
    assert swapped.text == "Today, John and Mary went to the store. Tom gave a book to"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt_type=st.sampled_from(get_args(PromptType)),
    family=st.sampled_from(get_args(PromptFamily)),
    lengths=st.sampled_from(["equal", "any"]),
    count=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
def test_every_position_holds_the_word_it_is_named_after(
    tokenizer: PreTrainedTokenizerFast, prompt_type: Any, family: Any, lengths: Any, count: int, seed: int
) -> None:
    dataset = IOIDataset(prompt_type, count, seed, tokenizer=tokenizer, prompt_family=family, lengths=lengths)
    prompts = dataset.ioi_prompts
    assert words_at(dataset, "IO") == [prompt.io for prompt in prompts]
    assert words_at(dataset, "S1") == [prompt.s for prompt in prompts]
    assert words_at(dataset, "S2") == [prompt.giver for prompt in prompts]
    assert words_at(dataset, "END") == ["to"] * count
    assert torch.equal(dataset.word_idx["END"], dataset.lengths - 1)
    assert torch.equal(dataset.word_idx["S1+1"], dataset.word_idx["S1"] + 1)
    assert torch.equal(tokens_at(dataset, "IO"), dataset.io_tokenIDs)
    assert torch.equal(tokens_at(dataset, "S1"), dataset.s_tokenIDs)
    assert len(set(dataset.prompts_text)) == count
    assert {prompt.order for prompt in prompts} <= ORDERS_OF[prompt_type]
    for prompt in prompts:
        people = {prompt.io, prompt.s, prompt.giver}
        assert len(people) == (2 if family == "IOI" else 3)
        assert (prompt.c is None) == (family == "IOI")


def test_the_order_says_who_is_named_first(tokenizer: PreTrainedTokenizerFast) -> None:
    abba = IOIDataset("ABBA", 20, tokenizer=tokenizer)
    baba = IOIDataset("BABA", 20, tokenizer=tokenizer)
    assert bool((abba.word_idx["IO"] < abba.word_idx["S1"]).all())
    assert bool((baba.word_idx["S1"] < baba.word_idx["IO"]).all())
    for dataset in (abba, baba):
        assert bool((dataset.word_idx["S2"] > dataset.word_idx["IO"]).all())
        assert bool((dataset.word_idx["S2"] > dataset.word_idx["S1"]).all())


def test_the_tokens_are_the_tokenizers_own_of_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=30, tokenizer=tokenizer, lengths="any")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for row, text in enumerate(dataset.prompts_text):
        expected = begin + tokenizer.encode(text, add_special_tokens=False)
        assert dataset.prompts_toks[row, : int(dataset.lengths[row])].tolist() == expected
        assert text_of(dataset, row) == text.replace(" ", "")


def test_the_beginning_of_text_token_is_put_once(bpe: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=10, tokenizer=bpe)
    begins = dataset.prompts_toks == bpe.bos_token_id
    assert begins[:, 0].tolist() == [True] * 10
    assert int(begins.sum()) == 10


def test_a_tokenizer_without_a_beginning_of_text_token_gets_none(word_level: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=10, tokenizer=word_level, nb_templates=1)
    assert dataset.templates_used == (TEMPLATES[0],)
    assert dataset.max_len == 15
    assert word_level.decode(dataset.prompts_toks[0, :2].tolist()) == "Today ,"


# --- the vocabulary -------------------------------------------------------------------------------


def test_words_that_the_tokenizer_splits_are_left_out_and_named(bpe: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=500, tokenizer=bpe)
    split = [name for name in NAMES if len(bpe.encode(f" {name}", add_special_tokens=False)) > 1]
    assert len(split) >= 3
    assert [word for word in dataset.vocabulary.left_out if word in NAMES] == split
    used = {name for prompt in dataset.ioi_prompts for name in (prompt.io, prompt.s)}
    assert used.isdisjoint(split)
    assert used <= dataset.vocabulary.names.keys()


def test_words_that_the_tokenizer_does_not_know_are_left_out(make_word_level: MakeWordLevel) -> None:
    dataset = IOIDataset(N=10, tokenizer=make_word_level(names=9, places=2, objects=3))
    assert list(dataset.vocabulary.names) == list(NAMES[:9])
    assert list(dataset.vocabulary.places) == list(PLACES[:2])
    assert list(dataset.vocabulary.objects) == list(OBJECTS[:3])
    assert dataset.vocabulary.left_out == (*NAMES[9:], *PLACES[2:], *OBJECTS[3:])


def test_the_vocabulary_gives_each_words_token(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = IOIDataset(N=1, tokenizer=tokenizer).vocabulary
    everything = {**vocabulary.names, **vocabulary.places, **vocabulary.objects}
    assert all(str(tokenizer.decode([token])).strip() == word for word, token in everything.items())
    assert len(set(everything.values())) == len(everything)


@pytest.mark.parametrize("few", [{"names": 4}, {"places": 0}, {"objects": 0}])
def test_too_few_single_token_words_is_an_error_with_the_counts(
    make_word_level: MakeWordLevel, few: dict[str, int]
) -> None:
    ((kind, count),) = few.items()
    with pytest.raises(DataError, match="too few of the IOI words") as caught:
        IOIDataset(tokenizer=make_word_level(**few))
    assert any(fact.startswith(f"{kind}: {count} of") for fact in caught.value.facts)
    assert "tokenizer" in caught.value.hint


class PlainTokenizer:
    """Splits at words; has only the special tokens given; may join some words with what follows them."""

    def __init__(self, merged: str = "(?!)", lower: bool = False, **special: int) -> None:
        self._pattern = re.compile(rf"(?:{merged}) \w+|\w+|[^\w\s]")
        self._lower = lower
        self._ids: dict[str, int] = {}
        for name, token in special.items():
            setattr(self, f"{name}_token_id", token)

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """Tokens as asked for; there are no special ones to add."""
        assert not add_special_tokens
        return {"input_ids": [self._encode(one.lower() if self._lower else one) for one in text]}

    def _encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, 10 + len(self._ids)) for word in self._pattern.findall(text)]

    def decode(self, token_ids: list[int]) -> str:
        """The words, with spaces between."""
        words = {token: word for word, token in self._ids.items()}
        return " ".join(words.get(token, "?") for token in token_ids)


def test_a_word_that_merges_with_its_surroundings_is_an_error_not_a_wrong_position() -> None:
    # "Ann" alone is one token; "Ann gave" is one token too, which hides the name.
    with pytest.raises(DataError, match="does not keep the words of this prompt apart") as caught:
        IOIDataset(N=2000, tokenizer=PlainTokenizer(merged="Ann"))
    assert "Ann" in caught.value.message
    assert "whole words" in caught.value.hint


def test_a_prompt_that_is_not_as_long_as_its_template_is_an_error() -> None:
    # The words are found, but "went to the" is one token where "zoo" follows.
    with pytest.raises(DataError, match="zoo") as caught:
        IOIDataset(N=500, nb_templates=1, tokenizer=PlainTokenizer(merged="went to(?= the zoo)"))
    assert "tokens of the template: 15" in caught.value.facts


def test_a_template_whose_slots_merge_is_not_used() -> None:
    near = next(template for template in TEMPLATES if template.startswith("Near"))
    used = IOIDataset(N=1, tokenizer=PlainTokenizer(merged="Near the"), lengths="any").templates_used
    assert set(TEMPLATES) - set(used) == {near}


def test_a_tokenizer_that_lowers_text_works() -> None:
    dataset = IOIDataset(N=50, tokenizer=PlainTokenizer(lower=True))
    assert words_at(dataset, "IO") == [prompt.io.lower() for prompt in dataset.ioi_prompts]


def test_templates_with_unknown_words_are_not_used(make_word_level: MakeWordLevel) -> None:
    dataset = IOIDataset(N=20, tokenizer=make_word_level(templates=2))
    assert dataset.templates_used == TEMPLATES[:2]


# --- drawing --------------------------------------------------------------------------------------


def test_the_seed_decides_everything(bpe: PreTrainedTokenizerFast) -> None:
    one, same, other = (IOIDataset(N=40, seed=seed, tokenizer=bpe) for seed in (3, 3, 4))
    assert one.ioi_prompts == same.ioi_prompts
    assert torch.equal(one.prompts_toks, same.prompts_toks)
    assert one.prompts_text != other.prompts_text


GOLDEN_PROMPTS = [
    "When Tom and James went to the school today, James gave a book to",
    "When James and Tom went to the school today, James gave a pen to",
    "After Daniel and Sarah had been at the store, Sarah gave a pen to",
    "After John and Mary had been at the park, John gave a book to",
]


def test_the_seed_means_the_same_in_every_process(make_word_level: MakeWordLevel) -> None:
    dataset = IOIDataset(N=4, tokenizer=make_word_level(names=6, places=3, objects=3), nb_templates=3)
    assert dataset.prompts_text == GOLDEN_PROMPTS


def test_global_random_state_is_neither_read_nor_changed(bpe: PreTrainedTokenizerFast) -> None:
    random.seed(1)
    state, torch_state = random.getstate(), torch.get_rng_state()
    one = IOIDataset(N=20, tokenizer=bpe).gen_flipped_prompts("IO")
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    random.seed(2)
    assert IOIDataset(N=20, tokenizer=bpe).gen_flipped_prompts("IO").prompts_text == one.prompts_text


POSSIBLE = {("mixed", "IOI"): 40, ("ABBA", "IOI"): 20, ("BABA", "IOI"): 20}
POSSIBLE |= {("mixed", "ABC"): 60, ("ABBA", "ABC"): 60, ("BABA", "ABC"): 60}


@pytest.mark.parametrize(("kind", "possible"), POSSIBLE.items())
def test_all_that_is_possible_can_be_drawn_and_no_more(
    make_word_level: MakeWordLevel, kind: tuple[PromptType, PromptFamily], possible: int
) -> None:
    tokenizer = make_word_level(names=5, places=1, objects=1)
    prompt_type, family = kind

    def draw(count: int) -> IOIDataset:
        return IOIDataset(prompt_type, count, nb_templates=1, tokenizer=tokenizer, prompt_family=family)

    assert len(set(draw(possible).prompts_text)) == possible
    with pytest.raises(DataError, match=f"only {possible} are possible") as caught:
        draw(possible + 1)
    assert f"N={possible}" in caught.value.hint
    assert "names: 5" in caught.value.facts[0]


def test_numbers_stand_for_different_prompts() -> None:
    space = PromptSpace((0, 1), ("Ann", "Bob", "Eve", "Tom"), ("park", "zoo"), ("pen",), "ABC")
    assert space.size == 2 * (4 * 3 * 2) * 2
    assert len({space.prompt(number, "ABBA").text for number in range(space.size)}) == space.size


def test_all_templates_and_places_get_their_turn(bpe: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=2000, tokenizer=bpe)
    by_template = Counter(TEMPLATES[prompt.template] for prompt in dataset.ioi_prompts)
    assert by_template.keys() == set(dataset.templates_used)
    assert max(by_template.values()) < 2 * min(by_template.values())
    assert {prompt.place for prompt in dataset.ioi_prompts} == dataset.vocabulary.places.keys()
    assert {prompt.object for prompt in dataset.ioi_prompts} == dataset.vocabulary.objects.keys()


# --- flips ----------------------------------------------------------------------------------------

FLIPPED_PLACES: dict[Flip, set[str]] = {"IO": {"IO"}, "S": {"S1", "S2"}, "S1": {"S1"}, "S2": {"S2"}}


@pytest.mark.parametrize("flip", FLIPPED_PLACES)
@pytest.mark.parametrize("family", get_args(PromptFamily))
@pytest.mark.parametrize("lengths", ["equal", "any"])
def test_a_flip_changes_the_named_thing_and_no_other_token(
    tokenizer: PreTrainedTokenizerFast, flip: Flip, family: PromptFamily, lengths: Any
) -> None:
    dataset = IOIDataset(N=40, tokenizer=tokenizer, prompt_family=family, lengths=lengths)
    flipped = dataset.gen_flipped_prompts(flip)
    assert all(torch.equal(flipped.word_idx[where], at) for where, at in dataset.word_idx.items())
    rows = torch.arange(40)
    expected = torch.zeros_like(dataset.prompts_toks, dtype=torch.bool)
    for where in FLIPPED_PLACES[flip]:
        expected[rows, dataset.word_idx[where]] = True
    assert torch.equal(flipped.prompts_toks != dataset.prompts_toks, expected)


@pytest.mark.parametrize("flip", FLIPPED_PLACES)
@pytest.mark.parametrize("family", get_args(PromptFamily))
def test_new_names_are_not_in_the_old_prompt(bpe: PreTrainedTokenizerFast, flip: Flip, family: PromptFamily) -> None:
    dataset = IOIDataset(N=300, tokenizer=bpe, prompt_family=family)
    for before, after in zip(dataset.ioi_prompts, dataset.gen_flipped_prompts(flip).ioi_prompts, strict=True):
        old = {before.io, before.s, before.giver}
        new = {after.words[slot] for slot in changed_slots(before, after)}
        assert new
        assert new.isdisjoint(old)
        assert changed_slots(before, after) <= NAME_SLOTS


def test_both_subjects_are_flipped_to_the_same_name(bpe: PreTrainedTokenizerFast) -> None:
    flipped = IOIDataset(N=30, tokenizer=bpe).gen_flipped_prompts("S")
    assert torch.equal(tokens_at(flipped, "S1"), tokens_at(flipped, "S2"))
    assert {prompt.c for prompt in flipped.ioi_prompts} == {None}


def test_both_subjects_of_the_family_abc_stay_different(bpe: PreTrainedTokenizerFast) -> None:
    flipped = IOIDataset(N=30, tokenizer=bpe, prompt_family="ABC").gen_flipped_prompts("S")
    assert not bool((tokens_at(flipped, "S1") == tokens_at(flipped, "S2")).any())


@pytest.mark.parametrize("family", get_args(PromptFamily))
@pytest.mark.parametrize("prompt_type", get_args(PromptType))
def test_flipping_the_order_exchanges_the_first_two_names(
    tokenizer: PreTrainedTokenizerFast, prompt_type: PromptType, family: PromptFamily
) -> None:
    dataset = IOIDataset(prompt_type, 20, tokenizer=tokenizer, prompt_family=family)
    flipped = dataset.gen_flipped_prompts("order")
    assert torch.equal(flipped.word_idx["IO"], dataset.word_idx["S1"])
    assert torch.equal(flipped.word_idx["S1"], dataset.word_idx["IO"])
    assert torch.equal(flipped.word_idx["S2"], dataset.word_idx["S2"])
    assert torch.equal(flipped.io_tokenIDs, dataset.io_tokenIDs)
    assert torch.equal(flipped.labels.T, torch.stack([flipped.io_tokenIDs, flipped.s_tokenIDs]))
    assert torch.equal(flipped.s_tokenIDs, dataset.s_tokenIDs)
    for before, after in zip(dataset.ioi_prompts, flipped.ioi_prompts, strict=True):
        assert {before.order, after.order} == {"ABBA", "BABA"}
        assert changed_slots(before, after) == {"first", "second"}
    assert flipped.gen_flipped_prompts("order").prompts_text == dataset.prompts_text


@pytest.mark.parametrize("flip", FLIPS)
def test_the_labels_are_those_of_the_new_text(bpe: PreTrainedTokenizerFast, flip: Flip) -> None:
    flipped = IOIDataset(N=30, tokenizer=bpe).gen_flipped_prompts(flip)
    assert torch.equal(flipped.io_tokenIDs, tokens_at(flipped, "IO"))
    assert torch.equal(flipped.s_tokenIDs, tokens_at(flipped, "S1"))
    assert words_at(flipped, "IO") == [prompt.io for prompt in flipped.ioi_prompts]
    assert words_at(flipped, "S2") == [prompt.giver for prompt in flipped.ioi_prompts]


@pytest.mark.parametrize("flip", FLIPS)
def test_a_flip_is_a_dataset_like_its_parent(bpe: PreTrainedTokenizerFast, flip: Flip) -> None:
    dataset = IOIDataset(N=12, tokenizer=bpe, nb_templates=4)
    before = dataset.prompts_toks.clone()
    flipped = dataset.gen_flipped_prompts(flip)
    assert type(flipped) is IOIDataset
    assert len(flipped) == 12
    assert flipped.templates_used == dataset.templates_used
    assert [prompt.template for prompt in flipped.ioi_prompts] == [prompt.template for prompt in dataset.ioi_prompts]
    assert torch.equal(dataset.prompts_toks, before)
    assert [text_of(flipped, row) for row in range(12)] == [text.replace(" ", "") for text in flipped.prompts_text]


def test_flips_are_decided_by_the_seed_and_go_on_from_the_parents_stream(
    bpe: PreTrainedTokenizerFast,
) -> None:
    dataset = IOIDataset(N=30, seed=5, tokenizer=bpe)
    flipped = dataset.gen_flipped_prompts("IO")
    assert flipped.prompts_text == IOIDataset(N=30, seed=5, tokenizer=bpe).gen_flipped_prompts("IO").prompts_text
    assert flipped.prompts_text == dataset.gen_flipped_prompts("IO").prompts_text
    again = [prompt.io for prompt in flipped.gen_flipped_prompts("IO").ioi_prompts]
    assert again != [prompt.io for prompt in flipped.ioi_prompts]
    assert dataset[:10].gen_flipped_prompts("IO").prompts_text == flipped.prompts_text[:10]


def test_flips_follow_one_another_with_the_fewest_names(make_word_level: MakeWordLevel) -> None:
    dataset = IOIDataset(N=10, tokenizer=make_word_level(names=5), prompt_family="ABC")
    for flip in ("S", "S1", "S2", "IO", "order", "S"):
        dataset = dataset.gen_flipped_prompts(flip)
        assert all(len({prompt.io, prompt.s, prompt.giver}) == 3 for prompt in dataset.ioi_prompts)


# --- lengths --------------------------------------------------------------------------------------


def test_equal_lengths_are_the_most_common_one(word_level: PreTrainedTokenizerFast) -> None:
    slots = dict.fromkeys(["first", "second", "giver", "place", "object"], "word")
    measured = [len(re.findall(r"\w+|[^\w\s]", template.format_map(slots))) for template in TEMPLATES]
    ((common, count),) = Counter(measured).most_common(1)
    dataset = IOIDataset(tokenizer=word_level)
    assert dataset.max_len == common
    assert dataset.templates_used == tuple(
        template for template, length in zip(TEMPLATES, measured, strict=True) if length == common
    )
    assert len(dataset.templates_used) == count


def test_of_equally_common_lengths_the_shortest_is_taken() -> None:
    lengths = {0: 9, 1: 7, 2: 8, 3: 9, 4: 7}
    assert _choose_templates(lengths, "equal", None) == (1, 4)
    assert _choose_templates(lengths, "any", None) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("lengths", ["equal", "any"])
def test_only_the_first_templates_on_request(bpe: PreTrainedTokenizerFast, lengths: Any) -> None:
    every = IOIDataset(N=1, tokenizer=bpe, lengths=lengths).templates_used
    dataset = IOIDataset(N=60, tokenizer=bpe, lengths=lengths, nb_templates=3)
    assert dataset.templates_used == every[:3]
    assert {TEMPLATES[prompt.template] for prompt in dataset.ioi_prompts} == set(every[:3])


def test_more_templates_than_share_a_length_is_an_error_with_the_lengths(
    word_level: PreTrainedTokenizerFast,
) -> None:
    available = len(IOIDataset(N=1, tokenizer=word_level).templates_used)
    with pytest.raises(DataError, match=f"{available + 1} templates were asked for, and {available} can") as caught:
        IOIDataset(tokenizer=word_level, nb_templates=available + 1)
    assert f"15 tokens: {available} templates" in caught.value.facts
    assert caught.value.hint == f'use nb_templates <= {available}, or lengths="any" for prompts of several lengths'
    with pytest.raises(DataError) as caught:
        IOIDataset(tokenizer=word_level, nb_templates=len(TEMPLATES) + 1, lengths="any")
    assert caught.value.hint == f"use nb_templates <= {len(TEMPLATES)}"


def test_any_length_uses_all_templates_and_pads_on_the_right(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=120, tokenizer=tokenizer, lengths="any")
    assert dataset.templates_used == TEMPLATES
    assert len(set(dataset.lengths.tolist())) > 1
    assert dataset.max_len == dataset.prompts_toks.shape[1] == int(dataset.lengths.max())
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    behind = torch.arange(dataset.max_len) >= dataset.lengths[:, None]
    assert torch.equal(dataset.prompts_toks == pad, behind)
    assert words_at(dataset, "END") == ["to"] * 120


def test_parts_of_equal_length_are_rejoined_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=80, tokenizer=tokenizer, lengths="any")
    joined = torch.zeros(80, dtype=torch.int64)
    texts = [""] * 80
    seen = []
    for length, rows, part in dataset.by_length():
        assert rows.dtype == torch.int64
        assert part.max_len == length
        assert part.lengths.tolist() == [length] * len(rows)
        assert torch.equal(part.prompts_toks, dataset.prompts_toks[rows, :length])
        # Without padding, position -1 is the end.
        assert part.tokenizer.decode([int(part.prompts_toks[0, -1])]).strip() == "to"
        joined[rows] = part.prompts_toks.sum(dim=1)
        for row, text in zip(rows.tolist(), part.prompts_text, strict=True):
            texts[row] = text
        seen.append(length)
    assert seen == sorted(set(dataset.lengths.tolist()))
    inside = torch.arange(dataset.max_len) < dataset.lengths[:, None]
    assert torch.equal(joined, (dataset.prompts_toks * inside).sum(dim=1))
    assert texts == dataset.prompts_text


def test_a_dataset_of_one_length_is_one_part(bpe: PreTrainedTokenizerFast) -> None:
    dataset = IOIDataset(N=7, tokenizer=bpe)
    ((length, rows, part),) = dataset.by_length()
    assert length == dataset.max_len
    assert rows.tolist() == list(range(7))
    assert torch.equal(part.prompts_toks, dataset.prompts_toks)


def test_padding_needs_a_token() -> None:
    assert IOIDataset(N=5, tokenizer=PlainTokenizer()).max_len == 15
    with pytest.raises(DataError, match="no token for it") as caught:
        IOIDataset(N=60, tokenizer=PlainTokenizer(), lengths="any")
    assert "pad_token" in caught.value.hint
    for tokenizer in (PlainTokenizer(eos=3), PlainTokenizer(pad=3, eos=4)):
        padded = IOIDataset(N=60, tokenizer=tokenizer, lengths="any")
        assert int((padded.prompts_toks == 3).sum()) == int((padded.max_len - padded.lengths).sum())


# --- selecting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(10), list(range(10))),
        (slice(-2, None), [18, 19]),
        (slice(None, None, -1), list(range(19, -1, -1))),
        ([3, 0, 3], [3, 0, 3]),
        ([-1], [19]),
        (torch.tensor([5, 2]), [5, 2]),
        (torch.arange(20) % 7 == 0, [0, 7, 14]),
        ([True] + [False] * 18 + [True], [0, 19]),
    ],
)
def test_a_selection_is_the_dataset_of_those_prompts(
    bpe: PreTrainedTokenizerFast, rows: Any, expected: list[int]
) -> None:
    dataset = IOIDataset(N=20, tokenizer=bpe)
    part = dataset[rows]
    assert len(part) == len(expected)
    assert part.prompts_text == [dataset.prompts_text[row] for row in expected]
    assert part.ioi_prompts == tuple(dataset.ioi_prompts[row] for row in expected)
    for name in ("prompts_toks", "io_tokenIDs", "s_tokenIDs", "lengths"):
        assert torch.equal(getattr(part, name), getattr(dataset, name)[expected])
    for where, positions in dataset.word_idx.items():
        assert torch.equal(part.word_idx[where], positions[expected])


@pytest.mark.parametrize("rows", [slice(5, 5), [], [False] * 20])
def test_an_empty_selection_is_an_error(bpe: PreTrainedTokenizerFast, rows: Any) -> None:
    with pytest.raises(DataError, match="cannot be empty") as caught:
        IOIDataset(N=20, tokenizer=bpe)[rows]
    assert "at least one" in caught.value.hint


@pytest.mark.parametrize("rows", [0, [20], [-21], [1.0], [True], torch.zeros(2, 2, dtype=torch.int64)])
def test_rows_that_cannot_be_selected_are_an_error(bpe: PreTrainedTokenizerFast, rows: Any) -> None:
    with pytest.raises(DataError, match="cannot be selected from 20 prompts") as caught:
        IOIDataset(N=20, tokenizer=bpe)[rows]
    assert "ioi_prompts" in caught.value.hint


# --- bad options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"prompt_type": "AABB"}, "'mixed', 'ABBA', 'BABA'"),
        ({"prompt_family": "ABCD"}, "'IOI', 'ABC'"),
        ({"lengths": "same"}, "'equal', 'any'"),
    ],
)
def test_an_unknown_option_is_an_error_that_lists_the_known_ones(
    bpe: PreTrainedTokenizerFast, options: dict[str, Any], allowed: str
) -> None:
    ((option, value),) = options.items()
    with pytest.raises(DataError, match=f"{option} is '{value}'") as caught:
        IOIDataset(tokenizer=bpe, **options)
    assert caught.value.hint == f"use one of {allowed}"


def test_an_unknown_flip_is_an_error_that_lists_the_known_ones(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="flip is 'S3'") as caught:
        IOIDataset(N=2, tokenizer=bpe).gen_flipped_prompts("S3")  # type: ignore[arg-type]
    assert caught.value.hint == "use one of 'IO', 'S1', 'S2', 'S', 'order'"


@pytest.mark.parametrize("options", [{"N": 0}, {"N": -3}, {"nb_templates": 0}])
def test_an_empty_dataset_is_an_error(bpe: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    ((option, _),) = options.items()
    with pytest.raises(DataError, match="cannot be empty") as caught:
        IOIDataset(tokenizer=bpe, **options)
    assert caught.value.hint == f"use {option} >= 1"


# --- the default tokenizer ------------------------------------------------------------------------


def _no_local_tokenizer(monkeypatch: pytest.MonkeyPatch, then: Any = None) -> list[dict[str, Any]]:
    """Makes transformers find nothing locally, and `then` (or nothing) on the hub; records its calls."""
    calls: list[dict[str, Any]] = []

    def from_pretrained(name: str, **options: Any) -> Any:
        calls.append({"name": name, **options})
        if options.get("local_files_only") or then is None:
            raise OSError("no such file")
        return then

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return calls


def test_without_a_tokenizer_and_offline_the_error_is_clear_and_the_hub_is_not_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _no_local_tokenizer(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="no tokenizer was given") as caught:
        IOIDataset()
    assert "tokenizer=" in caught.value.hint
    assert "load_circuit" in caught.value.hint
    assert calls == [{"name": "gpt2", "local_files_only": True}]


def test_without_a_tokenizer_gpt2s_is_taken_from_the_local_cache(
    monkeypatch: pytest.MonkeyPatch, bpe: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: bpe)
    assert IOIDataset(N=2).tokenizer is bpe


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a server that answers every request with an error: what counts is that it answers."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_a_local_copy_the_hub_is_asked_if_it_answers(
    monkeypatch: pytest.MonkeyPatch, bpe: PreTrainedTokenizerFast, hub: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    calls = _no_local_tokenizer(monkeypatch, then=bpe)
    assert IOIDataset(N=2).tokenizer is bpe
    assert calls[-1] == {"name": "gpt2"}
    _no_local_tokenizer(monkeypatch)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        IOIDataset(N=2)
    assert "no such file" in caught.value.facts


def test_the_package_does_not_import_transformers() -> None:
    code = "import sys, tapeout.tasks.ioi; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- tables of top tokens -------------------------------------------------------------------------

LOGITS = torch.tensor([0.5, -2.0, 3.0, 3.0, -7.25, 1.0])


def test_top_tokens_are_the_largest_first(word_level: PreTrainedTokenizerFast) -> None:
    text = [word_level.decode([token]) for token in range(6)]
    assert top_tokens(LOGITS, 3, word_level) == [(text[2], 2, 3.0), (text[3], 3, 3.0), (text[5], 5, 1.0)]
    assert bottom_tokens(LOGITS, 2, word_level) == [(text[4], 4, -7.25), (text[1], 1, -2.0)]


def test_without_a_tokenizer_the_text_is_the_id() -> None:
    assert top_tokens(LOGITS, 1, None) == [("2", 2, 3.0)]
    assert top_tokens(LOGITS.to(torch.bfloat16).requires_grad_(), 1, None) == [("2", 2, 3.0)]


def test_the_table_shows_text_and_values(bpe: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    mary = IOIDataset(N=1, tokenizer=bpe).vocabulary.names["Mary"]
    logits = torch.linspace(-1, 1, len(bpe))
    logits[mary] = 12.3456
    set_default_tokenizer(None)
    print_max_min_by_tok_k_torch(logits, k=5, tokenizer=bpe)
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert len(lines) == 5
    assert "' Mary'" in lines[0]
    assert "12.3456" in lines[0]
    assert "-1.0000" in lines[0]


def test_the_table_uses_the_tokenizer_of_the_last_dataset(
    bpe: PreTrainedTokenizerFast, word_level: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = torch.zeros(len(word_level))
    print_max_min_by_tok_k_torch(logits, k=1)
    assert "'" not in capsys.readouterr().out
    IOIDataset(N=1, tokenizer=bpe)
    token = IOIDataset(N=1, tokenizer=word_level).vocabulary.names["John"]
    assert default_tokenizer() is word_level
    logits[token] = 1.0
    print_max_min_by_tok_k_torch(logits, k=1)
    assert "'John'" in capsys.readouterr().out


def test_the_table_prints_tokens_that_look_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    class Brackets:
        def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
            raise NotImplementedError

        def decode(self, token_ids: list[int]) -> str:
            return "[/bold]" * len(token_ids)

    print_max_min_by_tok_k_torch(LOGITS, k=1, tokenizer=Brackets())
    assert "'[/bold]'" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(), (1, 6), (2, 3, 4)])
def test_logits_of_another_rank_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=re.escape(str(list(shape)))) as caught:
        print_max_min_by_tok_k_torch(torch.zeros(shape), k=1)
    assert "logits[0, -1]" in caught.value.hint


@pytest.mark.parametrize("k", [0, 7])
def test_more_tokens_than_there_are_is_an_error(k: int) -> None:
    with pytest.raises(DataError, match=f"k is {k}, and there are 6 tokens") as caught:
        top_tokens(LOGITS, k, None)
    assert caught.value.hint == "use k from 1 to 6"


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"tokenizer": 5}, "given as int", "load_circuit returns"),
        ({"N": 2.5}, "N is 2.5, which is no whole number", "N >= 1"),
    ],
)
def test_options_of_the_wrong_kind(
    bpe: PreTrainedTokenizerFast, options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        IOIDataset(**{"tokenizer": bpe, **options})
    assert hint in caught.value.hint


def test_more_prompts_than_memory_holds_are_refused_before_one_is_made(
    word_level: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapeout.tasks.ioi.dataset.available_memory", lambda: 500_000)
    with pytest.raises(DataError, match=r"^200 prompts take about 0\.0 GB") as caught:
        IOIDataset(N=200, tokenizer=word_level)
    assert caught.value.hint.startswith("ask for at most N=122")
    assert len(IOIDataset(N=122, tokenizer=word_level)) == 122
    monkeypatch.setattr("tapeout.tasks.ioi.dataset.available_memory", lambda: None)  # not known
    assert len(IOIDataset(N=200, tokenizer=word_level)) == 200
