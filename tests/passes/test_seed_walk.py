"""The seed's walk, step by step, beside rust_circuit: the same nodes over the same children, the same values.

Known differences, each allowed for below:

- sizes that are not known yet: rust_circuit prints `?`, tapeout names them; both count as unknown here;
- the sum of a group of several heads: rust_circuit calls the sum `a0.keep.first_sum` and the stacked heads
  `a0.first`; tapeout calls the sum `a0.first`, as a single head is called, and the stacked heads
  `a0.first.heads`;
- the sum of heads below a bias that was not pulled up: rust_circuit renames it to `b0.a.`, with nothing
  behind the dot; in tapeout it stays `a0`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracle_walk import RUST, TAPEOUT, described, evaluate_rust, needs_oracle, walk
from random_models import bound_circuit, evaluate, gpt2, logits, tokens_for

import tapeout as rc
from tapeout.models import circuit_of
from tapeout.passes import count_nodes

LENGTH = 4
SIZES = walk.Sizes(layers=2, heads=4, length=LENGTH)
FULL = walk.FULL_SPLIT
FINEST = "ATTN_HEAD_MLP_NORM"
HALVES = [(slice(0, 2), "first"), (slice(2, 4), "rest")]
NOT_FLAT = FULL | {"use_flatten_res": False}
NOT_PULLED_UP = FULL | {"use_pull_up_head_split": False}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "the seed's": (FINEST, FULL),
    "blocks": ("BLOCK", {"use_clear_block_module": False}),
    "blocks, biases inside": ("BLOCK", {"use_clear_block_module": False, "use_pull_up_bias": False}),
    "sublayers": ("ATTN_MLP", {"use_pull_up_bias": True}),
    "sublayers, flat": ("ATTN_MLP", {"use_flatten_res": True}),
    "sublayers, blocks kept": ("ATTN_MLP", {"use_clear_block_module": False}),
    "sublayers, biases inside, flat": ("ATTN_MLP", {"use_pull_up_bias": False, "use_flatten_res": True}),
    "norms": ("ATTN_MLP_NORM", {"use_pull_up_bias": True}),
    "norms, biases inside": ("ATTN_MLP_NORM", {"use_pull_up_bias": False}),
    "norms, arrays called _arr": ("ATTN_MLP_NORM", {"use_strip_arr": False}),
    "norms, flat, into components": ("ATTN_MLP_NORM", {"use_flatten_res": True, "flatten_components": True}),
    "heads, not split": (FINEST, {"use_pull_up_bias": True}),
    "split": (FINEST, {"split_by_head_config": "full"}),
    "split, biases inside": (FINEST, {"split_by_head_config": "full", "use_pull_up_bias": False}),
    "split, flat": (FINEST, NOT_PULLED_UP),
    "split, flat, into components": (FINEST, NOT_PULLED_UP | {"flatten_components": True}),
    "split, pulled up": (FINEST, NOT_FLAT),
    "split, pulled up, blocks kept": (FINEST, NOT_FLAT | {"use_clear_block_module": False}),
    "split, pulled up, biases inside": (FINEST, FULL | {"use_pull_up_bias": False}),
    "everything": (FINEST, FULL | {"flatten_components": True}),
    "first layer": (FINEST, FULL | {"split_by_head_config": {0}}),
    "last layer, flat": (FINEST, NOT_PULLED_UP | {"split_by_head_config": {1}}),
    "two groups": (FINEST, FULL | {"split_by_head_config": {0: HALVES}}),
    "two groups, flat": (FINEST, NOT_PULLED_UP | {"split_by_head_config": {1: HALVES}}),
    "groups of all sorts": (
        FINEST,
        FULL
        | {
            "split_by_head_config": {
                0: [(0, "h0"), (slice(1, 4), "rest")],
                1: [(torch.tensor([0, 3]), "first"), (torch.tensor([1, 2]), "rest")],
            }
        },
    ),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return gpt2(n_head=SIZES.heads)


def steps(system: Any, bound: Any, options: str) -> dict[str, Any]:
    """The last circuit of each step."""
    to, more = OPTIONS[options]
    return {"bound": bound} | dict(walk.literal_walk(system, bound, SIZES, to, **more))


def in_our_words(name: str) -> str:
    """What a node of rust_circuit is called here."""
    name = re.sub(r"^(a\d)\.(first|rest)$", r"\1.\2.heads", name)
    name = re.sub(r"\.keep\.(first|rest)_sum", r".\1", name)
    return re.sub(r"^b(\d)\.a\.$", r"a\1", name)


def after_the_seeds_first_rename(name: str) -> str:
    """`a0`, which rust_circuit calls `b0.a.`, is not spared by the rename to `.inner`."""
    return re.sub(r"^b(\d)\.a\.$", r"a\1.inner", name)


@needs_oracle
@pytest.mark.parametrize("options", OPTIONS)
def test_every_step_has_the_nodes_of_the_oracle(options: str, model: Any) -> None:
    circuits, info = circuit_of(model)
    ours = steps(TAPEOUT, walk.bind_tapeout(circuits, info, LENGTH), options)
    theirs = steps(RUST, walk.bind_rust(RUST, circuits, info, LENGTH, "gelu_new"), options)
    assert list(ours) == list(theirs)
    for step, circuit in ours.items():
        late = "rename" in step or "position" in step
        wanted = described(
            theirs[step], lambda n, late=late: in_our_words(after_the_seeds_first_rename(n) if late else n)
        )
        found = described(circuit)
        assert found - wanted == wanted - found, f"after {step!r}"


@needs_oracle
@pytest.mark.parametrize("options", ["the seed's", "everything", "groups of all sorts", "sublayers"])
def test_every_step_has_the_values_of_the_oracle(options: str, model: Any) -> None:
    tokens = tokens_for(model, 3, LENGTH)
    circuits, info = circuit_of(model)
    ours = steps(TAPEOUT, walk.bind_tapeout(circuits, info, LENGTH), options)
    theirs = steps(RUST, walk.bind_rust(RUST, circuits, info, LENGTH, "gelu_new"), options)
    for step, circuit in ours.items():
        torch.testing.assert_close(
            evaluate(circuit, tokens),
            evaluate_rust(theirs[step], tokens),
            atol=1e-5,
            rtol=0,
            msg=lambda m, s=step: f"{s}: {m}",
        )


@pytest.mark.parametrize("options", OPTIONS)
def test_no_step_changes_the_value(options: str, model: Any) -> None:
    tokens = tokens_for(model, 3, LENGTH)
    expected = logits(gpt2(n_head=SIZES.heads).double(), tokens)
    for step, circuit in steps(TAPEOUT, bound_circuit(model, LENGTH), options).items():
        error = (evaluate(circuit, tokens, "float64") - expected).abs().max()
        assert error < 1e-12, f"{step}: {error}"


def test_each_step_changes_the_circuit(model: Any) -> None:
    circuits = list(steps(TAPEOUT, bound_circuit(model, LENGTH), "the seed's").values())
    assert len(circuits) == 8
    assert all(before is not after for before, after in pairwise(circuits))


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    """GPT-2 small's layers and heads, narrow: its circuits and what is known of it."""
    return circuit_of(gpt2(n_layer=12, n_head=12, n_embd=24, n_inner=None))


