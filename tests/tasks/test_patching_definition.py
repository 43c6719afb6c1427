"""Path patching beside its definition in plain torch: random sets of paths on tiny models."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import get_args

import pytest
import tiny
import torch
from patching_definition import Definition, Tiny, components, logit_difference
from splits import by_head_and_position, difference

from tapeout.ir import Circuit
from tapeout.ir.errors import DataError, MatchError
from tapeout.tasks.patching import END, HeadPart, NodeName, Path, Site, node_names, parse_path, path_patch

ROWS, LENGTH, VOCABULARY = 2, 4, 11
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}
GENERATOR = torch.Generator().manual_seed(3)
TOKENS, PATCH, LABELS = (torch.randint(VOCABULARY, (ROWS, count), generator=GENERATOR) for count in (LENGTH, LENGTH, 2))


@lru_cache
def both(family: str) -> tuple[Circuit, Tiny]:
    model = MODELS[family](VOCABULARY, layers=3, heads=2 if family == "gpt2" else 4)
    return difference(by_head_and_position(model, LENGTH)), Tiny(model)


def parts_of(circuit: Circuit) -> list[NodeName]:
    """Every part that there is, those of heads too."""
    names = node_names(circuit)
    heads = [name for name in names if name.kind == "head"]
    inside = [NodeName("head", name.layer, name.head, part) for name in heads for part in get_args(HeadPart)]
    return sorted(names + inside, key=lambda name: (name.order, str(name)))


def random_path(chosen: random.Random, parts: list[NodeName]) -> Path:
    """A path of one to four parts, each at some positions or whole."""
    count = chosen.choice((1, 2, 2, 3, 3, 4))
    steps = sorted(chosen.sample(parts, count), key=lambda name: name.order)
    return Path(tuple(Site(name, _positions(chosen)) for name in steps))


def _positions(chosen: random.Random) -> tuple[int, ...] | None:
    if chosen.random() < 0.6:
        return None
    return tuple(chosen.sample((0, 1, 2, END), chosen.choice((1, 2))))


def random_paths(chosen: random.Random, family: str, recomputed: bool) -> list[Path]:
    """A set of paths that are not refused, of different places in the model."""
    circuit, _ = both(family)
    paths: list[Path] = []
    while len(paths) < chosen.choice((1, 2, 3, 4)):
        path = random_path(chosen, parts_of(circuit))
        try:
            path_patch(circuit, [*paths, path], between="recomputed" if recomputed else "frozen")
        except (DataError, MatchError):
            continue
        paths.append(path)
    return paths


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", MODELS)
def test_random_sets_of_paths(family: str, seed: int) -> None:
    chosen = random.Random(f"{family}{seed}")
    recomputed, frozen_norm = seed % 3 == 1, seed % 4 == 2
    circuit, model = both(family)
    paths = random_paths(chosen, family, recomputed)
    row = path_patch(
        circuit,
        paths,
        {"tokens": TOKENS, "labels": LABELS},
        {"tokens": PATCH},
        between="recomputed" if recomputed else "frozen",
        freeze_norm=frozen_norm,
    )
    definition = Definition(model, TOKENS, PATCH, paths, recomputed, frozen_norm)
    expected = logit_difference(definition.logits(), LABELS)
    assert (row.evaluate("float64") - expected).abs().max() < 1e-9, [str(path) for path in paths]


@pytest.mark.parametrize("path", ["a0.h0 -> m1@END -> final.input", "m0 -> a1.h1@2,END", "a0.h1@1 -> m0@1 -> a2.h0"])
@pytest.mark.parametrize("family", MODELS)
def test_receivers_at_some_positions(family: str, path: str) -> None:
    circuit, model = both(family)
    patched = path_patch(circuit, path, {"tokens": TOKENS, "labels": LABELS}, {"tokens": PATCH}).evaluate("float64")
    length = TOKENS.shape[1]
    named = Path(tuple(site.counted_from_0(length) for site in parse_path(path).steps))
    expected = logit_difference(Definition(model, TOKENS, PATCH, [named]).logits(), LABELS)
    assert (patched - expected).abs().max() < 1e-9
    unchanged = logit_difference(Definition(model, TOKENS, PATCH, ()).logits(), LABELS)
    assert (expected - unchanged).abs().max() > 1e-6


@pytest.mark.parametrize("family", MODELS)
def test_the_definition_without_paths_is_the_model(family: str) -> None:
    _, model = both(family)
    logits = Definition(model, TOKENS, PATCH, ()).logits()
    theirs = MODELS[family](VOCABULARY, layers=3, heads=2 if family == "gpt2" else 4)(TOKENS).logits
    assert (logits - theirs).abs().max() < 1e-4
    assert len(components(model)) == 1 + 3 * (model.heads + 1)
    everything = Definition(model, TOKENS, PATCH, [Path((Site(NodeName("embeds")),))]).logits()
    assert (everything - Definition(model, PATCH, TOKENS, ()).logits()).abs().max() < 1e-12
