"""Activation patching and ablation, beside hooks on Hugging Face's models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch
from patching_definition import Definition, Tiny, logit_difference
from patching_hooks import patched_by_hooks, recorded
from splits import by_head_and_position, difference
from torch import Tensor

from tapeout.ir import Circuit
from tapeout.ir.errors import DataError, MatchError, ParseError, ShapeError, TapeoutError
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.patching import END, PATCH_TOKENS, ablate, activation_patch, parse_path, parse_site

ROWS, LENGTH, VOCABULARY = 3, 5, 11
MODELS: dict[str, Callable[[int], Any]] = {"gpt2": tiny.gpt2, "llama": tiny.llama}
TOKENS, SOURCE, LABELS = (
    torch.randint(VOCABULARY, (ROWS, count), generator=torch.Generator().manual_seed(count + seed))
    for seed, count in enumerate((LENGTH, LENGTH, 2))
)
BASELINE = {"tokens": TOKENS, "labels": LABELS}


@lru_cache
def both(family: str) -> tuple[Circuit, Any]:
    model = MODELS[family](VOCABULARY)
    return difference(by_head_and_position(model, LENGTH)), model


PATCHES = {
    "a head": ["a0.h1"],
    "a head at some positions": ["a0.h1@0,2"],
    "heads, one of which reads the other": ["a0.h0", "a1.h1@END", "a1.h0"],
    "an MLP": ["m0"],
    "an MLP at the end": ["m1@END"],
    "the residual stream": ["a1.input@1,3"],
    "the last residual stream": ["final.input@END"],
    "a query": ["a1.h1.q@END"],
    "queries and the MLP below": ["a1.h0.q", "a1.h1.q@2", "m0@0"],
}
OF_ONE_FAMILY = {
    "gpt2": {"a key": ["a1.h1.k@1,2"], "a value": ["a0.h0.v"], "all three": ["a1.h0.q@4", "a1.h0.k@0", "a1.h0.v@3"]},
    "llama": {"a shared key": ["a1.kv1.k@1,2"], "a shared value": ["a0.kv0.v"]},
}
CASES = [(family, sites) for family in MODELS for sites in (PATCHES | OF_ONE_FAMILY[family]).values()]


@pytest.mark.parametrize(
    ("family", "sites"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_activation_patching_is_what_hooks_do(family: str, sites: list[str]) -> None:
    circuit, model = both(family)
    names = [parse_site(site).name for site in sites]
    logits = patched_by_hooks(model, TOKENS, sites, recorded(model, SOURCE, names))
    ours = activation_patch(circuit, sites, {"tokens": SOURCE}, BASELINE).evaluate()
    plain = bind_dataset(circuit, TOKENS, LABELS).evaluate()
    expected = logit_difference(logits, LABELS)
    assert (ours - expected).abs().max() < 1e-4
    assert (expected - plain).abs().max() > 1e-3


INSIDE = ["a1.h1.k", "a1.h1.v@0,2", "a1.h0.pattern", "a0.h1.pattern@3", "m1.input@END", "a1.h1"]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("site", INSIDE)
def test_one_heads_own_read_patterns_and_streams_between(family: str, site: str) -> None:
    circuit, model = both(family)
    paths = [parse_path(site)]
    expected = logit_difference(Definition(Tiny(model), TOKENS, SOURCE, paths).logits(), LABELS)
    ours = activation_patch(circuit, site, {"tokens": SOURCE}, BASELINE).evaluate("float64")
    assert (ours - expected).abs().max() < 1e-9


def test_one_heads_read_of_a_shared_key_is_not_the_key() -> None:
    circuit, _ = both("llama")
    shared, one, other, two = (
        activation_patch(circuit, nodes, {"tokens": SOURCE}, BASELINE).evaluate("float64")
        for nodes in ("a1.kv0.k", "a1.h0.k", "a1.h1.k", ["a1.h0.k", "a1.h1.k"])
    )
    assert (shared - two).abs().max() < 1e-12
    assert min((shared - one).abs().max(), (shared - other).abs().max(), (one - other).abs().max()) > 1e-4


@pytest.mark.parametrize("family", MODELS)
def test_patched_with_its_own_value_nothing_changes(family: str) -> None:
    circuit, _ = both(family)
    plain = bind_dataset(circuit, TOKENS, LABELS).evaluate("float64")
    sites = ["a0.h1", "a1.h0.q@2", "m1", "a1.input@0"]
    same = activation_patch(circuit, sites, BASELINE, BASELINE).evaluate("float64")
    assert (same - plain).abs().max() < 1e-12
    all_of_it = activation_patch(circuit, "a1.input", {"tokens": SOURCE}, BASELINE).evaluate("float64")
    assert (all_of_it - bind_dataset(circuit, SOURCE, LABELS).evaluate("float64")).abs().max() < 1e-12


def test_positions_of_parts_that_name_none() -> None:
    circuit, _ = both("gpt2")
    assert activation_patch(circuit, ["m0", "a1.h0"], positions=END) is activation_patch(circuit, ["m0@4", "a1.h0@END"])
    assert activation_patch(circuit, ["m0@1"], positions=(2, 3)) is activation_patch(circuit, "m0@1")
    row = activation_patch(circuit, "m0@1")
    assert row.shape == () and {symbol.name for symbol in row.free_symbols} == {"tokens", PATCH_TOKENS}


# -- ablation


def by_hooks(model: Any, sites: list[str], values: Callable[[Tensor], Tensor]) -> Tensor:
    names = [parse_site(site).name for site in sites]
    source = recorded(model, SOURCE, names)
    logits = patched_by_hooks(model, TOKENS, sites, {name: values(value) for name, value in source.items()})
    return logit_difference(logits, LABELS)


ABLATED = ["a0.h1", "a1.h0.q@END", "a1.input@2"]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("site", ABLATED)
def test_ablation_is_what_hooks_do(family: str, site: str) -> None:
    circuit, model = both(family)
    zero = ablate(circuit, site, baseline=BASELINE)
    assert (zero.evaluate() - by_hooks(model, [site], torch.zeros_like)).abs().max() < 1e-4
    mean = ablate(circuit, site, "mean", {"tokens": SOURCE}, BASELINE)
    expected = by_hooks(model, [site], lambda value: value.mean(0, keepdim=True).expand_as(value))
    assert (mean.evaluate() - expected).abs().max() < 1e-4
    assert not mean.are_any_found(PATCH_TOKENS)


def test_resampling_draws_rows() -> None:
    circuit, _ = both("gpt2")
    drawn = torch.randint(ROWS, (ROWS,), generator=torch.Generator().manual_seed(7))
    expected = activation_patch(circuit, "a0.h1", {"tokens": SOURCE[drawn]}, BASELINE).evaluate("float64")
    found = ablate(circuit, "a0.h1", "resample", {"tokens": SOURCE}, BASELINE, seed=7).evaluate("float64")
    assert torch.equal(found, expected)
    assert ablate(circuit, "a0.h1", "resample") is activation_patch(circuit, "a0.h1")


def test_an_ablated_row_is_a_circuit_of_one_row() -> None:
    circuit, _ = both("llama")
    row = ablate(circuit, ["a0.h1", "m1"], "mean", {"tokens": SOURCE})
    bound = bind_dataset(row, TOKENS, LABELS).evaluate("float64")
    together = ablate(circuit, ["a0.h1", "m1"], "mean", {"tokens": SOURCE}, BASELINE).evaluate("float64")
    assert (bound - together).abs().max() < 1e-12
    assert [array.name for array in row.get({"mean.a0.h1"})] == ["mean.a0.h1"]


# -- what is refused

WRONG: dict[str, tuple[Callable[[Circuit], Any], type[TapeoutError], str]] = {
    "twice": (
        lambda c: activation_patch(c, ["m0", "m0@2"]),
        DataError,
        r"m0 is named twice\nhint: name each part once",
    ),
    "the end twice": (lambda c: activation_patch(c, ["m0@END", "m0@4"]), DataError, r"named twice"),
    "none": (lambda c: activation_patch(c, []), DataError, r"hint: give at least one"),
    "unknown": (lambda c: activation_patch(c, "m9"), MatchError, r"no m9 below"),
    "unreadable": (lambda c: activation_patch(c, "a0.h1 -> m0"), ParseError, r"hint: use names such as"),
    "outside": (lambda c: activation_patch(c, "m0", positions=5), ShapeError, r"outside of the sequence"),
    "half of the data": (lambda c: activation_patch(c, "m0", BASELINE), DataError, r"hint: give both, or neither"),
    "unequal data": (
        lambda c: activation_patch(c, "m0", {"tokens": SOURCE[:1]}, BASELINE),
        DataError,
        r"hint: row i of the one",
    ),
    "unknown ablation": (lambda c: ablate(c, "m0", "noise"), DataError, r"hint: use .zero., .mean. or .resample."),  # type: ignore[arg-type]
    "a mean of nothing": (lambda c: ablate(c, "m0", "mean"), DataError, r"was not given data.*\nhint: give over="),
    "zero of data": (lambda c: ablate(c, "m0", "zero", BASELINE), DataError, r"was given data.*\nhint: give over="),
    "resampled from nothing": (lambda c: ablate(c, "m0", "resample", None, BASELINE), DataError, r"was not given"),
    "zero on other lengths": (
        lambda c: ablate(c, "m0", baseline={"tokens": TOKENS[:, :3], "labels": LABELS}),
        DataError,
        r"hint: give at least one row, and rows of the length",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), WRONG.values(), ids=WRONG)
def test_what_is_refused(call: Callable[[Circuit], Any], kind: type[TapeoutError], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(both("gpt2")[0])
