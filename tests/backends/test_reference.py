"""The reference evaluator: against a second definition, its dtypes, its memory, its errors."""

from __future__ import annotations

import math
import sys
import weakref
from random import Random
from typing import Any

import definition
import numpy as np
import pytest
import torch
from harness import KINDS, integers, kinds, symbol, tensor
from hypothesis import given, settings

from tapeout.backends.reference import evaluate, evaluate_many
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Scalar,
    Symbol,
    TorchDeviceDtypeOp,
    dim,
    exp,
    maximum,
    postorder,
    rsqrt,
)
from tapeout.ir.errors import (
    DataError,
    ModuleBindingError,
    ShapeError,
    TypeMismatchError,
    UnsupportedError,
)
from tapeout.ir.nodes.functions import FUNCTIONS
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

F16, F32, F64, I64 = torch.float16, torch.float32, torch.float64, torch.int64


def check_value(circuit: Circuit) -> None:
    found, wanted = evaluate(circuit), definition.value(circuit)
    assert circuit.shape == tuple(found.shape) == wanted.shape
    assert found.dtype is circuit.torch_dtype
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-9)


# -- values


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_the_value_of_the_second_definition(name: str) -> None:
    check_value(CASES[name](F64))


@settings(max_examples=300)
@given(SEEDS)
def test_random_circuits_have_the_value_of_the_second_definition(seed: int) -> None:
    check_value(random_circuit(Random(seed)))


@pytest.mark.parametrize("name", CASES)
def test_the_dtype_of_a_value_is_the_inferred_one_in_float32_too(name: str) -> None:
    circuit = CASES[name](F32)
    assert circuit.torch_dtype is F32
    assert evaluate(circuit).dtype is F32


def test_the_catalogue_has_every_kind_and_every_function() -> None:
    nodes = [node for build in CASES.values() for node in postorder(build(F64))]
    assert {type(node) for node in nodes} >= set(KINDS) - {DiscreteVar}  # a random variable has no value
    functions = {node.spec.name for node in nodes if isinstance(node, GeneralFunction)}
    assert functions >= set(FUNCTIONS)
    assert set(definition.FUNCTIONS) == set(FUNCTIONS)
    modes = {name.partition("at_")[2].partition("_")[2] for name in functions if "gen_index" in name}
    assert modes == {"c", "batch_x_c", "no_batch_index_c", "batch_x_no_batch_index_c"}


def test_random_circuits_have_every_kind_and_most_functions() -> None:
    circuits = [random_circuit(Random(seed)) for seed in range(300)]
    assert set().union(*map(kinds, circuits)) >= set(KINDS) - {DiscreteVar}
    functions = {n.spec.name for c in circuits for n in postorder(c) if isinstance(n, GeneralFunction)}
    assert len(functions & set(FUNCTIONS)) > 0.9 * len(FUNCTIONS)
    assert all(not c.free_symbols for c in circuits)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_functions_at_extreme_numbers(function: str) -> None:
    """Where a formula written naively overflows, the function does not."""
    stable = {
        "log_exp_p_1": [(1000.0, 1000.0), (-1000.0, 0.0)],
        "sigmoid": [(1000.0, 1.0), (-1000.0, 0.0)],
        "silu": [(1000.0, 1000.0), (-1000.0, 0.0)],
        "gelu": [(1000.0, 1000.0), (-1000.0, 0.0)],
        "gelu_new": [(1000.0, 1000.0), (-1000.0, 0.0)],
        "gaussian_cdf": [(40.0, 1.0), (-40.0, 0.0)],
        "tanh": [(1000.0, 1.0)],
        "step": [(0.0, 0.0), (1e-300, 1.0)],
        "softmax": [(1e4, 1.0)],
        "log_softmax": [(1e4, 0.0)],
    }
    for x, wanted in stable.get(function, []):
        node = Array(torch.tensor([x], dtype=F64))
        assert evaluate(GeneralFunction.new_by_name(node, spec_name=function)).item() == pytest.approx(wanted)


# -- dtypes


def test_float64_promotes_the_stored_numbers_exactly() -> None:
    x, y = tensor(4, 5, seed=1, dtype=F32), tensor(5, 3, seed=2, dtype=F32)
    circuit = exp(Einsum.from_einsum_string("ab,bc->ac", Array(x), Array(y)))
    assert evaluate(circuit).dtype is F32
    for dtype in (F64, "float64"):
        found = evaluate(circuit, dtype)  # type: ignore[arg-type]
        assert found.dtype is F64
        torch.testing.assert_close(found, torch.exp(x.double() @ y.double()), rtol=1e-14, atol=0)


