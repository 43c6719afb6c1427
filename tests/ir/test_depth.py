"""Depth does not matter: nothing recurses over a graph."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from harness import symbol, tensor

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    I,
    IterativeMatcher,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Regex,
    Scalar,
    Tag,
    TorchDeviceDtypeOp,
    cast_circuit,
    get_free_symbols,
    new_traversal,
    postorder,
    replace_nodes,
    substitute_symbols,
    tanh,
)

DEPTH = 20_000
LEAF = Array(tensor(2), "leaf")


def chain(leaf: Circuit, depth: int = DEPTH) -> Circuit:
    node = leaf
    for i in range(depth):
        node = Add(node, Scalar(1.0), name=f"n{i}")
    return node


@pytest.fixture(scope="module")
def deep() -> Circuit:
    assert sys.getrecursionlimit() < DEPTH
    return chain(LEAF)


def test_it_builds_and_evaluates(deep: Circuit) -> None:
    torch.testing.assert_close(evaluate(deep), LEAF.value + DEPTH)
    assert sum(1 for _ in postorder(deep)) == DEPTH + 2


def test_a_path_of_every_kind_evaluates() -> None:
    layers: list[Callable[[Circuit], Circuit]] = [
        tanh,
        lambda c: Einsum.scalar_mul(c, 2.0),
        lambda c: Rearrange.from_string(c, "a -> a 1"),
        lambda c: c.index(I[:, 0]),
        lambda c: Concat(c.index(I[1:]), c.index(I[:1]), axis=0),
        Tag.new_with_random_uuid,
    ]
    node: Circuit = LEAF
    for i in range(DEPTH):
        node = layers[i % len(layers)](node)
    assert evaluate(node).shape == (2,)


def test_it_is_searched(deep: Circuit) -> None:
    assert deep.get_unique("leaf") is LEAF
    assert len(deep.get(Regex("00$"))) == DEPTH // 100 - 1
    assert len(deep.get(lambda node: node.name == "n7")) == 1
    assert deep.get_unique(IterativeMatcher(f"n{DEPTH - 5}").chain("n3")).name == "n3"
    assert len(deep.get(new_traversal(end_depth=50))) == 51
    assert len(deep.get_paths("leaf")[LEAF]) == DEPTH + 1
    assert [len(path) for path in deep.get_all_paths("leaf")[LEAF]] == [DEPTH + 1]
    assert get_free_symbols(deep) == []


def test_it_is_updated(deep: Circuit) -> None:
    other = Array(tensor(2, seed=5), "other")
    for matcher in ("leaf", IterativeMatcher("n9").chain("leaf"), lambda node: node is LEAF):
        updated = deep.update(matcher, lambda _: other)
        assert updated is chain(other)
    bumped = deep.update(Add, lambda node: node.rename(node.name + "!"))
    assert bumped.name == f"n{DEPTH - 1}!"


def test_symbols_in_it_are_substituted_and_it_is_expanded() -> None:
    x = symbol(1, (2,), "leaf")
    open_chain = chain(x)
    assert open_chain.free_symbols == {x} and get_free_symbols(open_chain) == [x]
    batch = Array(tensor(3, 2), "batch")
    for circuit in (substitute_symbols(open_chain, {x: batch}), replace_nodes(chain(LEAF), {LEAF: batch}.get)):
        assert circuit.shape == (3, 2)
        torch.testing.assert_close(evaluate(circuit), batch.value + DEPTH)
    call = Module(ModuleSpec(open_chain, [ModuleArgSpec(x)]), "call", leaf=batch)
    assert call.conform_to_input_shapes().children[0].shape == (3, 2)
    assert call.substitute(name_prefix="p.").children[0].name == f"p.n{DEPTH - 2}"


def test_it_is_cast(deep: Circuit) -> None:
    assert evaluate(cast_circuit(deep, TorchDeviceDtypeOp(dtype="float32"))).dtype is torch.float32


def test_calls_of_calls() -> None:
    x = symbol(1, (None,), "x")
    spec = ModuleSpec(Einsum.scalar_mul(x, 1.5), [ModuleArgSpec(x)])
    depth = DEPTH // 5
    node: Circuit = LEAF
    for i in range(depth):
        node = Module(spec, f"m{i}", x=node)
    assert node.shape == (2,)
    assert evaluate(node).isinf().all()
    assert node.update("leaf", lambda _: Array(torch.zeros(2, dtype=torch.float64), "zero")).evaluate().eq(0).all()
    batch = Array(torch.zeros(3, 2, dtype=torch.float64), "batch")
    assert evaluate(replace_nodes(node, {LEAF: batch}.get)).shape == (3, 2)


def test_it_prints_in_a_size_that_can_be_read(deep: Circuit) -> None:
    text = deep.repr()
    assert len(text) < 400 * DEPTH
    assert text.count("\n") == 2 * DEPTH
    assert len(deep.repr().splitlines()[-1]) < 400


def test_it_is_freed() -> None:
    node = chain(Array(tensor(2, seed=99), "own leaf"))
    reference = weakref.ref(node.get_unique("own leaf"))
    node.repr()
    del node
    gc.collect()
    assert reference() is None
