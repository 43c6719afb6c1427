"""The order of evaluation: by hand, and against the plain one."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from harness import integers, symbol, tensor
from hypothesis import given
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.compiler import Cost, compile, compile_many, load
from tapeout.compiler.order import evaluation_order
from tapeout.ir import Add, Circuit, Einsum, GeneralFunction, postorder
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

F32, F64 = torch.float32, torch.float64


def act(node: Circuit, name: str) -> Circuit:
    return GeneralFunction.new_by_name(node, spec_name="tanh", name=name)


def wide_sum() -> Circuit:
    """What is small and quickly had, plus the sum of something large."""
    x, y = symbol(1, (10,), "x"), symbol(2, (10,), "y")
    square = Einsum.from_einsum_string("a,b->ab", x, x, name="square")
    return Add(act(y, "small"), Einsum.from_einsum_string("ab->a", act(square, "large"), name="rows"), name="total")


def peak(roots: tuple[Circuit, ...], order: tuple[Circuit, ...] | None = None, batch: int = 64) -> int:
    return Cost.of(roots, batch, F64, order=order).peak_activation_bytes


def test_what_needs_most_beyond_its_result_comes_first() -> None:
    roots = (wide_sum(),)
    assert [node.name for node in postorder(*roots)] == ["y", "small", "x", "square", "large", "rows", "total"]
    order = evaluation_order(roots, F64)
    assert [node.name for node in order] == ["x", "square", "large", "rows", "y", "small", "total"]
    assert peak(roots) == 8 * (10 + 100 + 100) and peak(roots, order) == 8 * (100 + 100)


def test_several_results_are_ordered_too() -> None:
    total = wide_sum()
    small, rows = total.children
    order = evaluation_order((small, rows), F64)
    assert [node.name for node in order] == ["x", "square", "large", "rows", "y", "small"]


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    """Every node once, children first, at a peak that is no higher."""
    roots = tuple(random_circuit(Random(seed + i)) for i in range(2))
    for circuits in (roots, compile_many(roots, dtype="float64").roots):
        order = evaluation_order(circuits, F64)
        place = {node: i for i, node in enumerate(order)}
        assert len(order) == len(place) and set(place) == set(postorder(*circuits))
        assert all(place[child] < place[node] for node in order for child in node.children)
        assert peak(circuits, order) <= peak(circuits)


def test_a_chain_of_any_depth() -> None:
    node: Circuit = symbol(1, (2,), "x")
    for _ in range(20_000):
        node = Add(node, node, name=None)
    assert len(evaluation_order((node,), F64)) == 20_001


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx"])
def test_backends_follow_it_and_it_can_be_left_out(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ordered = compile(wide_sum(), backend, ["x", "y"], dtype=F64)
    monkeypatch.setenv("TAPEOUT_SKIP", "order")
    plain = compile(wide_sum(), backend, ["x", "y"], dtype=F64)
    assert ordered.roots == plain.roots and plain.program.order is None
    assert [each.source.index("large") > each.source.index("small") for each in (plain, ordered)] == [True, False]
    assert ordered.cost(64).peak_activation_bytes < plain.cost(64).peak_activation_bytes
    values = {"x": tensor(3, 10), "y": tensor(3, 10, seed=1)}
    assert torch.equal(ordered(**values), plain(**values))
    for name, each in {"ordered": ordered, "plain": plain}.items():
        each.save(tmp_path / name)
        loaded = load(tmp_path / name)
        assert loaded.program.order == each.program.order and loaded.cost(8) == each.cost(8)
        assert torch.equal(loaded(**values), plain(**values))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_are_not_worse(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = difference(by_head_and_position({"gpt2": gpt2, "llama": llama}[family](), 5))
    ordered = compile(circuit, inputs=["tokens", "labels"])
    monkeypatch.setenv("TAPEOUT_SKIP", "order")
    plain = compile(circuit, inputs=["tokens", "labels"])
    for rows in (1, 64, 1000):
        assert ordered.cost(rows).peak_activation_bytes <= plain.cost(rows).peak_activation_bytes
    given_ = {"tokens": integers(3, 5, below=11), "labels": integers(3, 2, below=11)}
    assert_close(ordered(**given_), plain(**given_), F32)
