"""Inline: no modules, no names but symbols', the same value, and a map to the names that were there."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from harness import symbol, tensor
from hypothesis import given
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Symbol,
    circuit_text,
    postorder,
)
from tapeout.passes.execution import Origins
from tapeout.passes.inline import Inline
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS


def inlined(circuit: Circuit) -> tuple[Circuit, Origins]:
    origins = Origins()
    (new,) = Inline().run_many((circuit,), origins)
    return new, origins


def check_form(circuit: Circuit) -> None:
    for node in postorder(circuit):
        assert not isinstance(node, Module)
        assert isinstance(node, Symbol) or node.op_name is None, node


def call() -> Circuit:
    x, w = symbol(1, (3,), "x"), symbol(2, (2, 3), "w")
    body = Add(Einsum.from_einsum_string("i,oi->o", x, w, name="wx"), Array(tensor(2), "bias"), name="affine")
    spec = ModuleSpec(body, [ModuleArgSpec(x), ModuleArgSpec(w)])
    return Module(spec, "call", x=Array(tensor(4, 3), "data"), w=symbol(3, (2, 3), "given"))


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = call()
    after, origins = inlined(before)
    names = [f"{index}: {origins.get(node)}" for index, node in enumerate(postorder(after))]
    golden("inline", "\n".join([circuit_text(before), "# becomes", circuit_text(after), "# origins", *names]))


def test_names_are_kept_beside_the_circuit() -> None:
    after, origins = inlined(call())
    assert origins[after] == "call" and set(origins.values()) >= {"call", "data", "given", "bias"}


def test_equal_structure_under_two_names_is_one_node() -> None:
    x = symbol(1, (3,), "x")
    twins = Add(*(Einsum.scalar_mul(x, 2.0, name) for name in ("a", "b")), name="sum")
    after, origins = inlined(twins)
    assert after.children[0] is after.children[1] and origins[after.children[0]] == "a"


def test_twice_is_once() -> None:
    for build in CASES.values():
        after, _ = inlined(build(tensor(1).dtype))
        assert inlined(after)[0] is after


def test_models() -> None:
    for model in (gpt2(), llama()):
        after, origins = inlined(difference(by_head_and_position(model, 5)))
        check_form(after)
        assert {"a0.norm", "a1.h0", "logits_at_end", "logit_diff"} <= set(origins.values())


@given(SEEDS)
def test_random_circuits_keep_their_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    after, _ = inlined(circuit)
    check_form(after)
    assert_close(after.evaluate("float64"), circuit.evaluate("float64"))
