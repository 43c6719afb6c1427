"""Expansion: nodes that gain batch axes, against a Python loop over the batch."""

from __future__ import annotations

from itertools import product
from math import prod
from random import Random

import pytest
import torch
from harness import arrays, integers, symbol, tensor
from hypothesis import given
from hypothesis import strategies as st

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Symbol,
    replace_nodes,
    substitute_symbols,
)
from tapeout.ir.errors import ModuleBindingError, ShapeError
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

BATCHES = ((2,), (2, 3), (1,))


def batched(array: Array, batch: tuple[int, ...]) -> Array:
    """The array with rows that differ (and stay in the domain of functions, or the range of an index)."""
    value = array.value
    if value.is_floating_point():
        rows = [value * (1 - 0.03 * k) for k in range(prod(batch))]
    else:
        rows = [value.flip(0) if value.ndim and k % 2 else value for k in range(prod(batch))]
    return Array(torch.stack(rows).reshape((*batch, *value.shape)), array.op_name)


def check_against_loop(circuit: Circuit, table: dict[Circuit, Array], batch: tuple[int, ...]) -> None:
    """Replacing all at once is the same as replacing them by each row and stacking."""
    expanded = replace_nodes(circuit, table.get)
    rows = []
    for place in product(*map(range, batch)):
        row = {old: Array(new.value[place].clone(), old.op_name) for old, new in table.items()}
        rows.append(evaluate(circuit.update(row.__contains__, row.__getitem__)))
    wanted = torch.stack(rows).reshape((*batch, *rows[0].shape))
    assert expanded.shape == tuple(wanted.shape)
    torch.testing.assert_close(evaluate(expanded), wanted, rtol=1e-9, atol=1e-9)


def check_choices(circuit: Circuit, rng: Random, batch: tuple[int, ...]) -> None:
    leaves = arrays(circuit)
    some = [leaf for leaf in leaves if rng.random() < 0.5]
    for chosen in (leaves, some, leaves[:1], leaves[-1:]):
        if chosen:
            check_against_loop(circuit, {leaf: batched(leaf, batch) for leaf in chosen}, batch)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_kind_expands_like_a_loop(name: str, batch: tuple[int, ...]) -> None:
    check_choices(CASES[name](torch.float64), Random(0), batch)


@given(SEEDS, st.sampled_from(BATCHES))
def test_random_circuits_expand_like_a_loop(seed: int, batch: tuple[int, ...]) -> None:
    check_choices(random_circuit(Random(seed)), Random(seed), batch)


