"""What a call costs, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from harness import symbol, tensor
from random_models import gpt2, llama
from splits import by_head_and_position, difference, unsplit

from tapeout.backends.common.precision import narrow_arrays
from tapeout.compiler import Cost, compile
from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, I, Index, Rearrange

WIDTH = 4  # bytes of a float32


def weight(*shape: int, seed: int = 1) -> Array:
    return Array(tensor(*shape, seed=seed, dtype=torch.float32), f"w{seed}")


def cost(*roots: Circuit, batch: int = 1) -> Cost:
    return Cost.of(roots, batch, torch.float32)


def flops(text: str, *shapes: Sequence[int]) -> int:
    nodes = [weight(*shape, seed=i) for i, shape in enumerate(shapes)]
    return cost(Einsum.from_einsum_string(text, *nodes)).flops


def test_products() -> None:
    assert flops("ab,bc->ac", (2, 3), (3, 5)) == 2 * 2 * 3 * 5
    assert flops("ab,ab->ab", (2, 3), (2, 3)) == 2 * 3
    assert flops("ab,b->", (2, 3), (3,)) == 2 * 2 * 3
    assert flops("ab->b", (2, 3)) == 2 * 3
    assert flops("ab,->ab", (2, 3), ()) == 2 * 3


def test_many_operands_are_multiplied_in_pairs() -> None:
    assert flops("ab,bc,cd,d->a", (4, 5), (5, 6), (6, 7), (7,)) == 2 * (6 * 7 + 5 * 6 + 4 * 5)


def test_a_chain_counts_each_node_once_and_weights_once() -> None:
    x = symbol(1, (8, 16), "x")
    w = weight(16, 16)
    first = Einsum.from_einsum_string("sh,ih->si", x, w)
    act = GeneralFunction.new_by_name(first, spec_name="relu")
    second = Einsum.from_einsum_string("sh,ih->si", act, w)
    found = compile(Add(second, second), inputs=["x"]).cost(10)
    product = 2 * 10 * 8 * 16 * 16
    assert found.flops == product + 10 * 8 * 16 + product + 10 * 8 * 16
    assert found.weight_bytes == 16 * 16 * WIDTH
    assert found.packed_bytes == 0
    assert found.nodes == 4


def test_views_cost_nothing_but_keep_what_they_look_at() -> None:
    x = weight(6, 8)
    act = GeneralFunction.new_by_name(x, spec_name="tanh")
    view = Rearrange.from_string(Index(act, I[0:3]), "a b -> b a")
    other = GeneralFunction.new_by_name(weight(5, seed=2), spec_name="tanh")
    last = GeneralFunction.new_by_name(view, spec_name="tanh")
    found = cost(Add(Einsum.from_einsum_string("ba,c->", last, other)))
    assert found.nodes == 5
    assert found.peak_activation_bytes == (6 * 8 + 3 * 8) * WIDTH  # the whole of act, until the view was read


def test_repeats_and_picked_rows_take_memory() -> None:
    x = symbol(1, (3, 4), "x")
    repeated = Rearrange.from_string(x, "a b -> (a 5) b")
    picked = Index(x, (torch.tensor([0, 2, 2, 1]),))
    assert cost(repeated).peak_activation_bytes == (3 * 4 + 15 * 4) * WIDTH
    assert cost(picked).peak_activation_bytes == (3 * 4 + 4 * 4) * WIDTH


def test_values_are_freed_after_their_last_reader() -> None:
    node: Circuit = weight(10)
    for _ in range(20):
        node = GeneralFunction.new_by_name(node, spec_name="tanh")
    assert cost(node).peak_activation_bytes == 2 * 10 * WIDTH


def test_slices_of_one_tensor_are_one_weight() -> None:
    whole = tensor(3, 10, dtype=torch.float32)
    assert cost(*(Array(whole[i], f"part{i}") for i in range(3))).weight_bytes == 30 * WIDTH


def test_in_bfloat16_what_products_read_takes_half_the_bytes() -> None:
    circuit = difference(unsplit(gpt2(), 6))
    full, half = (compile(circuit, inputs=["tokens", "labels"], dtype=d).cost(4) for d in ("float32", "bfloat16"))
    assert half.flops == full.flops
    read = sum(array.cast_array().value.numel() for array in narrow_arrays(compiled_roots(circuit))[0])
    assert half.weight_bytes == full.weight_bytes - 2 * read
    assert half.peak_activation_bytes < full.peak_activation_bytes


def compiled_roots(circuit: Circuit) -> tuple[Circuit, ...]:
    return compile(circuit, inputs=["tokens", "labels"]).roots


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_flops_and_activations_grow_with_rows_and_weights_do_not(family: str) -> None:
    circuit = difference(by_head_and_position({"gpt2": gpt2, "llama": llama}[family](), 6))
    compiled = compile(circuit, inputs=["tokens", "labels"])
    one, ten = compiled.cost(1), compiled.cost(10)
    assert ten.flops == 10 * one.flops
    assert ten.peak_activation_bytes == 10 * one.peak_activation_bytes
    assert (ten.weight_bytes, ten.nodes) == (one.weight_bytes, one.nodes)
    assert ten.peak_bytes == ten.weight_bytes + ten.peak_activation_bytes


def test_gpt2_small_at_100_prompts_of_16_tokens() -> None:
    """254 GFLOP with the last block pruned and no vocabulary-sized product."""
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": 3072, "vocab_size": 50, "n_positions": 16}
    circuit = difference(unsplit(gpt2(**sizes), 16))
    found = compile(circuit, inputs=["tokens", "labels"]).cost(100)
    assert abs(found.flops / 1e9 - 254) < 2
