"""A wrong input is an error that says what is wrong and what to do, never a wrong number."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import torch
from harness import symbol, tensor

from tapeout.compiler import Compiled, compile
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Symbol,
    dim,
)
from tapeout.ir.errors import (
    DataError,
    MatchError,
    ModuleBindingError,
    ShapeError,
    TapeoutError,
    TypeMismatchError,
)

VOCABULARY = 7


def circuit() -> Circuit:
    """Embeddings of two tokens, scaled by a number."""
    tokens, scale = symbol(1, (2,), "tokens"), symbol(2, (), "scale")
    table = Array(tensor(VOCABULARY, 3, dtype=torch.float32), "table")
    embedded = GeneralFunction.gen_index(table, tokens, 0)
    return Einsum.from_einsum_string("sh,->sh", embedded, scale)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile(circuit(), inputs=["tokens", "scale"])


GOOD: dict[str, Any] = {"tokens": torch.tensor([[0, 6], [3, 3]]), "scale": torch.tensor([1.0, 2.0])}

WRONG: dict[str, tuple[dict[str, Any], type[TapeoutError], str]] = {
    "missing": ({"scale": None}, ModuleBindingError, "missing: scale"),
    "unknown": ({"scales": torch.ones(2)}, ModuleBindingError, "unknown: scales"),
    "no tensor": ({"scale": [1.0, 2.0]}, TypeMismatchError, "list"),
    "a rank too many": ({"scale": torch.ones(2, 1)}, ShapeError, "scale"),
    "no batch axis": ({"tokens": torch.tensor([0, 6])}, ShapeError, "BATCH"),
    "another length": ({"tokens": torch.zeros(2, 3, dtype=torch.int64)}, ShapeError, "tokens"),
    "unequal rows": ({"scale": torch.ones(3)}, ShapeError, "3 rows"),
    "no rows": ({"scale": torch.ones(0), "tokens": torch.zeros(0, 2, dtype=torch.int64)}, DataError, "no rows"),
    "tokens that are no integers": ({"tokens": torch.zeros(2, 2)}, TypeMismatchError, "int64"),
    "tokens of another width": ({"tokens": torch.zeros(2, 2, dtype=torch.int32)}, TypeMismatchError, "int32"),
    "numbers of another width": ({"scale": torch.ones(2, dtype=torch.float64)}, TypeMismatchError, "float64"),
    "another device": ({"scale": torch.ones(2, device="meta")}, TypeMismatchError, "meta"),
    "a token too large": ({"tokens": torch.tensor([[0, 7], [1, 1]])}, DataError, "7, outside 0 to 6"),
    "a negative token": ({"tokens": torch.tensor([[0, 1], [-1, 1]])}, DataError, "-1, outside 0 to 6"),
}


def test_what_is_right_works(compiled: Compiled) -> None:
    assert compiled(**GOOD).shape == (2, 2, 3)
    assert [(each.name, each.dtype, each.below) for each in compiled.inputs] == [
        ("tokens", torch.int64, VOCABULARY),
        ("scale", torch.float32, None),
    ]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(compiled: Compiled, name: str) -> None:
    change, error, words = WRONG[name]
    values = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(error, match=words) as caught:
        compiled(**values)
    assert "hint:" in str(caught.value)


def test_values_that_lie_in_memory_in_another_order(compiled: Compiled) -> None:
    tokens = torch.tensor([[0, 3], [6, 3]]).t()
    assert torch.equal(compiled(tokens=tokens, scale=GOOD["scale"]), compiled(**GOOD))
    wide = torch.arange(8.0).reshape(2, 4)[:, 1]
    assert compiled(tokens=GOOD["tokens"], scale=wide).shape == (2, 2, 3)


def test_rows_without_tokens() -> None:
    index = symbol(5, (0,), "index")
    none = compile(GeneralFunction.gen_index(Array(tensor(3, 2), "table"), index, 0), inputs=["index"])
    assert none(index=torch.zeros(4, 0, dtype=torch.int64)).shape == (4, 0, 2)


def test_names_that_match_nothing_or_too_much() -> None:
    with pytest.raises(MatchError, match="word") as caught:
        compile(circuit(), inputs=["word", "scale"])
    assert "tokens" in str(caught.value) and "scale" in str(caught.value)
    twins = Add(Array(tensor(3), "k"), Array(tensor(3, seed=1), "k"))
    with pytest.raises(MatchError, match="2 symbols"):
        compile(twins, inputs=["k"])
    named = Add(symbol(1, (3,), "x"), Array(tensor(3), "k"), name="total")
    with pytest.raises(MatchError):
        compile(named, inputs=["x", "total"])


def test_an_input_named_twice() -> None:
    x = symbol(1, (3,), "x")
    for names in (["x", "x"], ["x", x]):
        with pytest.raises(MatchError, match="twice"):
            compile(Add(x, x), inputs=names)


def test_a_free_symbol_that_is_no_input() -> None:
    with pytest.raises(ModuleBindingError, match="scale"):
        compile(circuit(), inputs=["tokens"])


def test_rows_of_symbolic_size() -> None:
    x = Symbol((dim("SEQ"),), UUID(int=4), "x")
    with pytest.raises(ShapeError, match="SEQ"):
        compile(Add(x, x), inputs=["x"])


def test_an_index_that_reaches_two_tables_keeps_to_the_smaller() -> None:
    tokens = symbol(1, (2,), "tokens")
    large, small = Array(tensor(9, 3), "large"), Array(tensor(4, 3), "small")
    both = Add(*(GeneralFunction.gen_index(table, tokens, 0) for table in (large, small)))
    for level in (0, 1):
        found = compile(both, inputs=["tokens"], dtype="float64", level=level)
        assert found.inputs[0].below == 4
        with pytest.raises(DataError):
            found(tokens=torch.tensor([[0, 4]]))


@pytest.mark.parametrize("level", [0, 1])
def test_an_index_is_checked_wherever_it_goes_through(level: int) -> None:
    """Tokens that are picked, joined or rearranged before they index are still checked."""
    tokens = symbol(1, (4,), "tokens")
    table = Array(tensor(5, 3), "table")
    ways = {
        "one of them": Index(tokens, I[2]),
        "some": Index(tokens, I[1:3]),
        "joined": Concat(Index(tokens, I[0:1]), Index(tokens, I[3:4]), axis=0),
        "in rows": Rearrange.from_string(tokens, "(a b:2) -> a b"),
    }
    for way, index in ways.items():
        compiled = compile(GeneralFunction.gen_index(table, index, 0), inputs=["tokens"], dtype="float64", level=level)
        good = torch.tensor([[0, 1, 2, 4]])
        assert compiled(tokens=good).shape[0] == 1, way
        with pytest.raises(DataError):
            compiled(tokens=torch.tensor([[5, 5, 5, 5]]))


def test_an_index_inside_a_module_is_checked() -> None:
    tokens, words = symbol(1, (4,), "tokens"), symbol(2, (4,), "words")
    body = GeneralFunction.gen_index(Array(tensor(5, 3), "table"), words, 0)
    call = Module(ModuleSpec(body, [ModuleArgSpec(words)]), "embed", words=tokens)
    compiled = compile(call, inputs=["tokens"], dtype="float64")
    assert compiled.inputs[0].dtype is torch.int64 and compiled.inputs[0].below == 5
    with pytest.raises(DataError):
        compiled(tokens=torch.tensor([[0, 1, 5, 1]]))


def test_an_index_that_a_module_does_not_bind_is_checked_in_its_body() -> None:
    tokens, table = symbol(1, (4,), "tokens"), symbol(2, (dim("WORDS"), 3), "table")
    body = GeneralFunction.gen_index(table, tokens, 0)
    call = Module(ModuleSpec(body, [ModuleArgSpec(table)]), "embed", table=Array(tensor(5, 3), "weights"))
    assert compile(call, inputs=["tokens"]).inputs[0].below == 5


def test_inputs_are_told_apart_by_what_they_index() -> None:
    """Several are looked for in one walk: each has its own table, name and dtype."""
    indices = [symbol(i, (2,), f"index{i}") for i in range(3)]
    tables = [Array(tensor(i + 2, 3, seed=i, dtype=torch.float32), f"table{i}") for i in range(2)]
    rows = [GeneralFunction.gen_index(table, index, 0) for table, index in zip(tables, indices, strict=False)]
    both = GeneralFunction.gen_index(tables[1], Index(indices[0], I[:1]), 0)
    scaled = Einsum.from_einsum_string("s,sh->sh", indices[2], Add(*rows))
    compiled = compile(Add(scaled, both), inputs=[indices[1], "index0", "index2"])
    found = [(each.name, each.dtype, each.below) for each in compiled.inputs]
    assert found == [("index1", torch.int64, 3), ("index0", torch.int64, 2), ("index2", torch.float32, None)]
