"""Indices and gathers on their way to the leaves: texts before and after, and equal values."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from random import Random
from uuid import UUID

import harness
import pytest
import random_models
import torch
from harness import symbol
from hypothesis import given
from hypothesis import strategies as st

from tapeout.backends.reference.evaluate import evaluate_many
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
    circuit_text,
    dim,
    minimum,
    postorder,
    relu,
    replace_nodes,
    rotate_half,
    softmax,
)
from tapeout.ir import max as max_
from tapeout.models import circuit_of, split_circuit
from tapeout.passes.execution import Origins, Roots
from tapeout.passes.inline import Inline
from tapeout.passes.nest_sums import NestSums
from tapeout.passes.push_gather import PushGather
from tapeout.passes.push_index import PushIndex
from tapeout.passes.simplify import Simplify
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.testing import random_circuit

SEEDS = st.integers(min_value=0, max_value=10**6)
BATCH = dim("BATCH")


def leaf(name: str, *shape: object) -> Symbol:
    return symbol(sum(map(ord, name)), shape, name)


def whole(name: str, *shape: int) -> Symbol:
    return leaf(name, *shape).cast_symbol().conform(shape, torch.int64)


def nameless(*roots: Circuit) -> Roots:
    return Inline().run_many(roots, Origins())


def push_index(*roots: Circuit) -> Roots:
    return PushIndex().run_many(roots, Origins())


def push_gather(*roots: Circuit) -> Roots:
    return PushGather().run_many(roots, Origins())


def einsum(text: str, *nodes: Circuit) -> Einsum:
    return Einsum.from_einsum_string(text, *nodes)


def gather(x: Circuit, index: Circuit, axis: int, batch_x: bool = False, batch_index: bool = True) -> GeneralFunction:
    return GeneralFunction.gen_index(x, index, axis, batch_x, batch_index)


def flops(roots: Roots) -> int:
    """The products of all einsums and the elements of everything else."""
    total = 0
    for node in postorder(*roots):
        sizes = dict[int, int]()
        if isinstance(node, Einsum):
            for child, axes in node.args:
                sizes.update(zip(axes, map(int, child.shape), strict=True))  # type: ignore[arg-type]
            total += prod(sizes.values())
        elif node.children and not isinstance(node, Index | Rearrange | Tag | SetSymbolicShape):
            total += prod(map(int, node.shape))  # type: ignore[arg-type]
    return total


def operations(roots: Roots) -> int:
    """How many nodes there are that are no views and no leaves."""
    return sum(bool(node.children) and not isinstance(node, Index | Rearrange) for node in postorder(*roots))


# -- each kind, before and after

X, Y = leaf("x", 4, 3, 5), leaf("y", 3, 5)
TENSOR = torch.tensor([4, 0])

INDEX_CASES: dict[str, Callable[[], Circuit]] = {
    "Einsum: an integer takes the axis out, a slice shortens it": lambda: Index(
        einsum("abc,cd->adb", X, leaf("w", 5, 6)), I[-1, 2:4]
    ),
    "Einsum: summed axes stay, a diagonal takes no index": lambda: Index(
        einsum("ab,ac->aab", Y, leaf("z", 3, 2)), I[0, :, 1]
    ),
    "Einsum: the diagonal of an operand": lambda: Index(einsum("aa->a", leaf("z", 4, 4)), I[1]),
    "Add: not into axes that a child lacks or broadcasts": lambda: Index(
        Add(X, Y, leaf("z", 3, 1), leaf("v", 5), Scalar(2.0)), I[1, 1:, 2]
    ),
    "elementwise": lambda: Index(relu(X), I[:, 0, TENSOR]),
    "a function on the last axis": lambda: Index(softmax(X), I[3, :, 1]),
    "a function of the last axis' halves": lambda: Index(rotate_half(leaf("z", 3, 4)), I[1, 0:2]),
    "a reduction": lambda: Index(max_(X), I[2, 1:]),
    "a broadcasting function": lambda: Index(minimum(X, leaf("z", 3, 1)), I[0, 1]),
    "gen_index, nothing batched": lambda: Index(gather(X, whole("i", 2, 6), 1, False, False), I[0, 1, 2:4, 3]),
    "gen_index, x batched": lambda: Index(gather(X, whole("i", 2), -2, True, False), I[0, 1, 1:]),
    "gen_index, index batched": lambda: Index(gather(X, whole("i", 2, 6), 1), I[1, 0:3, 2, 1:]),
    "gen_index, both batched": lambda: Index(gather(X, whole("i", 4), 1, True), I[2, 1:]),
    "Rearrange: permuted, repeated and new axes": lambda: Index(
        Rearrange.from_string(Y, "a b -> b 7 1 a"), I[1:3, 2:4, 0, 0]
    ),
    "Rearrange: not into merged axes": lambda: Index(Rearrange.from_string(X, "a b c -> c (a b)"), I[1, 0]),
    "Index: composes": lambda: Index(Index(relu(X), I[1:, TENSOR[1:], 1:4]), I[2, 0, -1]),
    "Concat: other axes": lambda: Index(Concat(Y, leaf("z", 3, 2), axis=1), I[0]),
    "Concat: in one part": lambda: Index(Concat(Y, leaf("z", 2, 5), axis=0), I[-1]),
    "Concat: in several parts": lambda: Index(Concat(Y, leaf("z", 2, 5), leaf("v", 3, 5), axis=0), I[1:4, 2]),
    "Scatter: along filled axes": lambda: Index(Scatter(Y, I[1:4, :], (6, 5)), I[2, 1]),
    "Scalar": lambda: Index(einsum("ab,ab->ab", Y, Scalar(2.0, (3, 5))), I[1]),
    "Tag and SetSymbolicShape": lambda: Index(
        relu(SetSymbolicShape(Tag(leaf("z", BATCH, 3), UUID(int=7)), (BATCH, 3))), I[:, 1]
    ),
    "a symbolic axis stays": lambda: Index(einsum("bsc,cd->bsd", leaf("z", BATCH, 3, 5), leaf("w", 5, 2)), I[:, -1]),
    "what all readers agree upon": lambda: _two_readers(I[1], I[1, 2:]),
    "readers that want different parts": lambda: _two_readers(I[0], I[1]),
}


def _two_readers(one: object, other: object) -> Circuit:
    shared = relu(Y)
    return Add(einsum("a->", Index(shared, one)), einsum("a->", Index(shared, other)))  # type: ignore[arg-type]


ROW, WEIGHT, LABELS = leaf("row", BATCH, 4), leaf("weight", 50, 4), whole("labels", BATCH)  # type: ignore[arg-type]
LOGITS = einsum("bh,vh->bv", ROW, WEIGHT)

GATHER_CASES: dict[str, Callable[[], Circuit]] = {
    "rows of a weight": lambda: gather(LOGITS, LABELS, 0, True),
    "rows of a weight, without a batch": lambda: gather(
        einsum("h,hv->v", leaf("x", 4), leaf("w", 4, 50)), whole("i"), 0
    ),
    "an axis in the middle": lambda: gather(
        einsum("ah,vh,ch->avc", Y, leaf("w", 50, 5), leaf("z", 2, 5)), whole("i", 6), 1
    ),
    "in place of the axis": lambda: gather(
        einsum("ah,vh,ch->avc", Y, leaf("w", 50, 5), leaf("z", 2, 5)), whole("i", 6), 1, False, False
    ),
    "through a bias": lambda: gather(Add(LOGITS, leaf("bias", 50)), LABELS, 0, True),
    "through a bias for each row": lambda: gather(
        Add(einsum("bch,vh->bcv", leaf("z", BATCH, 2, 4), WEIGHT), leaf("c", 2, 1), leaf("bias", BATCH, 1, 50)),
        LABELS,
        1,
        True,
    ),
    "through products and functions": lambda: gather(relu(Einsum.scalar_mul(LOGITS, 2.0)), LABELS, 0, True),
    "a difference is one product": lambda: Add.minus(
        gather(LOGITS, Index(whole("two", BATCH, 2), I[:, 0]), 0, True),  # type: ignore[arg-type]
        gather(LOGITS, Index(whole("two", BATCH, 2), I[:, 1]), 0, True),  # type: ignore[arg-type]
    ),
    "not if the product is read otherwise": lambda: Add(gather(LOGITS, LABELS, 0, True), max_(LOGITS)),
    "not if as many are looked up as there are": lambda: gather(
        einsum("h,vh->v", leaf("x", 4), WEIGHT), whole("i", 50), 0
    ),
}


@pytest.mark.parametrize(
    "push, cases, name", [(push_index, INDEX_CASES, "push_index"), (push_gather, GATHER_CASES, "push_gather")]
)
def test_every_rule(
    push: Callable[..., Roots],
    cases: dict[str, Callable[[], Circuit]],
    name: str,
    golden: Callable[[str, str], None],
) -> None:
    texts = []
    for title, build in cases.items():
        before = nameless(build())
        after = push(*before)
        assert after[0].shape == before[0].shape
        assert push(*after) == after
        texts.append(f"# {title}\n{circuit_text(*before)}\n-->\n{circuit_text(*after)}\n")
        for old, new in [evaluate_many(_with_numbers(before[0], after[0]), torch.float64)]:
            torch.testing.assert_close(new, old)
    golden(name, "\n".join(texts))


def _with_numbers(*roots: Circuit) -> list[Circuit]:
    """The circuits with an array for each symbol, and 3 for the symbolic size."""

    def value(node: Circuit) -> Circuit | None:
        if not isinstance(node, Symbol):
            return None
        shape = [size if isinstance(size, int) else 3 for size in node.shape]
        if node.torch_dtype is torch.int64:
            return Array(harness.integers(*shape, below=3 if node.name == "i" else 40))
        return Array(harness.tensor(*shape, seed=len(node.name)))

    return [replace_nodes(root, value) for root in roots]


# -- random circuits


def _random_roots(seed: int) -> Roots:
    """Parts of nodes of one random circuit."""
    rng = Random(seed)
    nodes = [node for node in postorder(random_circuit(rng, 14, modules=False))]
    roots = []
    for _ in range(rng.choice((1, 2, 3))):
        node = rng.choice(nodes[-5:])
        sizes = [size if isinstance(size, int) else 0 for size in node.shape]
        roots.append(Index(node, [_random_entry(rng, size) for size in sizes]))
    return nameless(*roots)


def _random_entry(rng: Random, size: int) -> object:
    if size == 0:
        return slice(None)
    start = rng.randrange(size)
    tensor = torch.tensor([rng.randrange(-size, size) for _ in range(rng.randrange(1, size + 1))])
    return rng.choice([start, start - size, slice(start, None), slice(0, start + 1), slice(None), tensor])


@given(SEEDS)
def test_random_circuits_keep_their_values(seed: int) -> None:
    roots = _random_roots(seed)
    for push in (push_index, push_gather):
        after = push(*roots)
        assert [root.shape for root in after] == [root.shape for root in roots]
        for old, new in zip(evaluate_many(roots, "float64"), evaluate_many(after, "float64"), strict=True):
            torch.testing.assert_close(new, old, equal_nan=True)
        assert push(*after) == after


@given(SEEDS)
def test_nothing_is_computed_twice(seed: int) -> None:
    roots = _random_roots(seed)
    after = push_index(*roots)
    assert operations(after) <= operations(roots)
    concrete = all(isinstance(size, int) for node in postorder(*roots, *after) for size in node.shape)
    assert not concrete or flops(after) <= flops(roots)


@given(SEEDS)
def test_random_gathers_keep_their_values(seed: int) -> None:
    rng = Random(seed)
    node = random_circuit(rng, 8, modules=False)
    axes = [axis for axis, size in enumerate(node.shape) if isinstance(size, int) and size]
    if not axes:
        return
    axis, roots = rng.choice(axes), []
    product = einsum("abcdefg"[: node.rank] + ",->" + "abcdefg"[: node.rank], node, Scalar(0.5))
    for i in range(2):
        batched = bool(rng.randrange(2))
        shape = node.shape[: rng.randrange(axis + 1)] if batched else (2,) * rng.randrange(2)
        index = Array(harness.integers(*map(int, shape), below=int(node.shape[axis]), seed=i))  # type: ignore[arg-type]
        roots.append(gather(product, index, axis - node.rank, batched, bool(rng.randrange(2)) or batched))
    before = nameless(*roots)
    after = push_gather(*before)
    for old, new in zip(evaluate_many(before, "float64"), evaluate_many(after, "float64"), strict=True):
        torch.testing.assert_close(new, old, equal_nan=True)


# -- sharing


def test_a_slice_beside_the_whole_is_read_from_the_whole() -> None:
    product = einsum("ab,bc->ac", leaf("x", 6, 4), leaf("w", 4, 3))
    roots = nameless(Index(relu(product), I[-1]), relu(product))
    last, all_ = push_index(*roots)
    assert last is Index(all_, I[5], name=None)


def test_equal_demands_share_a_node() -> None:
    x = relu(leaf("x", 6, 4))
    part = einsum("b->", Index(x, I[-1]))
    other = einsum("b->b", Index(x, I[5]))
    shared = [node for node in postorder(*push_index(*nameless(part, other))) if isinstance(node, GeneralFunction)]
    assert [node.shape for node in shared] == [(4,)]


def test_deep_chains_do_not_recurse_and_take_linear_time() -> None:
    node: Circuit = leaf("x", 3, 4)
    for _ in range(6000):
        node = relu(node, name=None)
    (root,) = nameless(Index(node, I[0]))
    start = time.process_time()
    (after,) = push_index(root)
    push_gather(after)
    assert time.process_time() - start < 1  # it takes 0.1 s
    assert after.shape == (4,)
    assert not isinstance(after, Index)


# -- the logit difference of small models

VOCABULARY, LENGTH = 53, 7
MODELS = {"gpt2": random_models.gpt2, "llama": random_models.llama}


@pytest.fixture(scope="module", params=MODELS)
def metric(request: pytest.FixtureRequest) -> Circuit:
    circuits, info = circuit_of(MODELS[request.param](0, vocab_size=VOCABULARY))
    return logit_diff_circuit(split_circuit(circuits, info, LENGTH)[0])


def _bound(metric: Circuit) -> Circuit:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (3, LENGTH), generator=generator)
    return bind_dataset(metric, tokens, torch.randint(VOCABULARY, (3, 2), generator=generator))


@pytest.mark.parametrize("simplified", [False, True])
def test_the_logit_difference_keeps_its_value(metric: Circuit, simplified: bool) -> None:
    roots = nameless(_bound(metric))
    if simplified:
        roots = NestSums().run_many(Simplify().run_many(roots, Origins()), Origins())
    pushed = push_index(*roots)
    gathered = push_gather(*pushed)
    values = [evaluate_many(each, "float64")[0] for each in (roots, pushed, gathered)]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(values[2], values[0], rtol=0, atol=1e-12)
    assert flops(gathered) < flops(pushed) < flops(roots)
    assert operations(pushed) <= operations(roots)


def test_no_node_has_the_size_of_the_vocabulary(metric: Circuit) -> None:
    for each in (metric, _bound(metric)):
        after = push_gather(*push_index(*nameless(each)))
        assert {type(node) for node in postorder(*after) if VOCABULARY in node.shape} == {Array}


def test_the_last_block_computes_one_position(metric: Circuit) -> None:
    (after,) = push_gather(*push_index(*nameless(metric)))
    functions = {
        name: [node.shape for node in postorder(after) if isinstance(node, GeneralFunction) and node.spec.name == name]
        for name in ("softmax", "gelu_new", "silu")
    }
    patterns, gates = functions["softmax"], functions["gelu_new"] + functions["silu"]
    assert {(LENGTH, LENGTH), (LENGTH,)} == {shape[-2:] for shape in patterns}  # the first block's, the last block's
    assert sorted(len(shape) for shape in gates) == [1, 2]


def test_the_difference_is_one_product_with_a_difference_of_rows(metric: Circuit) -> None:
    (after,) = push_gather(*push_index(*nameless(metric)))
    assert isinstance(after, Einsum)
    assert {type(child) for child in after.children} >= {Add}
