"""The fx backend: a GraphModule that a person can read, copy, export and differentiate."""

from __future__ import annotations

import ast
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any
from uuid import UUID

import pytest
import torch
from harness import integers, symbol, tensor
from hypothesis import given, settings
from random_models import fresh, gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.common.program import Program
from tapeout.backends.fx import lower
from tapeout.compiler import Compiled, compile
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Scalar,
    Symbol,
)
from tapeout.ir.errors import LoweringError, TapeoutError, UnsupportedError
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

LENGTH = 6
MODELS: dict[str, Callable[..., Any]] = {
    "gpt2": lambda layers: gpt2(n_head=4, n_embd=16, n_layer=layers),
    "llama": lambda layers: llama(num_hidden_layers=layers),
}


def module_of(compiled: Compiled) -> torch.fx.GraphModule:
    return compiled.executable.module  # type: ignore[attr-defined,no-any-return]


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return integers(rows, LENGTH, below=11, seed=rows), integers(rows, 2, below=11, seed=rows + 1)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Compiled]:
    """A model of three layers, and its logit difference compiled."""
    model = fresh(MODELS[request.param](3))
    return model, compile(difference(by_head_and_position(model, LENGTH)), inputs=["tokens", "labels"])


# -- what a graph is like


def test_the_graph_is_sound_and_holds_nothing_that_is_not_used(model: tuple[Any, Compiled]) -> None:
    module = module_of(model[1])
    module.graph.lint()
    assert all(node.users for node in module.graph.nodes if node.op not in ("output", "placeholder"))
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    assert read == {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    assert not module.training


def test_nodes_are_called_after_the_circuit_and_say_where_they_come_from(model: tuple[Any, Compiled]) -> None:
    module = module_of(model[1])
    names = {node.name for node in module.graph.nodes}
    assert {"tokens", "labels", "a0_norm", "m1_norm", "a1_input", "final_input", "logit_diff"} <= names
    for node in module.graph.nodes:
        if node.op.startswith("call") and node.target != "size":
            assert node.meta["origin"] and "shape" in node.meta, node
    (last,) = [node for node in module.graph.nodes if node.name == "a1_input"]
    assert last.meta["origin"] == "a1.input" and last.meta["shape"].startswith("[BATCH,6,")


def test_weights_are_the_models_own_memory(model: tuple[Any, Compiled]) -> None:
    whole, compiled = model
    own = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    for name, value in module_of(compiled).named_parameters():
        assert value.untyped_storage().data_ptr() in own or name.startswith("t_a_c") or name == "signs", name
    assert compiled.packed_bytes == 0


def test_constants_of_one_content_are_held_once() -> None:
    x = symbol(1, (3,), "x")
    value = tensor(3, 3)
    circuit = Add(
        *(Einsum.from_einsum_string("a,ab->b", x, Array(v, n)) for v, n in ((value, "w"), (value.clone(), "v")))
    )
    compiled = compile(circuit, inputs=["x"], dtype="float64", level=0)
    assert len(list(module_of(compiled).parameters())) == 1


def test_a_view_of_a_weight_is_no_copy_and_picked_rows_are_made_at_each_call() -> None:
    whole = Array(tensor(4, 3), "w")
    part, picked = Index(whole, (slice(1, 3),)), Index(whole, (torch.tensor([3, 0]),))
    module, packed = lower(Program([Add(part, picked)], dtype=torch.float64))
    assert {p.untyped_storage().data_ptr() for p in module.parameters()} == {whole.value.untyped_storage().data_ptr()}
    assert packed == 0
    assert_close(module(), Add(part, picked).evaluate())


def test_copies_of_weights_in_another_layout_are_counted() -> None:
    picked = Index(Array(tensor(4, 3, 5, dtype=torch.float32), "w"), (torch.tensor([3, 0]),))
    x = Array(tensor(2, 5, dtype=torch.float32), "x")
    data = symbol(2, (2, 5), "y")
    circuit = Einsum.from_einsum_string("sh,ndh->snd", data, picked)
    compiled = compile(circuit, inputs=["y"])
    assert compiled.packed_bytes == 2 * 3 * 5 * 4
    out = compiled(y=x.value[None])
    assert_close(out[0], circuit.update("y", lambda _: x).evaluate("float64"), torch.float32)


# -- its source


@pytest.mark.parametrize(("family", "most"), [("gpt2", 25), ("llama", 28)])
def test_a_layer_is_few_lines(family: str, most: int) -> None:
    lines = []
    for layers in (2, 3):
        circuit = difference(by_head_and_position(MODELS[family](layers), LENGTH))
        source = compile(circuit, inputs=["tokens", "labels"]).source
        ast.parse(source)
        lines.append(len(source.splitlines()))
    assert lines[1] - lines[0] <= most


def test_source_reads_as_it_would_be_written(model: tuple[Any, Compiled], golden: Callable[[str, str], None]) -> None:
    source = model[1].source
    assert source.startswith("def forward(self, tokens, labels):")
    assert "= None" not in source.replace("attn_mask = None", "") and "_C" not in source
    golden(f"source_{type(model[0]).__name__}", source)


# -- what can be done with it


def test_it_can_be_copied(model: tuple[Any, Compiled]) -> None:
    module = module_of(model[1])
    twin = deepcopy(module)
    assert torch.equal(twin(*data(3)), module(*data(3)))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in module.parameters()}