@given(SEEDS)
def test_successive_expansions_are_an_outer_product_with_newer_axes_in_front(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    leaves = arrays(circuit)
    first, second = leaves[0], leaves[-1]
    if first is second:
        return
    once = replace_nodes(circuit, {first: batched(first, (2,))}.get)
    twice = evaluate(replace_nodes(once, {second: batched(second, (3,))}.get))
    for i, j in product(range(3), range(2)):
        rows = {first: batched(first, (2,)).value[j].clone(), second: batched(second, (3,)).value[i].clone()}
        alone = evaluate(circuit.update(rows.__contains__, lambda node, rows=rows: Array(rows[node], "row")))  # type: ignore[misc]
        torch.testing.assert_close(twice[i, j], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("index_shape", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("chosen", ["x", "where", "both"])
def test_gen_index_without_batch_index_expands_in_both_arguments(
    dim: int, index_shape: tuple[int, ...], chosen: str
) -> None:
    x, where = Array(tensor(2, 3, 4), "x"), Array(integers(*index_shape, below=2), "where")
    circuit = GeneralFunction.gen_index(x, where, dim, batch_index=False)
    table = {leaf: batched(leaf, (5,)) for leaf in (x, where) if chosen in (leaf.name, "both")}
    check_against_loop(circuit, table, (5,))


def heads(body: Circuit, *symbols: Symbol, **arguments: Circuit) -> Module:
    return Module(ModuleSpec(body, [ModuleArgSpec(s) for s in symbols]), "call", **arguments)


X, Y, FREE = symbol(1, (3,), "x"), symbol(2, (3,), "y"), symbol(3, (3,), "free")
HEADS, ONE, C = (
    Array(tensor(2, 3, seed=1), "heads"),
    Array(tensor(3, seed=2), "one"),
    Array(tensor(3, seed=3), "c"),
)


class TestModulesThatHaveABatch:
    """A module over two heads gains a batch of 5: the new axis comes first, whatever gains it."""

    def check(self, circuit: Circuit, table: dict[Circuit, Array]) -> None:
        check_against_loop(circuit, table, (5,))
        check_against_loop(circuit, {old: batched(old, (2,)) for old in table}, (2,))  # as many rows as heads

    def test_its_batched_argument(self) -> None:
        self.check(heads(Add(X, Y), X, Y, x=HEADS, y=ONE), {HEADS: batched(HEADS, (5,))})

    def test_its_unbatched_argument(self) -> None:
        self.check(heads(Add(X, Y), X, Y, x=HEADS, y=ONE), {ONE: batched(ONE, (5,))})

    def test_both_arguments(self) -> None:
        self.check(heads(Add(X, Y), X, Y, x=HEADS, y=ONE), {HEADS: batched(HEADS, (5,)), ONE: batched(ONE, (5,))})

    def test_a_constant_in_its_body(self) -> None:
        self.check(heads(Add(X, C), X, x=HEADS), {C: batched(C, (5,))})

    def test_a_constant_in_its_body_and_its_argument(self) -> None:
        self.check(heads(Add(X, C), X, x=HEADS), {C: batched(C, (5,)), HEADS: batched(HEADS, (5,))})

    def test_an_inner_node_that_depends_on_a_bound_symbol(self) -> None:
        inner = Einsum.scalar_mul(X, 2.0, "inner")
        module = heads(Add(inner, X, C), X, x=HEADS)
        new = Array(tensor(5, 3, seed=9), "new")
        expanded = replace_nodes(module, {inner: new}.get)
        rows = [evaluate(module.update("inner", lambda _, row=row: Array(row.clone(), "row"))) for row in new.value]  # type: ignore[misc]
        torch.testing.assert_close(evaluate(expanded), torch.stack(rows))

    def test_a_free_symbol_in_its_body(self) -> None:
        module = heads(Add(X, FREE), X, x=HEADS)
        new = Array(tensor(5, 3, seed=9), "new")
        got = evaluate(substitute_symbols(module, {FREE: new}))
        torch.testing.assert_close(got, HEADS.value + new.value[:, None])

    def test_a_free_symbol_in_its_body_and_its_argument(self) -> None:
        module = heads(Add(X, FREE), X, x=Add(HEADS, FREE))
        new = Array(tensor(5, 3, seed=9), "new")
        got = evaluate(substitute_symbols(module, {FREE: new}))
        torch.testing.assert_close(got, HEADS.value + 2 * new.value[:, None])

    def test_names_are_the_oracles(self) -> None:
        module = replace_nodes(heads(Add(X, Y), X, Y, x=HEADS, y=ONE), {ONE: batched(ONE, (5,))}.get)
        assert [module.name, module.kind] == ["call", "Rearrange"]
        assert [module.children[0].name, module.children[0].kind] == ["call shift_batch", "Module"]


def test_a_bound_symbol_means_the_same_in_a_replacement_inside_the_body() -> None:
    inner = Einsum.scalar_mul(X, 2.0, "inner")
    module = heads(Add(inner, C), X, x=ONE)
    tripled = replace_nodes(module, {inner: Einsum.scalar_mul(X, 3.0, "tripled")}.get)
    torch.testing.assert_close(evaluate(tripled), 3 * ONE.value + C.value)
    table = {inner: Einsum.scalar_mul(X, 3.0, "tripled"), C: batched(C, (5,)), ONE: batched(ONE, (5,))}
    torch.testing.assert_close(
        evaluate(replace_nodes(module, table.get)),
        3 * table[ONE].value + table[C].value,  # type: ignore[attr-defined]
    )


def test_a_bound_symbol_cannot_be_replaced() -> None:
    with pytest.raises(ModuleBindingError, match=r"(?s)bound by module 'call'.*hint: replace the module's argument"):
        replace_nodes(heads(Add(X, C), X, x=ONE), {X: C}.get)


def test_a_symbol_that_an_inner_module_binds_again_is_another_one() -> None:
    inner = heads(Einsum.scalar_mul(X, 2.0), X, x=Add(X, C))
    outer = heads(Add(inner, X), X, x=HEADS)
    torch.testing.assert_close(evaluate(outer), 2 * (HEADS.value + C.value) + HEADS.value)
    check_against_loop(outer, {HEADS: batched(HEADS, (5,)), C: batched(C, (5,))}, (5,))


def test_an_unused_argument_gives_its_batch_axes() -> None:
    spec = ModuleSpec(Add(X, C), [ModuleArgSpec(X), ModuleArgSpec(Y)], check_all_inputs_used=False)
    module = Module(spec, "call", x=ONE, y=HEADS)
    assert module.shape == (2, 3)
    for table in ({ONE: batched(ONE, (5,))}, {HEADS: batched(HEADS, (5,))}, {C: batched(C, (5,))}):
        check_against_loop(module, table, (5,))
    conformed = module.conform_to_input_shapes()
    assert conformed.shape == (2, 3)
    assert conformed.children[0].name == "x + c rep_batch"
    torch.testing.assert_close(evaluate(conformed), evaluate(module))


def test_a_symbol_that_is_not_batchable_is_widened_with_the_body() -> None:
    spec = ModuleSpec(Add(X, C), [ModuleArgSpec(X, batchable=False)])
    check_against_loop(Module(spec, "call", x=ONE), {ONE: batched(ONE, (5,))}, (5,))


def test_batch_axes_of_different_sizes_do_not_mix_and_size_1_is_no_exception() -> None:
    total = Add(ONE, C)
    for sizes in ((2, 3), (1, 3)):
        table = {ONE: batched(ONE, sizes[:1]), C: batched(C, sizes[1:])}
        with pytest.raises(ShapeError, match=r"(?s)batch axes of .* do not agree: \[\d\] and \[3\].*outer product"):
            replace_nodes(total, table.get)


def test_a_child_of_smaller_rank_is_no_expansion() -> None:
    joined = Concat(ONE, C, axis=0)
    with pytest.raises(ShapeError, match=r"(?s)smaller rank.*hint: an expansion adds leading axes"):
        joined.expand((Array(torch.tensor(1.0, dtype=torch.float64)), C))


def test_a_random_variable_is_not_expanded_over_its_values() -> None:
    variable = DiscreteVar(HEADS, name="variable")
    with pytest.raises(ShapeError, match=r"(?s)'variable' cannot be expanded.*hint: replace the variable itself"):
        replace_nodes(variable, {HEADS: batched(HEADS, (5,))}.get)


def test_nothing_replaced_gives_the_very_same_circuit() -> None:
    circuit = Add(ONE, C)
    assert replace_nodes(circuit, lambda _: None) is circuit
    assert replace_nodes(circuit, {ONE: ONE}.get) is circuit
    assert substitute_symbols(circuit, {X: ONE}) is circuit


def test_below_a_replaced_node_nothing_is_replaced() -> None:
    inner = Add(ONE, C, name="inner")
    circuit = Add(inner, inner, name="outer")
    new = Array(tensor(5, 3, seed=9), "new")
    got = replace_nodes(circuit, {inner: new, ONE: batched(ONE, (7,))}.get)
    assert got.shape == (5, 3)
