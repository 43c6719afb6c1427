"""Passes for any circuit: conform, substitute, rename, split to concat, strip names."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from harness import symbol, tensor
from hypothesis import given

import tapeout as rc
from tapeout import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    PassError,
    PrintOptions,
    Scalar,
    ShapeError,
    Symbol,
    circuit_text,
    dim,
    module_new_bind,
    postorder,
)
from tapeout.passes import (
    ConformAllModules,
    Rename,
    SplitToConcat,
    StripNames,
    SubstituteModules,
    conform_all_modules,
    rename_by_table,
    split_to_concat,
    strip_names,
    substitute_all_modules,
    substitute_modules,
)
from tapeout.passes.strip_names import strip_names_with_origins
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

Golden = Callable[[str, str], None]


def norm_of_heads() -> Module:
    """A call within a call: three heads [3, 2, 4] of a product with a weight, then scaled by another."""
    x, w = symbol(1, (dim("SEQ"), dim("IN")), "x"), symbol(2, (dim("OUT"), dim("IN")), "w")
    head = Einsum.from_einsum_string("si,oi->so", x, w, name="head")
    y, scale = symbol(3, (dim("OUT"),), "y"), symbol(4, (dim("OUT"),), "scale")
    norm = Einsum.from_einsum_string("o,o->o", y, scale, name="norm")
    inner = module_new_bind(norm, ("y", head), name="norm.call")
    values = {"x": tensor(2, 5), "w": tensor(3, 4, 5, seed=1), "scale": tensor(4, seed=2)}
    return module_new_bind(
        inner, *((name, Array(value, f"{name}.array")) for name, value in values.items()), name="heads"
    )


def before_and_after(before: Circuit, after: Circuit) -> str:
    options = PrintOptions(bijection=False)
    return f"{circuit_text(before, options=options)}\n\n-->\n\n{circuit_text(after, options=options)}"


def assert_same_value(found: Circuit, expected: Circuit) -> None:
    torch.testing.assert_close(found.evaluate(), expected.evaluate(), atol=1e-9, rtol=1e-9)


# -- golden texts


@pytest.mark.parametrize(
    ("name", "rewrite"),
    [
        ("conform_all_modules", conform_all_modules),
        ("substitute_modules", substitute_all_modules),
        ("substitute_one_module", lambda c: substitute_modules(c, "norm.call")),
        (
            "rename",
            lambda c: rename_by_table(c, {"head": "product", "y": "z", "w.array": "weights", "no": "thing"}),
        ),
        ("split_to_concat", SplitToConcat("heads", 1)),
        ("strip_names", strip_names),
    ],
)
def test_golden(name: str, rewrite: Callable[[Circuit], Circuit], golden: Golden) -> None:
    circuit = norm_of_heads()
    after = rewrite(circuit)
    golden(name, before_and_after(circuit, after))
    assert_same_value(after, circuit)


# -- random circuits


@given(SEEDS)
def test_conform_keeps_the_value_and_fixes_every_shape(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    after = conform_all_modules(circuit)
    assert_same_value(after, circuit)
    for module in after.get(Module):
        for spec, node in zip(module.cast_module().arg_specs, module.cast_module().nodes, strict=True):
            assert spec.symbol.shape == node.shape
    assert conform_all_modules(after) is after


@given(SEEDS)
def test_substitution_keeps_the_value_and_leaves_no_module(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    after = substitute_all_modules(circuit)
    assert_same_value(after, circuit)
    assert not after.are_any_found(Module)
    assert not after.are_any_found(Symbol)
    assert substitute_all_modules(after) is after


@given(SEEDS)
def test_conforming_first_makes_no_difference_to_the_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    assert_same_value(substitute_all_modules(conform_all_modules(circuit)), circuit)


@given(SEEDS)
def test_renaming_keeps_the_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    table = {name: f"new.{name}" for name in ("a", "b.c", "m0", "it's", "s00", "s10")}
    after = rename_by_table(circuit, table)
    assert_same_value(after, circuit)
    old, new = ([node.op_name for node in postorder(c)] for c in (circuit, after))
    assert new.count(None) == old.count(None)
    for was, now in table.items():
        assert was not in new
        assert (now in new) is (was in old)


@given(SEEDS)
def test_splitting_keeps_the_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))

    def splittable(node: Circuit) -> bool:
        return not isinstance(node, Symbol) and node.rank > 0 and isinstance(node.shape[-1], int) and node.shape[-1] > 0

    after = SplitToConcat(splittable, -1)(circuit)
    assert_same_value(after, circuit)
    assert circuit.are_any_found(splittable) is (after is not circuit)


@given(SEEDS)
def test_stripping_names_keeps_the_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    (after,), origins = strip_names_with_origins([circuit])
    assert after is strip_names(circuit)
    assert_same_value(after, circuit)
    names = {node.op_name for node in postorder(circuit)}
    for node in postorder(after):
        assert isinstance(node, Symbol) or node.op_name is None
        assert origins.get(node) in names | {None}
    assert strip_names(after) is after


# -- substitution


def test_only_modules_that_match_are_substituted() -> None:
    circuit = norm_of_heads()
    inner = substitute_modules(circuit, "norm.call")
    assert [module.name for module in inner.get(Module)] == ["heads"]
    assert substitute_modules(inner, rc.Matcher("heads")) is substitute_all_modules(circuit)
    assert substitute_modules(circuit, "nothing") is circuit


def test_a_call_that_takes_the_name_of_a_substituted_one_is_substituted_too() -> None:
    """What `heads` leaves is the call below it, under the name of `heads`."""
    once = norm_of_heads().substitute()
    assert isinstance(once, Module)
    assert once.name == "heads"
    assert not substitute_modules(norm_of_heads(), "heads").are_any_found(Module)


def test_modules_that_appear_by_substitution_are_substituted_too() -> None:
    """Arguments of a call that are calls, whose bodies are calls."""
    circuit: Circuit = Array(tensor(2), "leaf")
    for level in range(5):
        x = symbol(level, (2,), f"x{level}")
        body = module_new_bind(Add(x, x, name="twice"), (x, Add(x, name="one")), name=f"inner{level}")
        circuit = Module.new_flat(ModuleSpec(body, [ModuleArgSpec(x)]), circuit, name=f"outer{level}")
    after = substitute_all_modules(circuit)
    assert not after.are_any_found(Module)
    torch.testing.assert_close(after.evaluate(), tensor(2) * 2**5)


# -- names


def test_a_table_is_applied_at_once() -> None:
    """Names may be exchanged: no rename sees the result of another."""
    a, b = Array(tensor(2), "a"), Array(tensor(2, seed=1), "b")
    circuit = Add(a, Einsum.scalar_mul(b, 2.0, "c"), name="d")
    swapped = rename_by_table(circuit, {"a": "b", "b": "a", "d": "c", "c": "d"})
    assert [node.name for node in postorder(swapped) if not isinstance(node, Scalar)] == ["b", "a", "d", "c"]
    assert rename_by_table(swapped, {"a": "b", "b": "a", "d": "c", "c": "d"}) is circuit
    assert rename_by_table(circuit, {}) is circuit
    assert rename_by_table(circuit, {"e": "f"}) is circuit


def test_a_bound_symbol_is_renamed_where_it_is_bound() -> None:
    renamed = rename_by_table(norm_of_heads(), {"w": "weight"})
    (module,) = (node.cast_module() for node in renamed.get("heads"))
    assert [spec.symbol.name for spec in module.arg_specs] == ["x", "weight", "scale"]
    assert_same_value(renamed, norm_of_heads())


def test_what_differs_in_names_alone_becomes_one_node() -> None:
    a = Array(tensor(2), "a")
    circuit = Add(rc.relu(a, "one"), rc.relu(a.rename("b"), "two"), name=None)
    (stripped,), origins = strip_names_with_origins([circuit])
    assert stripped.children[0] is stripped.children[1]
    assert origins[stripped.children[0]] == "one"
    assert stripped not in origins


# -- split to concat


def rows() -> Array:
    return Array(tensor(6, 2), "x")


def parts(circuit: Circuit) -> list[tuple[str, tuple[object, ...]]]:
    assert isinstance(circuit, Concat)
    return [(child.name, child.shape) for child in circuit.children]


def test_by_default_a_part_a_position() -> None:
    split = split_to_concat(rows(), 0)
    assert split.name == "x_by_pos"
    assert parts(split) == [(f"x_at_idx_{i}", (1, 2)) for i in range(6)]
    assert all(isinstance(child, Index) for child in split.children)
    assert_same_value(split, rows())
    assert split_to_concat(rows(), -2) is split


@pytest.mark.parametrize(
    ("given_parts", "names", "shapes"),
    [
        ([slice(0, 2), slice(2, 6)], ["0_to_2", "2_to_6"], [2, 4]),
        ([slice(None, -1), -1], ["0_to_5", "5"], [5, 1]),
        ([slice(0, 1), 1, slice(2, None)], ["0", "1", "2_to_6"], [1, 1, 4]),
        ([torch.tensor([0, 1]), torch.tensor([-4, 3, 4, 5])], ["0_1", "-4_3_4_5"], [2, 4]),
    ],
)
def test_parts_of_all_sorts(given_parts: list[Any], names: list[str], shapes: list[int]) -> None:
    split = split_to_concat(rows(), 0, given_parts)
    assert parts(split) == [(f"x_at_idx_{name}", (size, 2)) for name, size in zip(names, shapes, strict=True)]
    assert_same_value(split, rows())


def test_names_of_parts() -> None:
    split = split_to_concat(rows(), 0, I[0:2, 2:6], ["front", "back"], "{name}.{part}", "{name}.halves")
    assert split.name == "x.halves"
    assert [name for name, _ in parts(split)] == ["x.front", "x.back"]
    flat = split_to_concat(rows().rename("x.y"), 0, I[0:2, 2:6], ["front", "back"], "{flat}_{part}")
    assert [name for name, _ in parts(flat)] == ["x_y_front", "x_y_back"]


@pytest.mark.parametrize(
    ("given_parts", "words"),
    [
        ([slice(0, 2), slice(3, 6)], "cover positions [0, 1, 3, 4, 5], not 0 to 5 in order"),
        ([slice(0, 3), slice(2, 6)], "[0, 1, 2, 2, 3, 4, 5]"),
        ([slice(3, 6), slice(0, 3)], "[3, 4, 5, 0, 1, 2]"),
        ([slice(0, 5)], "[0, 1, 2, 3, 4]"),
        ([], "cover positions []"),
    ],
)
def test_parts_that_are_not_the_axis(given_parts: list[Any], words: str) -> None:
    with pytest.raises(PassError) as caught:
        split_to_concat(rows(), 0, given_parts)
    assert words in caught.value.message
    assert "every position once, in order" in caught.value.hint


@pytest.mark.parametrize("part", [6, slice(5, 7), torch.tensor([6])])
def test_parts_outside_of_the_axis(part: Any) -> None:
    with pytest.raises(ShapeError, match="out of range for an axis of size 6"):
        split_to_concat(rows(), 0, [slice(0, 5), part])


def test_a_name_for_each_part() -> None:
    with pytest.raises(PassError, match=r"2 parts of <x .*, but 1 names"):
        split_to_concat(rows(), 0, I[0:2, 2:6], ["front"])


@pytest.mark.parametrize(("axis", "rank"), [(2, 2), (-3, 2), (0, 0)])
def test_an_axis_that_is_not_there(axis: int, rank: int) -> None:
    node = rows() if rank else Array(tensor(), "x")
    with pytest.raises(PassError, match=f"along axis {axis}: it has {rank}"):
        split_to_concat(node, axis)


def test_an_axis_of_size_zero() -> None:
    with pytest.raises(PassError, match="size is 0"):
        split_to_concat(Array(tensor(0, 2), "x"), 0)


def test_a_symbolic_size() -> None:
    unknown = Symbol.new_with_random_uuid((dim("SEQ"), 2), name="x")
    with pytest.raises(PassError, match="its size is SEQ") as caught:
        split_to_concat(Add(unknown, name="y"), 0)
    assert "conform_all_modules" in caught.value.hint
    assert parts(split_to_concat(Add(unknown, name="y"), 1)) == [
        ("y_at_idx_0", (dim("SEQ"), 1)),
        ("y_at_idx_1", (dim("SEQ"), 1)),
    ]


def test_only_what_matches_is_split() -> None:
    circuit = Add(rows(), Scalar(1.0, (), "one"), name="y")
    split = SplitToConcat("y", 0)(circuit)
    assert split.name == "y_by_pos"
    assert len(split.get(Concat)) == 1
    assert SplitToConcat("z", 0)(circuit) is circuit


# -- all of them


def test_as_passes_and_as_functions() -> None:
    circuit = norm_of_heads()
    assert ConformAllModules()(circuit) is conform_all_modules(circuit)
    assert SubstituteModules()(circuit) is substitute_all_modules(circuit)
    assert SubstituteModules("heads")(circuit) is substitute_modules(circuit, "heads")
    assert Rename({"w": "v"})(circuit) is rename_by_table(circuit, {"w": "v"})
    assert StripNames()(circuit) is strip_names(circuit)


@pytest.mark.parametrize(
    "each",
    [ConformAllModules(), SubstituteModules(), Rename({"x": "y"}), SplitToConcat(Add, 0), StripNames()],
)
def test_a_deep_circuit(each: Any) -> None:
    """No pass recurses."""
    x = symbol(1, (1,), "x")
    circuit: Circuit = Array(tensor(1), "x")
    for _ in range(3_000):
        circuit = Module.new_flat(
            ModuleSpec(Add(x, name="sum"), [ModuleArgSpec(x)]), Add(circuit, name="y"), name="call"
        )
    after = each(circuit)
    assert after is not circuit
    assert_same_value(after, circuit)
