"""Identity: building the same thing twice gives the same object, and nothing else does."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from random import Random
from uuid import UUID

import pytest
import torch
from harness import symbol, tensor
from hypothesis import given

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
    TorchDeviceDtypeOp,
    dim,
    exp,
    postorder,
)
from tapeout.ir.errors import TypeMismatchError
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

X = Array(tensor(3, 3, seed=1), "x")
Y = Array(tensor(3, 3, seed=2), "y")
S, T = symbol(1, (3,), "s"), symbol(2, (3,), "t")
GROUP = DiscreteVar.uniform_probs_and_group(3, "group")


def module(name: str | None = "m", **options: bool) -> Module:
    spec = ModuleSpec(Add(S, T), [ModuleArgSpec(S, **options), ModuleArgSpec(T)])
    return Module(spec, name, s=X.index(I[0], "row"), t=X)


# For each kind: how to build it twice, and what is almost the same and yet another node.
BUILDS: dict[str, tuple[Callable[[], Circuit], list[Callable[[], Circuit]]]] = {
    "Array": (
        lambda: Array(tensor(3, 3, seed=1), "x"),
        [
            lambda: Array(tensor(3, 3, seed=2), "x"),
            lambda: Array(tensor(3, 3, seed=1).T.contiguous(), "x"),
            lambda: Array(tensor(3, 3, seed=1).reshape(9), "x"),
            lambda: Array(tensor(3, 3, seed=1).reshape(1, 3, 3), "x"),
            lambda: Array(tensor(3, 3, seed=1).view(torch.int64), "x"),
        ],
    ),
    "Scalar": (
        lambda: Scalar(0.1, (3,), "n"),
        [lambda: Scalar(0.2, (3,), "n"), lambda: Scalar(0.1, (), "n"), lambda: Scalar(0.1, (1, 3), "n")],
    ),
    "Symbol": (
        lambda: Symbol((3, None), UUID(int=5), "n"),
        [
            lambda: Symbol((3, None), UUID(int=6), "n"),
            lambda: Symbol((3, dim("SEQ")), UUID(int=5), "n"),
            lambda: Symbol((3, None), UUID(int=5), "n", torch.float32),
        ],
    ),
    "Einsum": (
        lambda: Einsum.from_einsum_string("ab,bc->ac", X, Y, name="n"),
        [
            lambda: Einsum.from_einsum_string("ab,bc->ca", X, Y, name="n"),
            lambda: Einsum.from_einsum_string("ab,cb->ac", X, Y, name="n"),
            lambda: Einsum.from_einsum_string("ab,bc->ac", Y, X, name="n"),
        ],
    ),
    "Add": (lambda: Add(X, Y, name="n"), [lambda: Add(Y, X, name="n"), lambda: Add(X, Y, Y, name="n")]),
    "Rearrange": (
        lambda: Rearrange.from_string(X, "a b -> b a", "n"),
        [
            lambda: Rearrange.from_string(X, "a b -> (b a)", "n"),
            lambda: Rearrange.from_string(Y, "a b -> b a", "n"),
        ],
    ),
    "Index": (
        lambda: Index(X, I[torch.tensor([0, 2]), 1:], "n"),
        [
            lambda: Index(X, I[torch.tensor([0, 1]), 1:], "n"),
            lambda: Index(X, I[torch.tensor([0, 2]), 1], "n"),
            lambda: Index(X, I[torch.tensor([0, 2]), 1:3], "n"),
            lambda: Index(X, I[torch.tensor([0, -1]), 1:], "n"),
        ],
    ),
    "Concat": (lambda: Concat(X, Y, axis=-1, name="n"), [lambda: Concat(X, Y, axis=0, name="n")]),
    "Scatter": (
        lambda: Scatter(X, I[1:4], (5, 3), "n"),
        [lambda: Scatter(X, I[2:5], (5, 3), "n"), lambda: Scatter(X, I[1:4], (6, 3), "n")],
    ),
    "GeneralFunction": (
        lambda: exp(X, "n"),
        [
            lambda: GeneralFunction.new_by_name(X, spec_name="log_softmax", name="n"),
            lambda: GeneralFunction.new_cast(X, output=TorchDeviceDtypeOp(dtype="float64"), name="n"),
        ],
    ),
    "Module": (module, [lambda: module(batchable=False), lambda: module(expandable=False)]),
    "Tag": (
        lambda: Tag(X, UUID(int=5), "n"),
        [lambda: Tag(X, UUID(int=6), "n"), lambda: Tag(Y, UUID(int=5), "n")],
    ),
    "DiscreteVar": (
        lambda: DiscreteVar(X, GROUP, "n"),
        [lambda: DiscreteVar(Y, GROUP, "n"), *[lambda: DiscreteVar(X, None, "n")] * 2],
    ),
    "SetSymbolicShape": (
        lambda: SetSymbolicShape(X, (dim("A"), 3), "n"),
        [lambda: SetSymbolicShape(X, (dim("B"), 3), "n"), lambda: SetSymbolicShape(X, (3, 3), "n")],
    ),
}


@pytest.mark.parametrize("kind", BUILDS)
def test_the_same_construction_is_the_same_object_and_another_is_not(kind: str) -> None:
    build, others = BUILDS[kind]
    node = build()
    assert node.kind == kind
    assert build() is node
    different = [other() for other in others]
    assert len({node, *different}) == 1 + len(different)


@pytest.mark.parametrize("kind", BUILDS)
def test_a_name_is_part_of_identity_and_no_name_is_not_an_empty_one(kind: str) -> None:
    node = BUILDS[kind][0]()
    named, empty, nameless = node.rename("another"), node.rename(""), node.rename(None)
    assert len({node, named, empty, nameless}) == 4
    assert (empty.name, empty.op_name, nameless.name, nameless.op_name) == ("", "", "", None)
    assert nameless.rename("another") is named
    assert named.rename(node.op_name) is node
    assert named.shape == node.shape and named.torch_dtype is node.torch_dtype
    assert [*map(id, named.children)] == [*map(id, node.children)]


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_interned(name: str) -> None:
    assert CASES[name](torch.float64) is CASES[name](torch.float64)


@given(SEEDS)
def test_random_circuits_are_interned_and_rebuild_to_themselves(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    assert random_circuit(Random(seed)) is circuit
    for node in postorder(circuit):
        assert node.with_children(node.children) is node
        assert node.expand(node.children) is node
        rebuilt = node.with_children(tuple(child.rename("z") for child in node.children))
        assert rebuilt.with_children(node.children) is node


def test_spellings_of_one_thing_are_one_node() -> None:
    assert Concat(X, Y, axis=-1) is Concat(X, Y, axis=1)
    assert Index(X, I[1]) is Index(X, I[1, :]) is Index(X, I[torch.tensor(1), ...])
    assert Index(X, I[[0, 2]]) is Index(X, I[torch.tensor([0, 2], dtype=torch.int32)])
    assert Scalar(1) is Scalar(1.0) is Scalar(torch.tensor(1.0))  # type: ignore[arg-type]
    assert Einsum((X, (5, 7)), out_axes=(7, 5)).children[0] is X
    as_name, as_dtype = (TorchDeviceDtypeOp(dtype=d) for d in ("float64", torch.float64))
    assert GeneralFunction.new_cast(X, output=as_name) is GeneralFunction.new_cast(X, output=as_dtype)


def test_scalars_are_told_apart_by_their_bits() -> None:
    assert Scalar(0.0) is not Scalar(-0.0)
    assert math.copysign(1, Scalar(-0.0).value) == -1
    assert Scalar(math.nan) is Scalar(math.nan)
    assert Scalar(1e300) is not Scalar(math.nextafter(1e300, 0))
    for value in (0.1, 5e-324, -math.inf, 1.7976931348623157e308):
        assert Scalar(value).value == value


class TestArraysByContent:
    def test_equal_content_in_any_layout(self) -> None:
        value = tensor(4, 6, seed=3)
        node = Array(value, "w")
        padded = torch.cat([value, value], 1)
        assert Array(value.clone(), "w") is node
        assert Array(value.T.contiguous().T, "w") is node
        assert Array(padded[:, :6], "w") is node
        assert Array(value[:, None].expand(4, 2, 6)[:, 1], "w") is node
        assert Array(torch.nn.Parameter(value), "w") is node
        assert not node.value.requires_grad

    def test_a_transposed_view_is_another(self) -> None:
        value = tensor(4, 4, seed=3)
        assert Array(value.T, "w") is not Array(value, "w")
        assert torch.equal(evaluate(Array(value.T, "w")), value.T)

    def test_layouts_in_chunks_hash_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tapeout.ir.hashing as module

        monkeypatch.setattr(module, "_CHUNK", 8)
        value = tensor(7, 5, 3, seed=4)
        hashes = {
            module.hash_tensor(v) for v in (value, value.clone(), value.permute(2, 0, 1).contiguous().permute(1, 2, 0))
        }
        assert len(hashes) == 1
        assert module.hash_tensor(value.permute(1, 0, 2)) not in hashes

    @pytest.mark.parametrize(
        "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.int8, torch.bool]
    )
    def test_every_dtype(self, dtype: torch.dtype) -> None:
        value = torch.tensor([[0, 1], [1, 1]]).to(dtype)
        assert Array(value.clone(), "w") is Array(value, "w")
        assert Array(value.T.clone(), "w") is Array(value, "w")  # symmetric
        assert Array(value.flip(0), "w") is not Array(value, "w")
        assert Array(value, "w").torch_dtype is dtype

    @pytest.mark.parametrize("shape", [(), (0,), (2, 0), (0, 2), (1, 1)])
    def test_small_and_empty_shapes(self, shape: tuple[int, ...]) -> None:
        assert Array(torch.zeros(shape), "w") is Array(torch.zeros(shape), "w")
        assert Array(torch.zeros(shape), "w").shape == shape

    def test_zeros_of_different_sign_and_shape_are_different(self) -> None:
        assert Array(torch.tensor([0.0])) is not Array(torch.tensor([-0.0]))
        assert Array(torch.tensor([math.nan])) is Array(torch.tensor([math.nan]))
        assert Array(torch.zeros(2, 0)) is not Array(torch.zeros(0, 2))

    def test_the_tensor_is_kept_not_copied(self) -> None:
        value = tensor(5, seed=5)
        assert Array(value, "w").value.data_ptr() == value.data_ptr()
        assert Array(value, "w").rename("v").value.data_ptr() == value.data_ptr()

    def test_a_tensor_is_hashed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tapeout.ir.nodes.array as module

        calls = []
        original = module.hash_tensor
        monkeypatch.setattr(module, "hash_tensor", lambda value: calls.append(1) or original(value))
        value = tensor(50, seed=6)
        node = Array(value, "w")
        again = [Array(value, "w"), Array(value, "v"), Array(value[:], "u"), Array(value.detach(), "w")]
        assert len(calls) == 1
        assert again[0] is again[3] is node

    def test_written_to_afterwards_is_an_error(self) -> None:
        value = tensor(5, seed=7)
        node = Array(value, "weights")
        value[2] = 0
        with pytest.raises(TypeMismatchError, match=r"(?s)'weights'.*written to.*hint: .*clone"):
            _ = node.value

    def test_built_anew_after_a_write_it_has_the_new_content(self) -> None:
        value = tensor(5, seed=8)
        before = Array(value, "w")
        value += 1
        after = Array(value, "w")
        assert after is not before
        assert torch.equal(after.value, tensor(5, seed=8) + 1)

    def test_a_spoiled_node_recovers_with_the_next_tensor_of_its_content(self) -> None:
        value = tensor(5, seed=9)
        node = Array(value, "w")
        value += 1
        assert Array(tensor(5, seed=9), "w") is node
        assert torch.equal(node.value, tensor(5, seed=9))

    def test_only_tensors(self) -> None:
        with pytest.raises(TypeMismatchError, match=r"(?s)not list.*'w'.*hint: wrap numbers with torch\.tensor"):
            Array([1, 2], "w")  # type: ignore[arg-type]

    def test_randn_is_deterministic_by_seed_and_leaves_global_state_alone(self) -> None:
        before = torch.get_rng_state()
        assert Array.randn(2, 3, seed=1) is Array.randn(2, 3, seed=1)
        assert Array.randn(2, 3, seed=1) is not Array.randn(2, 3, seed=2)
        assert torch.equal(torch.get_rng_state(), before)
        assert Array.randn(seed=1).shape == ()


class TestFreeing:
    def check_freed(self, build: Callable[[], Circuit]) -> None:
        circuit = build()
        circuit.get("nothing")  # fills what is remembered for searches
        _ = circuit.free_symbols
        nodes = [weakref.ref(node) for node in postorder(circuit)]
        own = [i for i, node in enumerate(postorder(circuit)) if node.name.startswith("own")]
        assert own
        del circuit
        gc.collect()
        assert [i for i in own if nodes[i]() is not None] == []

    def test_a_dropped_circuit_is_freed(self) -> None:
        self.check_freed(
            lambda: Add(exp(Array(tensor(4, seed=20), "own x"), "own exp"), Scalar(7.25, (), "own s"), name="own")
        )

    def test_a_module_and_what_it_remembers_of_its_body(self) -> None:
        def build() -> Circuit:
            s = Symbol((None,), UUID(int=77), "own s")
            spec = ModuleSpec(exp(s, "own body"), [ModuleArgSpec(s)])
            call = Module(spec, "own call", **{"own s": Array(tensor(3, 4, seed=21), "own x")})
            call.conform_to_input_shapes().substitute().evaluate()
            return Add(call, call.conform_to_input_shapes(), call.substitute(), name="own sum")

        self.check_freed(build)

    def test_a_big_tensor(self) -> None:
        value = torch.randn(1 << 18)
        reference = weakref.ref(value)
        pointer = value.untyped_storage().data_ptr()
        circuit = exp(Array(value, "big").index(I[5:]))
        circuit.evaluate()
        del value
        assert next(n for n in postorder(circuit) if isinstance(n, Array)).value.untyped_storage().data_ptr() == pointer
        del circuit
        gc.collect()
        assert reference() is None

    def test_the_table_does_not_grow_without_end(self) -> None:
        import tapeout.ir.circuit as module

        gc.collect()
        sizes = []
        for start in range(0, 100_000, 25_000):
            for i in range(start, start + 25_000):
                Scalar(float(i), (), "own")
            sizes.append(len(module._nodes))
        assert sizes[-1] < 50_000


@pytest.mark.parametrize("kind", BUILDS)
def test_copies_are_the_node_itself(kind: str) -> None:
    node = BUILDS[kind][0]()
    assert copy.copy(node) is node
    assert copy.deepcopy(node) is node
    assert copy.deepcopy({"a": [node]})["a"][0] is node


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="a Circuit is not pickled"):
        pickle.dumps(X, protocol)


def test_nodes_are_compared_by_identity_and_hash_by_it() -> None:
    assert X == X and X != Y
    assert {X: 1, Y: 2}[X] == 1
    assert X != "x"


def test_two_variables_are_two_and_so_are_two_groups() -> None:
    assert DiscreteVar(X) is not DiscreteVar(X)
    groups = [DiscreteVar.uniform_probs_and_group(3) for _ in range(2)]
    assert groups[0] is not groups[1]
    assert Tag.new_with_random_uuid(X) is not Tag.new_with_random_uuid(X)
    assert Symbol.new_with_random_uuid((3,), "s") is not Symbol.new_with_random_uuid((3,), "s")
    assert Symbol.new_with_none_uuid((3,), "s") is Symbol.new_with_none_uuid((3,), "s")
