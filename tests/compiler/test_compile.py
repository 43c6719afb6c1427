"""compile: every case and random circuits at both levels in every dtype, batches of any size, several circuits."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from uuid import UUID

import pytest
import torch
from harness import integers, symbol, tensor
from hypothesis import assume, given, settings
from random_models import gpt2, llama
from splits import by_head_and_position, difference, unsplit
from tolerances import assert_close

import tapeout
from tapeout.backends.common.precision import wide
from tapeout.compiler import compile, compile_many, evaluate_many, values
from tapeout.compiler.optimise import AFTER_BATCH, BEFORE_BATCH
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Matcher,
    Module,
    Regex,
    Scalar,
    Symbol,
    TorchDeviceDtypeOp,
    postorder,
)
from tapeout.ir.errors import MatchError, ModuleBindingError, TapeoutError, TypeMismatchError, UnsupportedError
from tapeout.passes import RunDiscreteVarAllSpec, Sampler
from tapeout.passes.execution import ExecutionPass, Origins
from tapeout.passes.inline import Inline
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
PASSES = {each.name: each for each in (*BEFORE_BATCH, *AFTER_BATCH)}


# -- against the reference


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_case(dtype: torch.dtype, level: int) -> None:
    for name, build in CASES.items():
        circuit = build(torch.float64)
        try:
            assert_close(compile(circuit, dtype=dtype, level=level)(), circuit.evaluate("float64"), dtype)
        except (AssertionError, TapeoutError) as error:
            raise AssertionError(f"{name}: {error}") from error


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    expected = circuit.evaluate("float64")
    for level in (0, 1):
        assert_close(compile(circuit, dtype="float64", level=level)(), expected)
    assert_close(compile(circuit, dtype="float32")(), expected, torch.float32)


@settings(max_examples=40)
@given(SEEDS)
def test_every_pass_by_itself(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    before, expected = Inline().run_many((circuit,), Origins()), circuit.evaluate("float64")
    assert_close(before[0].evaluate("float64"), expected)
    for name, each in PASSES.items():
        once = each.run_many(before, Origins())
        try:
            assert_close(once[0].evaluate("float64"), expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_pass_by_itself_on_a_model(family: str, name: str) -> None:
    """On a tiny model's logit difference, split by head and position, with the prompt bound."""
    circuit = difference(by_head_and_position({"gpt2": gpt2, "llama": llama}[family](), 5))
    circuit = circuit.update("tokens", lambda _: Array(integers(5, below=11), "tokens"))
    before = Inline().run_many((circuit,), Origins())
    assert_close(PASSES[name].run_many(before, Origins())[0].evaluate("float64"), circuit.evaluate("float64"))


# -- inputs against a loop over rows


def outer_leaves(circuit: Circuit) -> list[Array]:
    """Constants that are read outside of modules' bodies, and there alone."""
    bodies = {node for each in postorder(circuit) if isinstance(each, Module) for node in postorder(each.children[0])}
    return [node for node in postorder(circuit) if isinstance(node, Array) and node not in bodies]


def rows_of(leaf: Array, count: int) -> torch.Tensor:
    """The leaf's value, and others like it."""
    rows = [leaf.value]
    for number in range(1, count):
        noise = tensor(*leaf.value.shape, seed=number, low=-0.01, high=0.01)
        other = (
            leaf.value + noise if leaf.value.is_floating_point() else leaf.value.flip(0) if leaf.rank else leaf.value
        )
        rows.append(other)
    return torch.stack(rows)


