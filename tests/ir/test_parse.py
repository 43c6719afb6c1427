"""Text that reads back as the identical circuit; what cannot be read is an error that names the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import UUID

import pytest
import tiny
import torch
from harness import symbol, tensor
from hypothesis import given
from hypothesis import strategies as st

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    PrintOptions,
    Rearrange,
    RearrangeSpec,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    SymbolicSize,
    Tag,
    TorchDeviceDtypeOp,
    circuit_text,
    dim,
    new_traversal,
    parse_circuit,
    parse_circuits,
    postorder,
    tensors_of,
)
from tapeout.ir.errors import ParseError
from tapeout.ir.text.printing import ARG_FLAGS, DEEPEST_INDENT
from tapeout.models import circuit_of, split_circuit
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS


def assert_reads_back(*circuits: Circuit) -> str:
    """The text, if it reads back as the same circuits."""
    text = circuit_text(*circuits)
    found = parse_circuits(text, tensors_of(*circuits))
    assert len(found) == len(circuits)
    assert all(new is old for new, old in zip(found, circuits, strict=True)), text
    return text


# -- what reads back


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_catalogue(name: str, dtype: torch.dtype) -> None:
    assert_reads_back(CASES[name](dtype))


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    assert_reads_back(random_circuit(Random(seed)))


@given(SEEDS)
def test_several_circuits_that_share_nodes(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    nodes = list(postorder(circuit))
    assert_reads_back(circuit, nodes[len(nodes) // 2], nodes[0], circuit)


NAMES = [
    None,
    "",
    " ",
    "'",
    "\\",
    "\\'",
    "a\nb",
    "a\rb",
    "\t",
    "é漢字🙂",
    "\u2028",
    "\x00",
    "\ud800",
    "1",
    "0 'x'",
]
NAMES += ["# no comment", "a ! b", "x ...", "[2]", "~3 ", "Add", "  indented", "\\x41", "-> ;", "\\"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name(name: str | None) -> None:
    x = symbol(1, (2,), "x").rename(name)
    inner = Add(x, Scalar(1.0, (), name), name=name)
    spec = ModuleSpec(inner, [ModuleArgSpec(x)], check_unique_arg_names=False)
    text = assert_reads_back(Module.new_flat(spec, Scalar(2.0, (2,), "two"), name=name))
    assert len(text.split("\n")) == len(text.splitlines()) == 5


@given(st.lists(st.none() | st.text(), min_size=1, max_size=6))
def test_any_names(names: list[str | None]) -> None:
    leaves = [Scalar(float(i % 2), (), name) for i, name in enumerate(names)]
    assert_reads_back(Add(*leaves, name=names[0]))


@pytest.mark.parametrize(
    "number", [0.0, -0.0, 1.0, 0.1, 1e-320, 1e16, -1e300, float("inf"), float("-inf"), float("nan")]
)
def test_any_number(number: float) -> None:
    assert_reads_back(Scalar(number, (2, 3), "number"))


SIZES = [
    0,
    1,
    7,
    dim("SEQ"),
    2 * dim("HALF"),
    6 * dim("A") * dim("B"),
    None,
    dim("0s"),
    dim("12"),
    dim("A*B"),
    dim("a,b"),
]
SIZES += [
    dim("]["),
    dim("it's"),
    dim("ä"),
    dim(""),
    dim("²"),
    SymbolicSize(-1, ("A",)),
    SymbolicSize(0, ("A",)),
    dim("a b"),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(size: int | SymbolicSize | None) -> None:
    shape = (size, 2, size)
    x = symbol(1, shape, "x")
    assert_reads_back(SetSymbolicShape(Add(x, Scalar(1.0, shape), name=None), shape, "named"))
    assert_reads_back(
        Rearrange(x, RearrangeSpec(((0,), (1,), (2,)), ((2,), (3,), (1,), (0,)), (None, None, None, size or 2)))
    )


@pytest.mark.parametrize("dtype", [None, torch.int64, torch.bool, torch.bfloat16, torch.complex64], ids=str)
def test_types_of_symbols(dtype: torch.dtype | None) -> None:
    assert_reads_back(Symbol((2, None), UUID(int=2**128 - 1), "x", dtype))


@pytest.mark.parametrize("axes", [(0, 1), (51, 52), (179, 180), (7, 100_000), (54_324, 3), (-1, -2)], ids=str)
def test_any_axes(axes: tuple[int, int]) -> None:
    x = symbol(1, (2, 2), "x")
    assert_reads_back(Einsum((x, axes), (x, (axes[0], axes[0])), out_axes=(axes[1], axes[1], axes[0]), name="e"))


def test_einsums_without_axes() -> None:
    one = Einsum.empty()
    assert_reads_back(Add(one, Einsum((one, ()), out_axes=()), Einsum((one, ()), (one, ()), out_axes=(), name="")))


SPECS = [
    RearrangeSpec(((1,), (0,)), ((0,), (1,)), (None, None)),
    RearrangeSpec(((0,), (1,)), ((), (0,), (1,)), (None, None, 1)),
    RearrangeSpec(((3,), (0,)), ((0,), (2, 3)), (None, 1, 2, None)),
    RearrangeSpec(((0,), (1, 2)), ((2, 0), (1,)), (None, dim("N"), 1)),
    RearrangeSpec(((0,), (2,)), ((0, 1), (2,), (3,)), (None, 1, 3, 1)),
    RearrangeSpec(((0,), (1,)), ((0,), (1,), (2,)), (2, 3, 2 * dim("K"))),
    RearrangeSpec.permute([0, 1]).batched(0),
    RearrangeSpec(((0,), (1,)), ((0,), (1,), *(((i,)) for i in range(2, 60))), (None, None) + (1,) * 58),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_numbering_of_rearrangements(spec: RearrangeSpec) -> None:
    node = Rearrange(symbol(1, (2, 3), "x"), spec)
    assert_reads_back(node)


def test_rearrangements_that_read_well_are_written_so() -> None:
    x = symbol(1, (2, 3), "x")
    assert assert_reads_back(Rearrange.from_string(x, "a b -> (b a)")).split("\n")[0].endswith("Rearrange a b -> (b a)")
    renumbered = Rearrange(x, SPECS[0])
    assert renumbered is not Rearrange.from_string(x, "a b -> b a")
    assert renumbered._text() == "b a -> a b ;"


def test_indices() -> None:
    x = symbol(1, (4, 4, 4, 4), "x")
    picks = torch.tensor([3, -1, 0])
    nodes = [Index(x, index) for index in (I[0:, :0, -2:-1, -4], I[picks, [], 1:3, picks], I[...])]
    placed = Scatter(symbol(2, (2, 3), "y"), I[1:3, picks, 0], (4, 4, dim("N")))
    assert_reads_back(*nodes, placed)


def test_random_variables_and_tags() -> None:
    x = Array(tensor(3, 2), "x")
    group = DiscreteVar.uniform_probs_and_group(3, "group")
    assert_reads_back(Add(DiscreteVar(x, group), DiscreteVar(x), Tag(DiscreteVar(x, group), UUID(int=5))))


def test_casts_and_lookups() -> None:
    x, where = Array(tensor(3, 2), "x"), Array(torch.tensor([0, 2]), "where")
    for dtype in (torch.float32, "float32", "half", None):
        assert_reads_back(
            GeneralFunction.new_cast(x, TorchDeviceDtypeOp(None, "float64"), TorchDeviceDtypeOp("cuda:0", dtype))
        )
    assert_reads_back(GeneralFunction.gen_index(x, where, -2, batch_index=False, check_index_ints=False))


def test_a_cast_is_the_same_however_its_dtype_is_written() -> None:
    x = Array(tensor(3, 2), "x")
    casts = [
        GeneralFunction.new_cast(x, output=TorchDeviceDtypeOp(dtype=d)) for d in (torch.float32, "float32", "float")
    ]
    assert casts[0] is casts[1] is casts[2]


def test_tensors_of_equal_bytes_are_told_apart() -> None:
    zeros = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(16, dtype=torch.bool),
    ]
    zeros += [torch.zeros(0, 3), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(2, 2).T]
    nodes = [Array(zero, "zero") for zero in zeros]
    table = tensors_of(*nodes)
    assert len(table) == 2
    assert_reads_back(*nodes)


def test_tensors_may_be_given_under_the_printed_prefix() -> None:
    x = Array(tensor(2, 2).T, "x")
    assert parse_circuit(circuit_text(x), {x.tensor_hash[:24]: x.value.contiguous()}) is x


# -- modules


FLAGS = [{flag: False for flag in chosen} for chosen in ([], ARG_FLAGS[:1], ARG_FLAGS[1:], ARG_FLAGS)]


def test_the_flags_are_those_of_an_argument_spec() -> None:
    assert ARG_FLAGS == ("batchable", "expandable", "ban_non_symbolic_size_expand")


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_flags_of_arguments(flags: dict[str, bool]) -> None:
    x, unused = symbol(1, (2,), "x"), symbol(2, (), None)
    spec = ModuleSpec(x, [ModuleArgSpec(x, **flags), ModuleArgSpec(unused, **flags)], False, False)
    text = assert_reads_back(Module.new_flat(spec, Scalar(1.0, (2,)), Scalar(2.0), name="call"))
    assert text.count("not ") == 2 * len(flags)


def test_symbols_of_one_name() -> None:
    xs = [Symbol((2,), UUID(int=i), "x") for i in range(4)]
    body = Add(xs[0], xs[1], name="x")
    spec = ModuleSpec(body, [ModuleArgSpec(s) for s in reversed(xs)], False, False)
    call = Module.new_flat(spec, xs[0], Add(xs[3], xs[2]), xs[2], Scalar(0.0, (2,), "x"), name="x")
    assert_reads_back(call)


def test_an_unused_symbol_is_written_where_it_is_bound_and_may_be_its_own_argument() -> None:
    x, unused = symbol(1, (2,), "x"), symbol(2, (2,), "unused")
    inner = Module.new_flat(ModuleSpec(x, [ModuleArgSpec(x), ModuleArgSpec(unused)], False), x, unused, name="inner")
    outer = Module.new_flat(
        ModuleSpec(inner, [ModuleArgSpec(unused), ModuleArgSpec(symbol(3, (), "far"))], False),
        Add(x, unused),
        Scalar(1.0),
        name="outer",
    )
    text = assert_reads_back(outer)
    assert text.count("Symbol") == 3
    swapped = Module.new_flat(ModuleSpec(x, [ModuleArgSpec(unused)], False), Add(unused, unused), name="swapped")
    assert " ! 'unused' [2] Symbol" in assert_reads_back(swapped)


# -- models, depth, size


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_models_before_and_after_the_passes(make: Callable[[int], Any]) -> None:
    circuits, info = circuit_of(make(11))
    for circuit in circuits.values():
        assert_reads_back(circuit)
    split, _ = split_circuit(circuits, info, 5)
    assert_reads_back(split, circuits["t.bind_w"])


@pytest.mark.parametrize("named", [True, False])
def test_a_deep_chain(named: bool) -> None:
    depth = 20_000
    x = symbol(1, (3,), "x")
    chain: Circuit = x
    for i in range(depth):
        chain = Add(chain, x, name=f"n{i}" if named else None)
    text = assert_reads_back(chain)
    assert len(text) < depth * 400
    assert f"~{depth} " in text and f"~{DEEPEST_INDENT} " not in text


# -- what is printed of a circuit


def test_a_repeated_node_is_opened_where_it_is_not_cut_off() -> None:
    deep = Add(Scalar(1.0, (), "leaf"), name="deep")
    top = Add(Add(deep, name="left"), deep, name="top")
    text = top.repr(PrintOptions(traversal=new_traversal(end_depth=3)))
    assert text.split("\n") == [
        "'top' [] Add", "  'left' [] Add", "    'deep' [] Add ...", "  'deep'", "    'leaf' [] Scalar 1",
    ]  # fmt: skip


def test_comments_come_last_and_are_passed_over() -> None:
    circuit = CASES["module unused argument"](torch.float32)
    text = circuit.repr(PrintOptions(commenters=(lambda node: f"'{node.kind}! [",)))
    assert text.count("# ") == len(list(postorder(circuit)))
    assert parse_circuit(f"# a file\n\n{text}\r\n", tensors_of(circuit)) is circuit


def test_hand_written_text() -> None:
    text = """
    # the shape of a node with children may be left out, and its name
    'sum' Add
      Einsum ab,b->a
        'w' [2,SEQ] Symbol 00000000-0000-0000-0000-000000000001 float32
        'x' [SEQ] Symbol 00000000-0000-0000-0000-000000000002
      [1] Scalar 0.5
    """
    text = "\n".join(line[4:] for line in text.split("\n"))
    w, x = Symbol((2, dim("SEQ")), UUID(int=1), "w", torch.float32), symbol(2, (dim("SEQ"),), "x")
    product = Einsum.from_einsum_string("ab,b->a", w, x, name=None)
    assert parse_circuit(text) is Add(product, Scalar(0.5, (1,)), name="sum")


# -- what cannot be read

X = "'x' [2] Symbol 00000000-0000-0000-0000-000000000001"
ONE = "'one' [] Scalar 1"
BAD = {
    "no kind": ("'x' [2]", 1, "kind is missing"),
    "unknown kind": ("'x' [2] Cumulant", 1, "no kind 'Cumulant'"),
    "open quote": ("'x [2] Add", 1, "cannot be read"),
    "unknown escape": (r"'\q' [] Scalar 1", 1, "escape"),
    "nonsense": ("hello", 1, "cannot be read"),
    "odd indentation": (f"'s' Add\n   {X}", 2, "indentation"),
    "indented too far": (f"'s' Add\n    {X}", 2, "indentation"),
    "begins indented": (f"  {X}", 1, "indentation"),
    "unknown reference": ("'s' Add\n  'y'", 2, "no node above is called 'y'"),
    "cycle": ("'s' Add\n  't' Add\n    's'", 3, "contains itself"),
    "two of one name": (f"'s' Add\n  {X}\n  'x' [3] Scalar 1", 3, "two nodes are called 'x'"),
    "child of a leaf": (f"{X}\n  {ONE}", 2, "no children of its own"),
    "child of a reference": (f"'s' Add\n  {X}\n  'x'\n    {ONE}", 4, "no children of its own"),
    "wrong number of children": (f"'s' SetSymbolicShape [2]\n  {X}\n  {ONE}", 1, "2 children"),
    "wrong shape": (f"'s' [3] Add\n  {X}", 1, "the text says [3], but the shape is [2]"),
    "leaf without shape": ("'x' Scalar 1", 1, "needs its shape"),
    "size": ("'x' [2,a b] Scalar 1", 1, "no size"),
    "number": ("'x' [] Scalar one", 1, "one"),
    "no number": ("'x' [] Scalar", 1, "write one number"),
    "uuid": ("'x' [] Symbol 123", 1, "no uuid"),
    "dtype": (f"{X} floaty", 1, "no dtype"),
    "details of an add": (f"'s' Add 3\n  {X}", 1, "write nothing"),
    "einsum": (f"'s' Einsum ab\n  {X}", 1, "does not fit 1 children"),
    "einsum operands": (f"'s' Einsum a,a->a\n  {X}", 1, "does not fit 1 children"),
    "einsum ranks": (f"'s' Einsum ab->a\n  {X}", 1, "operand of rank 1"),
    "einsum axis": (f"'s' Einsum 1->1\n  {X}", 1, "no axis"),
    "rearrange": (f"'s' Rearrange a => a\n  {X}", 1, "not a rearrangement"),
    "numbered rearrange": (f"'s' Rearrange c -> c ;\n  {X}", 1, "not a rearrangement"),
    "huge rearrange": (f"'s' Rearrange {{999999999}} -> {{999999999}} ;\n  {X}", 1, "not a rearrangement"),
    "index": (f"'s' Index [0:1:2]\n  {X}", 1, "no index of an axis"),
    "index out of range": (f"'s' Index [5]\n  {X}", 1, "out of range"),
    "function": (f"'s' GeneralFunction sine\n  {X}", 1, "no function is called 'sine'"),
    "axis": (f"'s' Concat x\n  {X}", 1, "x"),
    "concat of nothing": ("'s' Concat 0", 1, "no children"),
    "module without a body": ("'m' Module", 1, "body"),
    "argument without its symbol": (f"'m' Module\n  {X}\n  {ONE}", 3, "lacks its symbol"),
    "body with a symbol": (f"'m' Module\n  {X} ! 'x'", 2, "no argument"),
    "symbol at the top": (f"{X} ! 'x'", 1, "no argument"),
    "symbol outside a module": (f"'s' Add\n  {X}\n  {ONE} ! 'x'", 3, "no argument"),
    "bound to no symbol": (f"'m' Module\n  {X}\n  {ONE} ! 'one'", 3, "no Symbol"),
    "flag": (f"'m' Module\n  {X}\n  'y' [2] Scalar 1 ! 'x' ! not here", 3, "cannot be 'not here'"),
    "argument that does not fit": (f"'m' Module\n  {X}\n  'y' [3] Scalar 1 ! 'x'", 1, "does not fit"),
    "cut off": ("'s' [2] Add ...", 1, "cut off"),
    "hash": ("'x' [2] Array 123 float32", 1, "no hash"),
    "tensor that was not given": (f"'x' [2] Array {'0' * 24} float32", 1, "no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_the_line(name: str) -> None:
    text, line, words = BAD[name]
    with pytest.raises(ParseError) as caught:
        parse_circuit(text)
    assert caught.value.message.startswith(f"line {line}: ")
    assert words in caught.value.message + caught.value.hint
    assert caught.value.facts[0] == text.split("\n")[line - 1].strip()
    assert caught.value.hint


@pytest.mark.parametrize(("text", "count"), [("", 0), ("# nothing\n", 0), (f"{X}\n{ONE}", 2)])
def test_one_circuit_is_wanted(text: str, count: int) -> None:
    with pytest.raises(ParseError, match=f"{count} circuits"):
        parse_circuit(text)
    assert len(parse_circuits(text)) == count


def test_a_tensor_of_another_content_is_refused() -> None:
    node = Index(Array(tensor(4), "x"), I[torch.tensor([1, 2])])
    table = tensors_of(node)
    for digest in table:
        for wrong, words in ((table[digest] + 1, "has the hash"), (table[digest][:1], "bytes|has the hash")):
            with pytest.raises(ParseError, match=words):
                parse_circuit(circuit_text(node), {**table, digest: wrong})


@given(SEEDS, st.data())
def test_a_changed_text_is_read_or_refused(seed: int, data: st.DataObject) -> None:
    circuit = random_circuit(Random(seed), size=8)
    text, tensors = circuit_text(circuit), tensors_of(circuit)
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 12))
    put = data.draw(
        st.sampled_from(["", "'", "[", "]", "  ", "\n", "9", "-", ",", "!", "a", ":", "{", "t", "99999999999"])
    )
    changed = text[:at] + put + text[at + length :]
    try:
        found = parse_circuits(changed, tensors)
    except ParseError as error:
        assert re.match(r"line \d+: ", error.message)
    else:
        assert parse_circuits(circuit_text(*found), tensors) == found