def test_integers_stay_integers_when_the_dtype_is_given() -> None:
    big = torch.tensor([2**53 + 1, -7])
    assert torch.equal(evaluate(Array(big), F64), big)
    assert torch.equal(evaluate(Add(Array(big), Array(big)), F32), 2 * big)
    picked = GeneralFunction.gen_index(Array(tensor(4, 3, dtype=F32)), Array(integers(5, below=4)), 0)
    assert evaluate(picked, F64).dtype is F64


def test_numbers_take_the_dtype_of_what_they_stand_beside() -> None:
    """A half-precision sum stays one, although the circuit's first array has another dtype."""
    half, whole = Array(tensor(3, dtype=F16)), Array(torch.tensor([2**24 + 1, 5]))
    tenth = Add(half, Scalar(0.1))
    assert evaluate(tenth).dtype is tenth.torch_dtype is F16
    mixed = evaluate_many([Array(tensor(3, dtype=F32)), tenth, maximum(half, Scalar(0.0, (3,)))])
    assert [value.dtype for value in mixed] == [F32, F16, F16]
    total = Add(whole, Scalar(2**24 + 1.0))
    assert torch.equal(evaluate(total), torch.tensor([2**25 + 2, 2**24 + 6]))
    assert total.torch_dtype is I64


def test_numbers_alone_have_the_dtype_of_the_rest_of_the_circuit() -> None:
    alone = rsqrt(Scalar(4.0, (2,)))
    assert alone.torch_dtype is None
    assert evaluate(alone).dtype is F64
    assert evaluate(alone, F32).dtype is F32
    assert evaluate_many([alone, Array(tensor(2, dtype=F16))])[0].dtype is F16


def test_a_fraction_beside_integers_is_an_error_not_a_rounded_number() -> None:
    with pytest.raises(TypeMismatchError, match=r"(?s)no whole number and stands beside integers \(int64\).*hint"):
        evaluate(Add(Array(torch.tensor([1, 2])), Scalar(1.5, name="one and a half")))


def test_a_number_can_be_an_index() -> None:
    x = Array(tensor(4, 3))
    assert torch.equal(evaluate(GeneralFunction.gen_index(x, Scalar(2.0), 0)), x.value[2])
    with pytest.raises(TypeMismatchError, match="no whole number"):
        evaluate(GeneralFunction.gen_index(x, Scalar(1.5), 0))


def test_a_cast_rounds_only_if_no_dtype_is_asked_for() -> None:
    x = Array(tensor(3, dtype=F64))
    down = GeneralFunction.new_cast(x, output=TorchDeviceDtypeOp(dtype=F32))
    assert torch.equal(evaluate(down), x.value.float())
    assert torch.equal(evaluate(down, F64), x.value)
    to_int = GeneralFunction.new_cast(x, output=TorchDeviceDtypeOp(dtype="int64"))
    assert torch.equal(evaluate(to_int, F64), x.value.long())
    from_int = GeneralFunction.new_cast(Array(torch.tensor([2])), output=TorchDeviceDtypeOp(dtype=F32))
    assert evaluate(from_int, F64).dtype is F64


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(TypeMismatchError, match=r"(?s)'float65'.*hint: use a torch dtype"):
        evaluate(Scalar(1.0), "float65")


# -- modules, roots, given values


def test_shared_nodes_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_computed(monkeypatch)
    shared = exp(Array(tensor(3), "x"))
    first, second = Add(shared, shared), Einsum.scalar_mul(shared, 2.0)
    values = evaluate_many([first, second, first, shared])
    assert computed.count(shared) == 1
    assert torch.equal(values[0], values[2]) and torch.equal(values[0], values[1])


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[Circuit]:
    module: Any = sys.modules[evaluate.__module__]
    computed: list[Circuit] = []
    original = module._value

    def counting(node: Circuit, *rest: Any) -> torch.Tensor:
        computed.append(node)
        value: torch.Tensor = original(node, *rest)
        return value

    monkeypatch.setattr(module, "_value", counting)
    return computed


def test_given_values_are_not_computed_nor_what_is_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    free = symbol(1, (3,), "free")
    inner = exp(free, name="inner")
    module = Module(ModuleSpec(Add(symbol(2, (3,), "x"), inner), [ModuleArgSpec(symbol(2, (3,), "x"))]), x=inner)
    computed = count_computed(monkeypatch)
    value = tensor(3)
    torch.testing.assert_close(evaluate_many([module], values={inner: value})[0], 2 * value)
    assert free not in computed and inner not in computed
    assert torch.equal(evaluate_many([inner], values={inner: value})[0], value)
    torch.testing.assert_close(evaluate_many([module], values={free: value})[0], 2 * value.exp())


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (tensor(4), ShapeError, r"has shape \[4\]"),
        (tensor(1, 3), ShapeError, r"has shape \[1, 3\]"),
        (tensor(3, dtype=F32), TypeMismatchError, "has dtype float32"),
    ],
)
def test_a_given_value_must_fit(value: torch.Tensor, error: type[Exception], said: str) -> None:
    free = Symbol((3,), symbol(1, (), "").uuid, "free", F64)
    with pytest.raises(error, match=f"(?s)'?free.*{said}.*hint: give"):
        evaluate_many([free], values={free: value})