@given(SEEDS)
def test_leaves_that_become_inputs(seed: int) -> None:
    rng, circuit = Random(seed), random_circuit(Random(seed))
    leaves = outer_leaves(circuit)
    assume(leaves)
    chosen = rng.sample(leaves, min(len(leaves), rng.choice((1, 2, 3))))
    symbols = {leaf: Symbol(leaf.shape, UUID(int=i + 1), f"in{i}", leaf.torch_dtype) for i, leaf in enumerate(chosen)}
    opened = circuit.update(Matcher.circuits(*chosen), lambda node: symbols[node])  # type: ignore[index]
    compiled = [compile(opened, inputs=list(symbols.values()), dtype="float64", level=level) for level in (0, 1)]
    for count in (1, 2, 7):
        given_ = {symbols[leaf].name: rows_of(leaf, count) for leaf in chosen}
        rows = [
            opened.update(
                Matcher.circuits(*symbols.values()),
                lambda node, row=row, values=given_: Array(values[node.name][row], node.name),  # type: ignore[misc]
            ).evaluate("float64")
            for row in range(count)
        ]
        for each in compiled:
            assert_close(each(**given_), torch.stack(rows))


def test_batches_of_any_size_without_compiling_again() -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    compiled = compile(circuit, inputs=["tokens", "labels"])
    tokens, labels = integers(7, 5, below=11), integers(7, 2, below=11, seed=1)
    whole = compiled(tokens=tokens, labels=labels)
    assert whole.shape == (7,)
    for rows in (1, 2, 5):
        assert_close(compiled(tokens=tokens[:rows], labels=labels[:rows]), whole[:rows], torch.float32)


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx"])
def test_expected_batch_sizes_are_no_limit(backend: str) -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    tokens, labels = integers(7, 5, below=11), integers(7, 2, below=11, seed=1)
    whole = compile(circuit, backend, ["tokens", "labels"])(tokens=tokens, labels=labels)
    for batch in (1, [2, 4]):
        compiled = compile_many([circuit], backend, ["tokens", "labels"], batch=batch)
        assert compiled.graphs is None
        for rows in (1, 3, 7):
            assert_close(compiled(tokens=tokens[:rows], labels=labels[:rows]), whole[:rows], torch.float32)


