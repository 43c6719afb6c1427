"""Add batch: the value over a batch is the rows' values, for every kind of node."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

import pytest
import torch
from harness import arrays, symbol, tensor
from hypothesis import assume, given
from tolerances import assert_close

from tapeout.ir import Add, Array, Circuit, Einsum, Scalar, Symbol, circuit_text, dim, substitute_symbols
from tapeout.passes.add_batch import AddBatch
from tapeout.passes.execution import Origins
from tapeout.passes.inline import Inline
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

BATCH = dim("BATCH")


def opened(circuit: Circuit, leaves: list[Array]) -> tuple[Circuit, dict[Array, tuple[Symbol, Symbol]]]:
    """The inlined circuit with symbols for some leaves: each for one row, and with the batch axis."""
    table = {
        leaf: (
            Symbol(leaf.shape, UUID(int=2 * i + 100), f"in{i}", leaf.torch_dtype),
            Symbol((BATCH, *leaf.shape), UUID(int=2 * i + 101), f"in{i}", leaf.torch_dtype),
        )
        for i, leaf in enumerate(leaves)
    }
    return circuit.update(lambda node: node in table, lambda node: table[node][0]), table  # type: ignore[index]


def check(circuit: Circuit, leaves: list[Array]) -> None:
    rows = 3
    one, table = opened(circuit, leaves)
    (many,) = AddBatch(tuple(table.values())).run_many((one,), Origins())
    data = {
        leaf: torch.stack(
            [leaf.value * (1 - 0.01 * i) if leaf.value.is_floating_point() else leaf.value for i in range(rows)]
        )
        for leaf in leaves
    }
    expected = [
        substitute_symbols(one, {table[leaf][0]: Array(data[leaf][i]) for leaf in leaves}).evaluate("float64")
        for i in range(rows)
    ]
    found = substitute_symbols(many, {table[leaf][1]: Array(data[leaf]) for leaf in leaves}).evaluate("float64")
    assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("name", CASES)
def test_every_case_over_each_of_its_leaves(name: str) -> None:
    circuit = Inline().run(CASES[name](torch.float64))
    for leaf in arrays(circuit):
        check(circuit, [leaf])
    check(circuit, arrays(circuit)[:2])


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    rng, circuit = Random(seed), Inline().run(random_circuit(Random(seed)))
    leaves = arrays(circuit)
    assume(leaves)
    check(circuit, rng.sample(leaves, min(len(leaves), rng.choice((1, 2, 3)))))


def test_what_does_not_depend_on_inputs_is_repeated() -> None:
    x, k = symbol(1, (3,), "x"), Array(tensor(2), "k")
    batched = Symbol((BATCH, 3), UUID(int=2), "x")
    constant, other = AddBatch(((x, batched),)).run_many((k, Add(x, Scalar(1.0))), Origins())
    assert constant.shape == (BATCH, 2) and other.shape == (BATCH, 3)


def test_without_inputs_nothing_changes() -> None:
    roots = (Array(tensor(2), "k"),)
    assert AddBatch().run_many(roots, Origins()) is roots


def test_golden(golden: Callable[[str, str], None]) -> None:
    x, w = symbol(1, (3, 4), "x"), Array(tensor(5, 4), "w")
    one = Add(Einsum.from_einsum_string("sh,oh->so", x, w), Array(tensor(5, seed=1), "b"))
    batched = Symbol((BATCH, 3, 4), UUID(int=2), "x")
    (before,) = Inline().run_many((one,), Origins())
    (after,) = AddBatch(((x, batched),)).run_many((before,), Origins())
    golden("add_batch", "\n".join([circuit_text(before), "# becomes", circuit_text(after)]))