def test_given_values_are_promoted() -> None:
    free = Symbol((3,), symbol(1, (), "").uuid, "free", F32)
    assert evaluate_many([exp(free)], F64, {free: tensor(3, dtype=F32)})[0].dtype is F64


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    evaluate_many([exp(exp(Array(tensor(2))))], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# -- memory


def test_values_are_freed_after_their_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules[evaluate.__module__]
    alive: dict[int, weakref.ref[torch.Tensor]] = {}
    peak = 0
    original = module._value

    def tracked(node: Circuit, *rest: Any) -> torch.Tensor:
        nonlocal peak
        value: torch.Tensor = original(node, *rest)
        if node.children:
            alive[id(value)] = weakref.ref(value)
        peak = max(peak, sum(reference() is not None for reference in alive.values()))
        return value

    monkeypatch.setattr(module, "_value", tracked)
    first = exp(Array(tensor(10), "x"))
    node: Circuit = first
    for i in range(50):
        node = Einsum.scalar_mul(node, 0.5 + i / 100, f"n{i}")
    evaluate(Add(node, first))
    assert peak <= 4  # the shared first value, an operand, its result, and the sum


def test_an_array_is_not_copied() -> None:
    x = tensor(100)
    assert evaluate(Array(x)).data_ptr() == x.data_ptr()
    assert evaluate(Array(x).index(I[10:])).data_ptr() == x[10:].data_ptr()


# -- errors


def test_an_unbound_symbol_is_named() -> None:
    free = symbol(1, (3,), "tokens")
    with pytest.raises(ModuleBindingError, match=r"(?s)tokens.*unbound.*hint: replace it, circuit\.update\('tokens'"):
        evaluate(Add(free, Array(tensor(3))))


def test_a_random_variable_is_an_error() -> None:
    variable = DiscreteVar(Array(tensor(4, 3)), name="prompts")
    with pytest.raises(UnsupportedError, match=r"(?s)prompts.*random variable.*hint: sample it first"):
        evaluate(Add(variable, Scalar(1.0)))


@pytest.mark.parametrize("token", [-1, 7, 100])
@pytest.mark.parametrize("batched", [False, True])
def test_a_token_outside_the_vocabulary_is_an_error(token: int, batched: bool) -> None:
    embeddings = Array(tensor(2, 7, 3) if batched else tensor(7, 3), "embeddings")
    tokens = Array(torch.tensor([3, token]), "tokens")
    with pytest.raises(
        DataError, match=rf"index {token} is outside 0 to 6(?s:.*)hint: tokens must come from the tokenizer"
    ):
        evaluate(GeneralFunction.gen_index(embeddings, tokens, 0, batch_x=batched))


@pytest.mark.parametrize("token", [-1, 7])
def test_an_unchecked_index_is_an_error_all_the_same(token: int) -> None:
    where = Array(torch.tensor([token]), "where")
    with pytest.raises(TypeMismatchError, match=r"(?s)evaluating .*failed"):
        evaluate(GeneralFunction.gen_index(Array(tensor(7, 3)), where, 0, check_index_ints=False))


def test_devices_that_do_not_mix_are_said() -> None:
    away = symbol(1, (3,), "away")
    with pytest.raises(TypeMismatchError, match=r"(?s)evaluating .*meta.*hint: are all constants on one device"):
        evaluate_many([Add(away, Array(tensor(3)))], values={away: torch.zeros(3, dtype=F64, device="meta")})


def test_a_symbolic_shape_is_an_error() -> None:
    for circuit in (
        Scalar(1.0, (dim("SEQ"),), "ones"),
        Rearrange.from_string(Scalar(1.0), "-> 1").expand_at_axes(0, [dim("N")]),
    ):
        with pytest.raises(UnsupportedError, match=r"(?s)symbolic shape \[(SEQ|N,1)\].*hint: bind"):
            evaluate(circuit)


def test_a_tensor_written_to_afterwards_is_an_error() -> None:
    value = tensor(3)
    circuit = Add(Array(value, "weights"), Scalar(1.0))
    evaluate(circuit)
    value += 1
    with pytest.raises(TypeMismatchError, match=r"(?s)'weights'.*written to.*hint: .*clone"):
        evaluate(circuit)


def test_nan_and_infinity_pass_through() -> None:
    found = evaluate(Concat(Scalar(math.nan, (1,)), Scalar(-math.inf, (1,)), Array(tensor(1)), axis=0))
    assert found[0].isnan() and found[1] == -math.inf
