"""Nest sums: what is shared, that values stay, and that a model comes out the same however configured."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import tiny
import torch
from harness import symbol, tensor
from hypothesis import given

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    GeneralFunction,
    Symbol,
    circuit_text,
    postorder,
    substitute_symbols,
    tanh,
)
from tapeout.models import circuit_of, split_circuit
from tapeout.passes import (
    To,
    configure_transformer,
    conform_all_modules,
    strip_names,
    substitute_all_modules,
)
from tapeout.passes.execution import Origins, Roots
from tapeout.passes.nest_sums import NestSums
from tapeout.passes.simplify import Simplify
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

A, B, C, D, E, F, G, H = (Array(tensor(2, 3, seed=seed), name) for seed, name in enumerate("abcdefgh"))
ROW = Array(tensor(3, seed=9), "row")


def total(*terms: Circuit) -> Circuit:
    return Add(*terms, name=None)


def read(node: Circuit) -> Circuit:
    """Something that reads a node and is no sum."""
    return tanh(node, name=None)


def nested(*roots: Circuit) -> Roots:
    return NestSums().run_many(roots, Origins())


def sums(*roots: Circuit) -> list[Add]:
    return [node for node in postorder(*roots) if isinstance(node, Add)]


def additions(*roots: Circuit) -> int:
    return sum(len(node.children) - 1 for node in sums(*roots))


def same_values(before: Roots, after: Roots) -> None:
    for old, new in zip(before, after, strict=True):
        value = old.evaluate(torch.float64)
        torch.testing.assert_close(
            new.evaluate(torch.float64), value, rtol=1e-12, atol=1e-12 * float(1 + value.abs().sum())
        )


# -- what becomes of sums


def test_a_sum_is_the_largest_sum_in_it_and_the_rest() -> None:
    small, middle, large = total(A, B), total(C, B, A), total(D, C, B, A)
    assert nested(small, middle, large) == (small, total(small, C), total(total(small, C), D))


def test_sums_that_are_apart_are_both_used() -> None:
    left, right = total(A, B), total(C, D)
    assert nested(left, right, total(A, C, B, D))[2] is total(left, right)


def test_sums_that_become_equal_while_they_share_do_not_hold_each_other() -> None:
    """Both are `small + read(small)`, the one from the beginning, the other when `small` is found in it."""
    small = total(A, B)
    inside, spelt_out = total(small, read(small)), total(read(small), A, B)
    assert nested(inside, spelt_out) == (inside, inside)


def test_summands_of_the_same_sums_are_one_sum() -> None:
    one, other = total(A, B, C, E), total(A, B, C, F)
    shared = total(A, B, C)
    assert nested(one, other) == (total(shared, E), total(shared, F))


def test_what_a_step_adds_is_a_sum_of_its_own() -> None:
    stream = total(A, B)
    assert nested(stream, total(C, D, ROW, A, B))[1] is total(stream, total(C, D, ROW))


def test_multisets() -> None:
    twice = total(A, A)
    assert nested(twice, total(A, B, A))[1] is total(twice, B)
    kept = total(A, B)
    assert nested(twice, kept) == (twice, kept)
    inside = total(A, B)
    assert additions(*nested(inside, total(inside, A, B, C), total(inside, A, B, D))) == 4


def test_sums_of_other_shapes_are_left_alone() -> None:
    row = total(ROW, Array(tensor(3, seed=10)))
    full = total(A, *row.children)
    assert nested(row, full) == (row, full)
    biases = (total(A, *row.children, B), total(C, *row.children, D))
    assert nested(*biases) == biases


def test_equal_sums_in_another_order_are_one() -> None:
    one, other = nested(total(A, B, C), total(C, A, B))
    assert one is other is total(A, B, C)


def test_nested_sums_that_nobody_else_reads_are_taken_apart() -> None:
    assert nested(total(total(A, B), total(C, total(D, E))))[0] is total(A, B, C, D, E)
    inner = total(A, B)
    assert nested(read(inner), total(inner, C)) == (read(inner), total(inner, C))


def test_components_in_sums_and_components_by_themselves() -> None:
    stream, heads = total(A, B), total(C, D, ROW)
    flat = nested(read(stream), total(A, B, C, D, ROW), total(A, B, C, D, ROW, E))
    kept = nested(read(stream), total(heads, stream), total(E, total(heads, stream)))
    assert flat == kept


def test_dependent_sums() -> None:
    below = total(A, B)
    later = read(below)
    roots = (total(A, B, later), total(A, B, later, read(later)))
    after = nested(*roots)
    same_values(roots, after)
    assert after[0] is total(below, later)


def test_text(golden: Callable[[str, str], None]) -> None:
    stream = [A]
    roots = [read(A)]
    for heads, bias in (((B, C, D), ROW), ((E, F, G), ROW)):
        stream = [*heads, bias, *stream]
        roots.append(read(total(*stream)))
    patched = [H if term is C else term for term in stream]
    roots.append(read(total(*patched)))
    golden("nest_sums", "\n".join(["before", circuit_text(*roots), "after", circuit_text(*nested(*roots))]))


# -- circuits


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    circuit = strip_names(substitute_all_modules(random_circuit(Random(seed))))
    after = NestSums()(circuit)
    same_values((circuit,), (after,))
    assert NestSums()(after) is after


def _random_sums(rng: Random) -> Roots:
    """Many sums of few summands, one of another, and variants of each other."""
    pool: list[Circuit] = [A, B, C, D, E, F, ROW, Array(tensor(1, 3, seed=11))]
    for _ in range(rng.randrange(4, 24)):
        choice = rng.randrange(4)
        if choice == 0:
            pool.append(read(rng.choice(pool)))
            continue
        terms = [rng.choice(pool) for _ in range(rng.randrange(2, 7))]
        known = sums(*pool)
        if choice == 1 and known:
            terms = list(rng.choice(known).children)
            terms[rng.randrange(len(terms))] = rng.choice(pool)
            terms += [rng.choice(pool)] * rng.randrange(2)
        pool.append(total(*terms))
    return tuple(rng.sample(pool[8:], min(3, len(pool) - 8)))


@given(SEEDS)
def test_random_sums(seed: int) -> None:
    roots = _random_sums(Random(seed))
    after = nested(*roots)
    same_values(roots, after)
    assert nested(*after) == after
    assert additions(*after) <= additions(*roots)


def test_thousands_of_sums() -> None:
    leaves = [symbol(i, (2,), f"x{i}") for i in range(400)]
    flat = tuple(total(*leaves[: i + 1]) for i in range(1, 400))
    assert additions(*nested(*flat)) == 399
    x: Circuit = leaves[0]
    chain = []
    for i in range(1, 20_000):
        x = total(x, leaves[i % 400])
        chain.append(read(x))
    assert nested(*chain) == tuple(chain)
    deep: Circuit = leaves[0]
    for i in range(1, 20_000):
        deep = total(deep, leaves[i % 400])
    assert nested(deep)[0].num_children == 20_000


# -- models

MODELS = {"gpt2": lambda: tiny.gpt2(11, layers=12), "llama": lambda: tiny.llama(11, layers=12)}


def configured(model: object, flatten: bool, components: bool) -> Circuit:
    """The logits of a model split by head, simplified."""
    circuits, info = circuit_of(model)
    tokens = Symbol.new_with_none_uuid((4,), "tokens", torch.int64)
    embeds = GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    split = configure_transformer(
        circuits["t.bind_w"],
        To.ATTN_HEAD_MLP_NORM,
        split_by_head_config="full",
        use_pull_up_head_split=True,
        use_flatten_res=flatten,
        flatten_components=components,
    )
    bound = info.bind_to_input(split, embeds, circuits.get("t.w.pos_embeds"))
    return Simplify()(strip_names(substitute_all_modules(conform_all_modules(bound))))


@pytest.mark.parametrize("family", MODELS)
def test_flattening_a_model_changes_nothing_in_the_end(family: str) -> None:
    model = MODELS[family]()
    plain, flat, components = (configured(model, *options) for options in ((False, False), (True, False), (True, True)))
    after = NestSums()(plain)
    assert NestSums()(flat) is after
    assert NestSums()(components) is after
    assert additions(components) > 2 * additions(after)
    assert NestSums()(after) is after


@pytest.mark.parametrize("family", MODELS)
def test_the_residual_stream_is_a_chain(family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (2, 3), generator=generator)
    circuits, info = circuit_of(MODELS[family]())
    metric = bind_dataset(logit_diff_circuit(split_circuit(circuits, info, 3)[0]), tokens, tokens[:, :2])
    before = Simplify()(strip_names(substitute_all_modules(metric)))
    after = NestSums()(before)
    same_values((before,), (after,))
    stream = [node for node in sums(after) if node.shape == (2, 3, info.params.hidden_size)]
    assert max(len(node.children) for node in stream) <= 2 + info.params.num_heads
    of_layers = [additions(NestSums()(_first_layers(family, count))) for count in (4, 8, 12)]
    assert of_layers[2] - of_layers[1] == of_layers[1] - of_layers[0]


def _first_layers(family: str, layers: int) -> Circuit:
    return configured({"gpt2": tiny.gpt2, "llama": tiny.llama}[family](11, layers=layers), True, True)


def _patched(circuit: Circuit) -> Circuit:
    """The last sum of a circuit with one head of the first layer replaced."""
    last = max(sums(circuit), key=lambda node: len(node.children))
    head = next(term for term in reversed(last.children) if isinstance(term, Einsum))
    other = Einsum.scalar_mul(head, 0.5, name=None)
    return last.with_children(tuple(other if term is head else term for term in last.children))


def test_a_head_that_is_replaced_in_one_sum_costs_little() -> None:
    flat = configured(MODELS["gpt2"](), True, True)
    patched = _patched(flat)
    (before,) = nested(flat)
    assert additions(flat, patched) == additions(flat) + 60
    after = nested(flat, patched)
    assert additions(*after) <= additions(before) + 26  # one a sublayer at most
    same_values((_bound(patched),), (_bound(after[1]),))


def _bound(circuit: Circuit) -> Circuit:
    tokens = Array(torch.tensor([3, 1, 4, 1]))
    return substitute_symbols(circuit, {circuit.get_unique("tokens").cast_symbol(): tokens})
