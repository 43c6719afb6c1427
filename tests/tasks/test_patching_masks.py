"""Patch masks as inputs: every intervention through one artefact, beside single patches; and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
from splits import by_head_and_position, difference

from tapeout.compiler import Compiled, compile, load
from tapeout.ir import Add, Array, Circuit, I, Index, Matcher, Symbol, postorder
from tapeout.ir.errors import DataError, MatchError
from tapeout.passes import count_nodes
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.patching import (
    PATCH_TOKENS,
    HeadPart,
    Maskable,
    NodeName,
    Site,
    activation_patch,
    mask_name,
    masked,
    path_patch,
)
from tapeout.testing import assert_backends_agree

ROWS, LENGTH, VOCABULARY, LAYERS = 3, 6, 11, 3
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tiny.gpt2(VOCABULARY, LAYERS, heads=4, head_size=8),
    "llama": lambda: tiny.llama(VOCABULARY, LAYERS),
}
HEADS = 4
TOKENS, PATCH, LABELS = (
    torch.randint(VOCABULARY, (ROWS, count), generator=torch.Generator().manual_seed(seed))
    for seed, count in enumerate((LENGTH, LENGTH, 2))
)
KINDS: tuple[Maskable, ...] = get_args(Maskable)


@lru_cache
def metric(family: str) -> Circuit:
    return difference(by_head_and_position(MODELS[family](), LENGTH))


@lru_cache
def compiled(family: str, kind: Maskable) -> Compiled:
    return compile(masked(metric(family), kind), inputs=["tokens", "labels", PATCH_TOKENS, mask_name(kind)])


def inputs(kind: Maskable, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"tokens": TOKENS, "labels": LABELS, PATCH_TOKENS: PATCH, mask_name(kind): masks}


def shape_of(kind: Maskable) -> tuple[int, ...]:
    return (ROWS, LAYERS, LENGTH) if kind == "mlps" else (ROWS, LAYERS, HEADS, LENGTH)


def site(kind: Maskable, layer: int, head: int, position: int) -> Site:
    if kind == "mlps":
        return Site(NodeName("mlp", layer), (position,))
    part: HeadPart | None = None if kind == "heads" else kind
    return Site(NodeName("head", layer, head, part), (position,))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_artefact_for_every_part_and_position(family: str, kind: Maskable) -> None:
    run = compiled(family, kind)
    none = run(**inputs(kind, torch.zeros(shape_of(kind))))
    plain = bind_dataset(metric(family), TOKENS, LABELS).evaluate("float64")
    assert (none - plain).abs().max() < 1e-4
    moved = 0
    for layer, head, position in ((0, 0, 2), (0, 3, 5), (1, 1, 0), (1, 2, 5), (2, 0, 5), (2, 3, 3)):
        masks = torch.zeros(shape_of(kind))
        masks[(slice(None), layer, *(() if kind == "mlps" else (head,)), position)] = 1
        expected = activation_patch(
            metric(family),
            site(kind, layer, head, position),
            {"tokens": PATCH},
            {"tokens": TOKENS, "labels": LABELS},
        ).evaluate("float64")
        assert (run(**inputs(kind, masks)) - expected).abs().max() < 1e-4
        moved += int((expected - plain).abs().max() > 1e-3)
    assert moved >= 3


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_masks_of_its_own(family: str, kind: Maskable) -> None:
    masks = torch.rand(shape_of(kind), generator=torch.Generator().manual_seed(5)).round()
    together = compiled(family, kind)(**inputs(kind, masks))
    for row in range(ROWS):
        sites = [
            site(kind, int(layer), int(head[0]) if head else 0, int(position))
            for layer, *head, position in masks[row].nonzero().tolist()
        ]
        names = {each.name: [] for each in sites}  # type: ignore[var-annotated]
        for each in sites:
            names[each.name].extend(each.positions or ())
        expected = activation_patch(
            metric(family),
            [Site(name, tuple(positions)) for name, positions in names.items()],
            {"tokens": PATCH[row : row + 1]},
            {"tokens": TOKENS[row : row + 1], "labels": LABELS[row : row + 1]},
        ).evaluate("float64")
        assert (together[row] - expected[0]).abs() < 1e-4


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_two_forwards_and_the_mixing(family: str, kind: Maskable) -> None:
    plain = compile(metric(family), inputs=["tokens", "labels"])
    width = {"heads": 8, "mlps": 32, "q": 8, "k": 8, "v": 8}[kind] if family == "gpt2" else 4 if kind != "mlps" else 16
    mixed = ROWS * LAYERS * LENGTH * (1 if kind == "mlps" else HEADS) * (3 * width + 2)
    flops = compiled(family, kind).cost(ROWS).flops
    assert flops <= 2 * plain.cost(ROWS).flops + mixed
    nodes = [count_nodes(*each.roots) for each in (compiled(family, kind), plain)]
    assert nodes[0] <= 2 * nodes[1] + 8 * LAYERS


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", ["heads", "q", "k", "v"])
def test_heads_are_rolled_up(family: str, kind: Maskable) -> None:
    """No slice of a weight is left: every product is with all heads at once."""
    (root,) = compiled(family, kind).roots
    slices = [node for node in postorder(root) if isinstance(node, Index) and isinstance(node.node, Array)]
    assert not [node for node in slices if node.node.rank == 3 and isinstance(node.axis_indices[0], int)]
    (masks,) = (symbol for symbol in root.get(Symbol) if symbol.name == mask_name(kind))
    assert len([node for node in postorder(root) if masks in node.children]) == LAYERS


def test_several_kinds_at_once() -> None:
    both = masked(metric("llama"), "heads", "q")
    names = {symbol.name for symbol in both.free_symbols}
    assert names == {"tokens", PATCH_TOKENS, "masks.heads", "masks.q"}
    run = compile(both, inputs=["tokens", "labels", PATCH_TOKENS, "masks.heads", "masks.q"])
    masks = {"masks.heads": torch.zeros(shape_of("heads")), "masks.q": torch.zeros(shape_of("q"))}
    masks["masks.heads"][:, 0, 1] = masks["masks.q"][:, 2, 3, 5] = 1
    found = run(**{"tokens": TOKENS, "labels": LABELS, PATCH_TOKENS: PATCH}, **masks)
    expected = activation_patch(
        metric("llama"), ["a0.h1", "a2.h3.q@5"], {"tokens": PATCH}, {"tokens": TOKENS, "labels": LABELS}
    )
    assert (found - expected.evaluate("float64")).abs().max() < 1e-4


def test_masks_on_circuits_that_are_not_split_by_position() -> None:
    by_head = metric("gpt2").update(Matcher.regex("_by_pos$"), lambda node: node.children[0].children[0])
    compact = compile(masked(by_head, "heads"), inputs=["tokens", "labels", PATCH_TOKENS, "masks.heads"])
    assert compact.roots == compiled("gpt2", "heads").roots


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx"])
def test_backends_agree(family: str, backend: str) -> None:
    masks = torch.rand(shape_of("heads"), generator=torch.Generator().manual_seed(6))
    assert_backends_agree(masked(metric(family), "heads"), inputs("heads", masks), [backend])
    paths = ["a0.h1@2,3 -> a2.h3.k -> final.input", "a1.h0 -> final.input", "m0 -> a1.h2.q@END"]
    data = {"tokens": TOKENS, "labels": LABELS, PATCH_TOKENS: PATCH}
    assert_backends_agree(path_patch(metric(family), paths), data, [backend])


@pytest.mark.slow
def test_inductor_agrees() -> None:
    circuit = difference(by_head_and_position(tiny.gpt2(VOCABULARY), LENGTH))
    both = path_patch(circuit, "m0 -> a1.h0.q -> final.input").rename(None)
    masks = torch.rand((ROWS, 2, 2, LENGTH), generator=torch.Generator().manual_seed(6))
    together = Add(masked(circuit, "heads"), both, name="both")
    assert_backends_agree(together, inputs("heads", masks), ["inductor"])


def test_a_saved_artefact_serves_every_mask(tmp_path: Path) -> None:
    compiled("gpt2", "heads").save(tmp_path / "masked.tapeout")
    loaded = load(tmp_path / "masked.tapeout")
    for seed in range(3):
        masks = torch.rand(shape_of("heads"), generator=torch.Generator().manual_seed(seed)).round()
        given = inputs("heads", masks)
        assert (loaded(**given) - compiled("gpt2", "heads")(**given)).abs().max() < 1e-6


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match=r"masks for 'o'\nhint: give one or several of heads, mlps, q, k, v"):
        masked(metric("gpt2"), "o")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"masks for nothing\nhint: give one"):
        masked(metric("gpt2"))
    with pytest.raises(DataError, match=r"each once"):
        masked(metric("gpt2"), "q", "q")
    with pytest.raises(MatchError, match=r"there are no heads below .*\nhint: split the model first"):
        masked(Add(Symbol.new_with_none_uuid((2,), "tokens", torch.int64).index(I[0])), "heads")
