"""Simplify: every rule in a golden text, values, normal forms, and what happens if rules go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import UUID

import pytest
import tiny
import torch
from harness import symbol, tensor
from hypothesis import given

from tapeout.backends.reference import evaluate_many
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
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
    circuit_text,
    dim,
    last_dim_size,
    max,
    postorder,
    rsqrt,
    substitute_symbols,
)
from tapeout.ir.errors import PassError
from tapeout.models import circuit_of, split_circuit
from tapeout.passes import strip_names, substitute_all_modules
from tapeout.passes.execution import Origins
from tapeout.passes.rules import RULES, rule_name
from tapeout.passes.simplify import Simplifier, Simplify
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

RULE_NAMES = [rule_name(rule) for rules in RULES.values() for rule in rules]


def leaf(*shape: int) -> Array:
    return Array(tensor(*shape, seed=sum(shape) + 10 * len(shape)))


X = leaf(3)
XY = leaf(2, 3)
XYZ = leaf(2, 3, 4)
IJ = leaf(3, 2)
TWO, FIVE = Scalar(2.0), Scalar(5.0)


def product(string: str, *nodes: Circuit) -> Circuit:
    return Einsum.from_einsum_string(string, *nodes, name=None)


def arranged(node: Circuit, string: str) -> Circuit:
    return Rearrange.from_string(node, string, name=None)


def at(node: Circuit, *index: Any) -> Circuit:
    return Index(node, index, name=None)


def joined(*nodes: Circuit, axis: int = 0) -> Circuit:
    return Concat(*nodes, axis=axis, name=None)


EXAMPLES: dict[str, Circuit] = {
    "last_dim_size_of_known": last_dim_size(XY, name=None),
    "function_of_scalars": rsqrt(Scalar(4.0, (2,)), name=None),
    "extremum_of_scalar": max(Scalar(2.0, (2, 3)), name=None),
    "einsum_of_nothing": Einsum.empty(),
    "einsum_with_zero": product("ab,->a", XY, Scalar(0.0)),
    "einsum_of_scalars": product("ab,a->b", Scalar(2.0, (3, 2)), Scalar(5.0, (3,))),
    "einsum_repeats": product("ab,z,a->abz", XY, Scalar(-1.0, (1,)), Scalar(0.5, (2,))),
    "einsum_scalars_last": product(",a,a,b->a", TWO, X, Scalar(3.0, (3,)), Scalar(1.0, (5,))),
    "einsum_times_one": product("ab,->a", XY, Scalar(1.0)),
    "einsum_identity": product("ab->ab", XY),
    "einsum_permutes": product("abc->cab", XYZ),
    "einsum_scales_scaled": product("a,->a", product("a,->a", product("ab->a", XY), TWO), FIVE),
    "einsum_renumbered": product("qd,dc->qc", XY, IJ),
    "add_of_nothing": Add(name=None),
    "add_of_one": Add(XY, name=None),
    "add_of_scalars": Add(TWO, Scalar(5.0, (2,)), name=None),
    "add_zero": Add(X, Scalar(0.0, (3,)), XY, name=None),
    "add_scalars_last": Add(TWO, X, Scalar(5.0, (2, 3)), name=None),
    "index_canonical": at(XYZ, -1, slice(0, 3), torch.tensor([1, 2])),
    "index_of_everything": at(XY, slice(0, None), slice(-3, None)),
    "index_of_scalar": at(Scalar(2.0, (2, 3)), 1),
    "index_of_index": at(at(XYZ, slice(None), slice(1, 3), torch.tensor([3, 0, 2])), 1, -1, slice(0, 2)),
    "index_of_concat": at(joined(XY, leaf(4, 3)), slice(3, 5)),
    "index_of_rearrange": at(arranged(XY, "a b -> b 1 a 4"), 1, 0, slice(None), slice(1, 3)),
    "concat_of_one": joined(XY),
    "concat_of_concat": joined(XY, joined(X_ := leaf(1, 3), XY)),
    "concat_of_empty": joined(XY, at(XY, slice(1, 1)), X_),
    "concat_of_scalars": joined(Scalar(2.0, (2, 3)), Scalar(2.0, (4, 3)), XY),
    "concat_of_slices": joined(
        *(at(XYZ, 1, slice(i, i + 1)) for i in range(3)), at(XYZ, 0, slice(1, 2)), at(XYZ, 0, slice(2, 3))
    ),
    "rearrange_of_scalar": arranged(Scalar(2.0, (2, 3)), "a b -> (b a)"),
    "rearrange_of_rearrange": arranged(arranged(XYZ, "a b c -> c a b"), "c a b -> (c a) b 2"),
    "rearrange_canonical": arranged(XYZ, "a b (c:2 d e:1) -> b a (c d) e"),
    "rearrange_identity": arranged(XY, "a b -> a b"),
    "scatter_of_zero": Scatter(Scalar(0.0, (2,)), I[1:3], (4,), name=None),
    "scatter_everywhere": Scatter(XY, I[0:2, torch.tensor([0, 1, 2])], (2, 3), name=None),
    "scatter_canonical": Scatter(XY, I[-2:, :], (4, 3), name=None),
    "tag": Tag(XY, UUID(int=7), name=None),
    "set_symbolic_shape": SetSymbolicShape(XY, (dim("SEQ"), 3), name=None),
}
"""For each rule a circuit to which it applies."""


def simplified(circuit: Circuit, fired: Counter[str] | None = None) -> Circuit:
    return Simplify(fired=fired)(circuit)


def same_value(before: Circuit, after: Circuit) -> None:
    old, new = before.evaluate(torch.float64), after.evaluate(torch.float64)
    torch.testing.assert_close(new.to(old.dtype), old, rtol=1e-12, atol=1e-12 * float(1 + old.abs().sum()))


def counted(circuit: Circuit) -> Counter[str]:
    return Counter(node.kind for node in postorder(circuit))


# -- rules


def test_every_rule_has_an_example() -> None:
    assert list(EXAMPLES) == RULE_NAMES


@pytest.mark.parametrize("name", RULE_NAMES)
def test_example(name: str) -> None:
    fired: Counter[str] = Counter()
    before = EXAMPLES[name]
    after = simplified(before, fired)
    assert fired[name] >= 1
    assert after.shape == before.shape
    same_value(before, after)
    assert simplified(after) is after


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.kind)
def test_rules_in_text(kind: type[Circuit], golden: Callable[[str, str], None]) -> None:
    texts = []
    for rule in RULES[kind]:
        before = EXAMPLES[rule_name(rule)]
        texts.append(f"{rule_name(rule)}: {rule.__doc__}")
        texts += ["before", circuit_text(before), "after", circuit_text(simplified(before)), ""]
    golden(f"simplify_{kind.kind}", "\n".join(texts))


def test_every_rule_says_what_it_does() -> None:
    for rules in RULES.values():
        for rule in rules:
            assert rule.__doc__ and "-->" in rule.__doc__.partition("\n")[0]


# -- what is left alone


def test_weights_are_not_looked_at() -> None:
    x = symbol(1, (2, 3), "x")
    zero, one = Array(torch.zeros(3)), Array(torch.ones(3))
    kept = Add(Einsum.from_einsum_string("ab,b->ab", x, one, name=None), zero, name=None)
    assert simplified(kept) is kept


@pytest.mark.parametrize(
    "kept",
    [
        Add(X, Scalar(0.0, (2, 3)), name=None),  # 0 makes the sum larger
        product("ab,bc,cd->ad", XY, IJ, leaf(2, 4)),
        product("ab,bc->ac", product("ab,cb->ac", XY, leaf(2, 3)), leaf(2, 3)),
        Add(Add(XY, X, name=None), X, name=None),
        product("a,b->ba", X, leaf(2)),
        product("ab->a", XY),
        product("aa->a", leaf(3, 3)),
        at(XY, 0),
        joined(at(XY, slice(1, 2)), at(XY, slice(0, 1))),
        joined(at(XYZ, 0, slice(0, 1)), at(XYZ, 1, slice(1, 2))),
        Add(Array(torch.tensor([1, 2])), Scalar(0.0), name=None),  # a number beside integers
        Scatter(XY, I[0:2], (4, 3), name=None),
    ],
    ids=lambda node: node._text() or node.kind,
)
def test_left_alone(kept: Circuit) -> None:
    assert simplified(kept) is kept


def test_diagonals_of_numbers_stay() -> None:
    diagonal = product("a->aa", Scalar(2.0, (3,)))
    assert simplified(diagonal) is diagonal
    beside = product("a,b->abb", X, Scalar(2.0, (2,)))
    same_value(beside, simplified(beside))


def test_tags_stay_beside_random_variables() -> None:
    group = DiscreteVar.uniform_probs_and_group(2)
    var = DiscreteVar(XY, group, name=None)
    kept = simplified(Add(var, Tag(X, UUID(int=1), name=None), name=None))
    assert counted(kept)["Tag"] == 2


def test_symbolic_sizes() -> None:
    rows = dim("ROWS")
    x = symbol(1, (rows, 4), "x")
    size = last_dim_size(x, name=None)
    assert simplified(size) is Scalar(4.0, (rows,))
    assert simplified(product("ab,a->a", x, rsqrt(size, name=None))) is product("ab,->a", x, Scalar(0.5))
    unknown = last_dim_size(arranged(x, "a b -> b a"), name=None)
    assert simplified(unknown).kind == "GeneralFunction"
    summed = product("a,b->b", Scalar(2.0, (rows,)), X)
    assert simplified(summed) is summed
    joined_again = joined(at(x, slice(0, 2)), at(x, slice(2, None)))
    assert simplified(joined_again) is x
    assert simplified(arranged(arranged(x, "a b -> a 1 b"), "a 1 b -> (a b)")) is arranged(x, "a b -> (a b)")


def test_a_size_that_only_one_node_knows_is_kept() -> None:
    x = symbol(1, (None,), "x")
    named = SetSymbolicShape(x, (4,), name=None)
    assert simplified(named) is named
    times_ones = product("a,a->a", x, Scalar(1.0, (4,)))
    assert simplified(times_ones).shape == (4,)


# -- circuits


@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    circuit = strip_names(substitute_all_modules(random_circuit(Random(seed))))
    after = simplified(circuit)
    same_value(circuit, after)
    assert simplified(after) is after


@pytest.mark.parametrize("name", CASES)
def test_catalogue(name: str) -> None:
    circuit = strip_names(substitute_all_modules(CASES[name](torch.float64)))
    after = simplified(circuit)
    same_value(circuit, after)
    assert simplified(after) is after


def split(model: Any, length: int = 4) -> Circuit:
    circuits, info = circuit_of(model)
    return logit_diff_circuit(split_circuit(circuits, info, length)[0])


MODELS = {"gpt2": lambda: tiny.gpt2(11), "llama": lambda: tiny.llama(11)}


@pytest.mark.parametrize("family", MODELS)
def test_split_models(family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (3, 4), generator=generator)
    metric = bind_dataset(split(MODELS[family]()), tokens, tokens[:, :2])
    circuit = strip_names(substitute_all_modules(metric))
    fired: Counter[str] = Counter()
    after = simplified(circuit, fired)
    same_value(circuit, after)
    assert simplified(after) is after
    kinds = counted(after)
    assert kinds["Concat"] == 0 and fired["concat_of_slices"] >= 6
    assert not any(node.kind == "GeneralFunction" and node._text() == "last_dim_size" for node in postorder(after))
    assert all(node.shape == () for node in postorder(after) if isinstance(node, Scalar))
    assert sum(kinds.values()) < 0.85 * sum(counted(circuit).values())


@pytest.mark.parametrize("family", MODELS)
def test_split_models_with_a_symbolic_batch(family: str) -> None:
    circuit = strip_names(substitute_all_modules(split(MODELS[family]())))
    tokens = circuit.get_unique("tokens").cast_symbol()
    batched = Symbol((dim("BATCH"), 4), tokens.uuid, "tokens", torch.int64)
    over_batch = substitute_symbols(circuit, {tokens: batched})
    after = simplified(over_batch)
    assert simplified(after) is after
    assert counted(after)["Concat"] == 0
    values = {batched: torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(1))}
    bound = {batched: Array(values[batched])}
    before_value, after_value = (
        evaluate_many([substitute_symbols(each, bound)], torch.float64)[0] for each in (over_batch, after)
    )
    torch.testing.assert_close(after_value, before_value, rtol=1e-12, atol=1e-12)


def test_deep_circuits() -> None:
    x: Circuit = symbol(1, (3,), "x")
    for _ in range(20_000):
        x = Einsum.scalar_mul(Add(x, Scalar(0.0), name=None), -1.0, name=None)
    assert simplified(x) is simplified(Add(symbol(1, (3,), "x"), name=None))


def test_roots_share_and_origins_are_handed_on() -> None:
    origins = Origins()
    one = product("a,->a", X, Scalar(1.0))
    origins[one] = "one"
    two = Add(one, FIVE, name=None)
    origins[two] = "two"
    first, second = Simplify().run_many((one, two), origins)
    assert first is X and origins[X] == "one"
    assert second is Add(X, FIVE, name=None) and origins[second] == "two"
    roots = (first, second)
    assert Simplify().run_many(roots, origins) is roots


# -- mistakes


def test_modules_are_refused() -> None:
    x = symbol(1, (3,), "x")
    module = Module(ModuleSpec(Add(x, x), [ModuleArgSpec(x)]), "call", x=X)
    with pytest.raises(PassError, match="call"):
        simplified(module)


def test_a_budget_names_the_rule() -> None:
    with pytest.raises(PassError, match=r"after 0 rewrites.*the last rule was einsum_renumbered"):
        Simplify(budget=0)(EXAMPLES["einsum_renumbered"])


def _run(rule: Callable[[Any], Circuit | None], node: Circuit) -> Circuit:
    return Simplifier({type(node): (rule,)}, 50, Origins(), Counter()).normal_form(node)


def test_rules_that_go_round_or_on_are_found() -> None:
    x, y = symbol(1, (3,), "x"), symbol(2, (3,), "y")

    def swap(node: Add) -> Circuit:
        return Add(*reversed(node.children), name=None)

    def wrap(node: Add) -> Circuit:
        return Add(node, Scalar(1.0), name=None)

    def grow(node: Add) -> Circuit:
        return Add(*node.children, Scalar(float(len(node.children))), name=None)

    def grow_below(node: Add) -> Circuit:
        return Add(Add(*node.children, Scalar(float(len(node.children))), name=None), x, name=None)

    for rule, message in (
        (swap, "goes round in a circle.*swap"),
        (wrap, "goes round in a circle.*wrap"),
        (grow, "after 50 rewrites.*grow"),
        (grow_below, "after 50 rewrites.*grow_below"),
    ):
        with pytest.raises(PassError, match=message):
            _run(rule, Add(x, y, name=None))


def test_what_is_known_to_be_normal_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Circuit] = []
    monkeypatch.setattr("tapeout.passes.simplify.RULES", {Add: (asked.append,)})
    inner = Add(Add(symbol(1, (3,), "x"), leaf(3), name=None), leaf(1), name=None)
    outer, origins = Add(inner, leaf(3), name=None), Origins()
    assert Simplify().run_many((inner,), origins) == (inner,)
    assert asked == [inner.children[0], inner]
    assert Simplify().run_many((outer, inner), origins) == (outer, inner)
    assert asked == [inner.children[0], inner, outer]