def test_it_can_be_exported_for_any_batch(model: tuple[Any, Compiled]) -> None:
    module, batch = module_of(model[1]), torch.export.Dim("batch")
    exported = torch.export.export(module, data(3), dynamic_shapes=({0: batch}, {0: batch})).module()
    for rows in (2, 7):
        assert_close(exported(*data(rows)), module(*data(rows)), torch.float32)


def test_gradients_flow_to_weights_and_inputs(model: tuple[Any, Compiled]) -> None:
    module = deepcopy(module_of(model[1]))
    for parameter in module.parameters():
        assert not parameter.requires_grad
        parameter.requires_grad_(True)
    module(*data(3)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_the_gradient_with_respect_to_a_head_is_that_of_its_definition(model: tuple[Any, Compiled]) -> None:
    """The logit difference as a function of one head's output at one position, against finite differences."""
    circuit = difference(by_head_and_position(model[0], LENGTH))
    head = circuit.get_unique("a0_h1_t3")
    given = Symbol(head.shape, UUID(int=7), "head")
    compiled = compile(
        circuit.update("a0_h1_t3", lambda _: given), inputs=["tokens", "labels", "head"], dtype="float64"
    )
    tokens, labels = data(1)
    x = tensor(1, *map(int, head.shape)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(module_of(compiled)(tokens, labels, x).sum(), x)
    for place in (0, int(head.shape[-1]) - 1):  # type: ignore[call-overload]
        step = torch.zeros_like(x)
        step[0, 0, place] = 1e-5
        up, down = (compiled(tokens=tokens, labels=labels, head=(x + s).detach()) for s in (step, -step))
        assert abs(float(gradient[0, 0, place]) - float((up - down).sum()) / 2e-5) < 1e-6


def test_a_call_records_no_gradient(model: tuple[Any, Compiled]) -> None:
    tokens, labels = data(2)
    assert not model[1](tokens=tokens, labels=labels).requires_grad


# -- random circuits, and refusals


@settings(max_examples=40)
@given(SEEDS)
def test_random_graphs_are_sound(seed: int) -> None:
    compiled = compile(random_circuit(Random(seed)), dtype="float64", level=seed % 2)
    module = module_of(compiled)
    module.graph.lint()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    assert read == {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    ast.parse(compiled.source)


def test_many_operands_are_multiplied_two_at_a_time() -> None:
    names = ["x", "y", "z", "v"]
    nodes = [
        symbol(20 + i, shape, name)
        for i, (shape, name) in enumerate(zip([(4, 5), (5, 6), (6, 7), (7,)], names, strict=True))
    ]
    circuit = Einsum.from_einsum_string("ab,bc,cd,d->a", *nodes)
    compiled = compile(circuit, inputs=names, dtype="float64")
    assert compiled.source.count("einsum") == 3
    values = {
        name: tensor(2, *map(int, node.shape), seed=i) for i, (name, node) in enumerate(zip(names, nodes, strict=True))
    }
    assert_close(compiled(**values), torch.einsum("nab,nbc,ncd,nd->na", *values.values()))


def test_what_cannot_be_lowered_says_why() -> None:
    x = symbol(1, (3,), "x")
    spec = ModuleSpec(Add(x, x), [ModuleArgSpec(x)])
    refused: list[tuple[Circuit, type[TapeoutError]]] = [
        (x, LoweringError),
        (DiscreteVar(Array(tensor(2, 3), "rows")), UnsupportedError),
        (Module(spec, "call", x=Array(tensor(3), "y")), TapeoutError),
    ]
    for circuit, error in refused:
        with pytest.raises(error):
            lower(Program([circuit]))


def test_names_that_are_no_identifiers() -> None:
    x, y = symbol(1, (2,), "3 x-y"), symbol(2, (2,), "3 x y")
    z = Add(x, y, Scalar(1.0), name="a.b c/d")
    function = GeneralFunction.new_by_name(z, spec_name="tanh", name="def")
    compiled = compile(function, inputs=[x, y], dtype="float64")
    ast.parse(compiled.source)
    out = module_of(compiled)(tensor(4, 2), tensor(4, 2, seed=1))
    assert_close(out, torch.tanh(tensor(4, 2) + tensor(4, 2, seed=1) + 1))