def test_what_is_captured_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which batch sizes, of which backends; whether a capture works only a GPU can tell (tests/gpu)."""
    scripted = compile(Scalar(1.0), "torchscript").executable
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = compile(Add(symbol(1, (3,), "x"), Scalar(1.0)), inputs=["x"], batch=[32, 2, 8])
    assert here.graphs is None
    there = replace(here, program=replace(here.program, device=torch.device("cuda")))
    assert there.graphs is not None and there.graphs.buckets == (2, 8, 32)
    limited = replace(there, max_memory=there.cost(8).peak_bytes)
    assert limited.graphs is not None and limited.graphs.buckets == (2, 8)
    for other in ({"max_memory": 1}, {"batch": ()}, {"executable": scripted}, {"program": here.program}):
        assert replace(there, **other).graphs is None  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["fx", "onnx"])
def test_products_are_ordered_for_the_batch_that_is_expected(backend: str) -> None:
    """(x a) b for few rows, x (a b) for many."""
    x, a, b = symbol(1, (8,), "x"), Array(tensor(8, 8), "a"), Array(tensor(8, 8, seed=1), "b")
    product = Einsum.from_einsum_string("i,ij,jk->k", x, a, b)
    few, many = (compile(product, backend, ["x"], dtype="float64", batch=batch) for batch in (1, [1, 1000]))
    assert few.batch == (1,) and many.batch == (1, 1000)
    assert few.source != many.source
    value = tensor(3, 8, seed=2)
    for each in (few, many):
        assert_close(each(x=value), value @ a.value @ b.value)


@pytest.mark.parametrize("batch", [0, -1, True, 2.0, [1, 0], "16"])
def test_what_is_no_batch_size_is_an_error(batch: object) -> None:
    with pytest.raises(UnsupportedError, match="batch") as caught:
        compile(Scalar(1.0, (2,)), batch=batch)  # type: ignore[arg-type]
    assert "positive number" in caught.value.hint


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_split_circuit_compiles_to_what_the_model_compiles_to(family: str) -> None:
    model = {"gpt2": gpt2, "llama": llama}[family]()
    tokens, labels = integers(4, 5, below=11), integers(4, 2, below=11, seed=1)
    split, whole = (
        compile(difference(logits), inputs=["tokens", "labels"], dtype=torch.float64)(tokens=tokens, labels=labels)
        for logits in (by_head_and_position(model, 5), unsplit(model, 5))
    )
    with torch.no_grad():
        picked = model.double()(tokens).logits[:, -1].gather(1, labels)
    assert torch.equal(split, whole)
    assert float((split - (picked[:, 0] - picked[:, 1])).abs().max()) < 1e-5  # constants of float32: a mask, rotations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_floating_inputs_have_the_dtype_that_is_compiled_for(dtype: torch.dtype) -> None:
    weight = Array(tensor(3, 4, dtype=torch.float32), "w")
    for known in (None, torch.float32):
        x = Symbol((4,), UUID(int=3), "x", known)
        compiled = compile(Einsum.from_einsum_string("a,ba->b", x, weight), inputs=["x"], dtype=dtype)
        (found,) = compiled.inputs
        assert found.dtype is dtype
        value = tensor(2, 4, dtype=dtype)
        expected = torch.einsum("na,ba->nb", value.double(), weight.value.double())
        assert compiled(x=value).dtype is wide(dtype)
        assert_close(compiled(x=value), expected, dtype)


# -- ways to name inputs


def test_inputs_by_name_by_node_and_by_placeholder() -> None:
    x, labels = symbol(1, (3,), "x"), Array(torch.zeros(2, dtype=torch.int64), "labels")
    picked = GeneralFunction.gen_index(x, Index(labels, I[1]), index_dim=0, batch_x=True)
    for names in (["x", "labels"], [x, labels], ["x", labels]):
        compiled = compile(picked, inputs=names, dtype="float64")  # type: ignore[arg-type]
        assert [each.name for each in compiled.inputs] == ["x", "labels"]
        out = compiled(x=tensor(2, 3), labels=torch.tensor([[0, 2], [1, 0]]))
        assert torch.equal(out, torch.stack([tensor(2, 3)[0, 2], tensor(2, 3)[1, 0]]))


def test_a_random_variable_as_an_input() -> None:
    rows = Array(tensor(5, 3), "rows")
    variable = DiscreteVar(rows, name="x")
    circuit = Einsum.from_einsum_string("a,a->", variable, variable)
    compiled = compile(circuit, inputs=["x"], dtype="float64")
    sampled = Sampler(RunDiscreteVarAllSpec([variable.probs_and_group])).sample(circuit)
    assert_close(compiled(x=rows.value), sampled.evaluate("float64"))
    assert_close(compile(sampled, dtype="float64")(), sampled.evaluate("float64"))


def test_a_circuit_that_does_not_depend_on_its_input_gives_one_row_an_entry() -> None:
    x = symbol(1, (3,), "x")
    k = Array(tensor(2, seed=4), "k")
    compiled = compile_many([k, Add(x, Scalar(1.0)), Scalar(2.0, (2,))], inputs=["x"], dtype="float64")
    constant, other, number = compiled(x=tensor(5, 3))
    assert_close(constant, k.value.expand(5, 2))
    assert_close(other, tensor(5, 3) + 1)
    assert_close(number, torch.full((5, 2), 2.0, dtype=torch.float64))


def test_integer_results() -> None:
    tokens = Symbol((4,), UUID(int=9), "tokens", torch.int64)
    table = Array(torch.tensor([3, 1, 2]), "table")
    looked_up = GeneralFunction.gen_index(table, tokens, 0)
    for level in (0, 1):
        compiled = compile(looked_up, inputs=["tokens"], level=level)
        out = compiled(tokens=torch.tensor([[0, 1, 2, 0]]))
        assert out.dtype is torch.int64 and out.tolist() == [[3, 1, 2, 3]]
        both = compile(Add(looked_up, tokens), inputs=["tokens"], level=level)(tokens=torch.tensor([[0, 1, 2, 0]]))
        assert both.dtype is torch.int64 and both.tolist() == [[3, 2, 4, 3]]


def test_casts_between_integers_and_numbers() -> None:
    tokens = Symbol((3,), UUID(int=9), "tokens", torch.int64)
    number = GeneralFunction.new_cast(tokens, output=TorchDeviceDtypeOp(dtype=torch.float32))
    half = Einsum.scalar_mul(number, 0.5)
    back = GeneralFunction.new_cast(half, output=TorchDeviceDtypeOp(dtype=torch.int64))
    for dtype in DTYPES:
        halves, whole = compile_many([half, back], inputs=["tokens"], dtype=dtype)(tokens=torch.tensor([[2, 3, 4]]))
        assert halves.dtype is wide(dtype) and halves.tolist() == [[1.0, 1.5, 2.0]]
        assert whole.dtype is torch.int64 and whole.tolist() == [[1, 1, 2]]


# -- several circuits


def test_several_circuits_share_what_they_have_in_common() -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    patched = circuit.update("m1_t3", lambda node: Scalar(0.0, node.shape))
    other = circuit.update("m1", lambda node: Einsum.scalar_mul(node, 2.0))
    alone = [compile(each, inputs=["tokens", "labels"]) for each in (circuit, patched, other)]
    together = compile_many([circuit, patched, other], inputs=["tokens", "labels"])
    assert together.cost(4).nodes < 0.6 * sum(each.cost(4).nodes for each in alone)
    given_ = {"tokens": integers(4, 5, below=11), "labels": integers(4, 2, below=11)}
    for found, each in zip(together(**given_), alone, strict=True):
        assert_close(found, each(**given_), torch.float32)


def test_one_circuit_twice_and_none() -> None:
    x = symbol(1, (3,), "x")
    first, second = compile_many([x, x], inputs=["x"], dtype="float64")(x=tensor(2, 3))
    assert torch.equal(first, second) and torch.equal(first, tensor(2, 3))
    assert evaluate_many([]) == []


def test_values_of_named_nodes() -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    given_ = {"tokens": integers(3, 5, below=11), "labels": integers(3, 2, below=11)}
    found = values(circuit, Regex(r"^a\d\.h\d$"), {"tokens": given_["tokens"]}, dtype="float64")
    assert sorted(found) == ["a0.h0", "a0.h1", "a1.h0", "a1.h1"]
    for name, value in found.items():
        bound = circuit.get_unique(name).update("tokens", lambda _: Array(given_["tokens"][1], "tokens"))
        assert_close(value[1], bound.evaluate("float64"))
    (total,) = evaluate_many([circuit], given_, dtype="float64")
    assert total.shape == (3,)
    with pytest.raises(MatchError):
        values(circuit, "no such node", given_)


# -- errors


def test_errors_name_what_is_wrong() -> None:
    x = symbol(1, (3,), "x")
    circuit = Add(x, Array(tensor(3), "k"))
    with pytest.raises(ModuleBindingError, match="x"):
        compile(circuit)
    with pytest.raises(UnsupportedError, match="fx, torchscript, inductor, onnx"):
        compile(circuit, "onxn", inputs=["x"])
    with pytest.raises(TypeMismatchError):
        compile(circuit, inputs=["x"], dtype="float16")
    with pytest.raises(TapeoutError):
        compile(circuit, inputs=["x"], dtype="floaty")
    with pytest.raises(UnsupportedError):
        compile(DiscreteVar(Array(tensor(2, 3), "rows")))


def test_the_names_are_public() -> None:
    assert tapeout.compile is compile and tapeout.compile_many is compile_many
    assert issubclass(type(PASSES["reroll"]), ExecutionPass)