@pytest.fixture(scope="module")
def small_steps(small: tuple[Any, Any]) -> dict[str, Any]:
    bound = walk.bind_tapeout(*small, 16)
    return dict(walk.table_walk(TAPEOUT, bound, walk.Sizes(12, 12, 16)))


def test_what_is_left_of_gpt2_small(small_steps: dict[str, Any]) -> None:
    """The 26 modules, the 144 heads at 16 positions, and nothing that is called after blocks."""
    modules = sorted(node.name for node in small_steps["substitute all but norms"].get(rc.Module))
    expected = [f"{part}{layer}.norm" for part in "am" for layer in range(12)] + ["final.call", "final.norm"]
    assert modules == sorted(expected)
    assert len(modules) == 26
    assert small_steps["rename blocks"].get_unique("a0.h11").shape == (16, 24)

    split = small_steps["split by position"].get_unique("a0.h0_by_pos")
    assert isinstance(split, rc.Concat)
    assert [child.name for child in split.children] == [f"a0.h0_at_idx_{i}" for i in range(16)]
    assert all(isinstance(child, rc.Index) and child.shape == (1, 24) for child in split.children)

    end = small_steps["rename positions"]
    positions = end.get(rc.Regex(r"^(a\d+_h\d+|m\d+)_t\d+$"))
    assert len({node.name for node in positions}) == len(positions) == 12 * (12 + 1) * 16
    assert not end.are_any_found(rc.Regex("at_idx"))
    assert not end.are_any_found(rc.Regex(r"^b\d+(.[am])?(.h\d+)?$"))


@needs_oracle
def test_gpt2_small_ends_with_the_nodes_of_the_oracle(small: tuple[Any, Any], small_steps: dict[str, Any]) -> None:
    theirs = walk.bind_rust(RUST, *small, 16, "gelu_new")
    *_, (_, expected) = walk.literal_walk(RUST, theirs, walk.Sizes(12, 12, 16))
    ours = small_steps["rename positions"]
    assert described(ours) == described(expected)
    assert sum(described(ours).values()) == count_nodes(ours)


def test_renames_by_table_end_with_the_same_circuit(model: Any) -> None:
    bound = bound_circuit(model, LENGTH)
    *_, (_, literal) = walk.literal_walk(TAPEOUT, bound, SIZES)
    *_, (_, tables) = walk.table_walk(TAPEOUT, bound, SIZES)
    assert tables is literal
