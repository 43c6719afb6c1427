"""Running passes: records, observers, errors that say where they come from; and the registry of passes."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from harness import tensor
from random_models import bound_circuit, evaluate, gpt2, tokens_for

import tapeout.passes
from tapeout import Add, Array, Circuit, Einsum, PassError, Scalar, ShapeError, TapeoutError, circuit_text
from tapeout.passes import (
    PASSES,
    Pass,
    PassRecord,
    Pipeline,
    Rename,
    SplitToConcat,
    StripNames,
    SubstituteModules,
    To,
    configure_transformer,
    count_nodes,
    print_each,
    transformer_passes,
    verify,
)
from tapeout.passes.base import register


@pytest.fixture
def registry() -> Iterator[dict[str, type[Pass]]]:
    """The registry, as it was afterwards."""
    before = dict(PASSES)
    yield PASSES
    PASSES.clear()
    PASSES.update(before)


def example() -> Circuit:
    x = Array(tensor(3, 2), "x")
    return Add(x, Einsum.scalar_mul(x, 2.0, "double"), name="sum")


@dataclass(frozen=True)
class Doubled(Pass):
    """Says that it keeps the value, and doubles it."""

    name = "doubled"

    def run(self, circuit: Circuit) -> Circuit:
        return Einsum.scalar_mul(circuit, 2.0, circuit.name)


@dataclass(frozen=True)
class Reshaped(Pass):
    name = "reshaped"

    def run(self, circuit: Circuit) -> Circuit:
        return circuit.index([0])


@dataclass(frozen=True)
class Ablated(Pass):
    name = "ablated"
    kind = "edit"

    def run(self, circuit: Circuit) -> Circuit:
        return Scalar(0.0, circuit.shape, circuit.name)


# -- running


def test_passes_run_in_order_and_are_recorded() -> None:
    rename, split = Rename({"double": "twice"}), SplitToConcat("twice", 0)
    circuit = example()
    out, records = Pipeline([rename, split, Rename({"nothing": "new"})]).run(circuit)
    assert out is split(rename(circuit))
    assert [record.name for record in records] == ["rename", "split_to_concat", "rename"]
    nodes = [count_nodes(c) for c in (circuit, rename(circuit), out, out)]
    assert [(r.nodes_before, r.nodes_after) for r in records] == list(pairwise(nodes))
    assert nodes == [4, 4, 8, 8]
    assert [record.changed for record in records] == [True, True, False]
    assert all(record.seconds >= 0 for record in records)
    assert Pipeline([rename, split])(circuit) is out


def test_a_pipeline_of_nothing() -> None:
    circuit = example()
    assert Pipeline([]).run(circuit) == (circuit, [])


def test_observers_see_each_pass_as_it_ends() -> None:
    seen: list[tuple[str, str, str, PassRecord]] = []

    def observe(each: Pass, before: Circuit, after: Circuit, record: PassRecord) -> None:
        seen.append((each.name, before.name, after.name, record))

    passes = [Rename({"sum": "total"}), Rename({"total": "all"})]
    _, records = Pipeline(passes, [observe, observe]).run(example())
    assert [entry[:3] for entry in seen] == [("rename", "sum", "total")] * 2 + [("rename", "total", "all")] * 2
    assert [entry[3] for entry in seen[::2]] == records


def test_configure_transformer_hands_on_observers() -> None:
    names: list[str] = []
    circuit = bound_circuit(gpt2(), 4).get_unique("t.bind_w")
    configure_transformer(circuit, observers=[lambda each, *_: names.append(each.name)])
    assert names == [each.name for each in transformer_passes()]
    assert names == ["pull_up_bias", "push_down_weights", "clear_block_module"]


def test_an_error_says_in_which_pass_and_after_which() -> None:
    passes = [Rename({"double": "twice"}), StripNames(), SplitToConcat(Add, 5)]
    with pytest.raises(PassError) as caught:
        Pipeline(passes).run(example())
    (note,) = caught.value.__notes__
    assert note.startswith("in pass 'split_to_concat' on <")
    assert note.endswith("passes already run: rename, strip_names")
    with pytest.raises(PassError) as caught:
        Pipeline([SplitToConcat(Add, 5)]).run(example())
    assert caught.value.__notes__[0].endswith("passes already run: none")


def test_the_error_keeps_its_kind() -> None:
    with pytest.raises(ShapeError) as caught:
        Pipeline([SplitToConcat("sum", 0, (7,))]).run(example())
    assert "in pass 'split_to_concat'" in caught.value.__notes__[0]


# -- print


def test_printing_each_pass() -> None:
    lines: list[str] = []
    out = Pipeline([Rename({"double": "twice"}), Rename({"no": "thing"})], [print_each(lines.append)])(example())
    first, second = lines
    head, _, text = first.partition("\n")
    assert head.startswith("# after rename: 4 -> 4 nodes, ")
    assert text == circuit_text(out)
    assert second.endswith(" s\n(unchanged)")


# -- verify


def test_verify_catches_a_pass_that_changes_the_value() -> None:
    check = verify(lambda circuit: circuit.evaluate())
    with pytest.raises(PassError, match=r"'doubled' changed the value by \d.*tolerance 1e-09") as caught:
        Pipeline([Rename({"sum": "total"}), Doubled()], [check]).run(example())
    assert caught.value.hint


def test_verify_catches_a_pass_that_changes_the_shape() -> None:
    with pytest.raises(PassError, match=r"'reshaped' changed the shape from \[3, 2\] to \[2\]"):
        Pipeline([Reshaped()], [verify(lambda circuit: circuit.evaluate())]).run(example())


def test_verify_catches_not_a_number() -> None:
    values = iter([torch.zeros(2), torch.tensor([0.0, float("nan")])])
    with pytest.raises(PassError, match="changed the value by nan"):
        Pipeline([Rename({"sum": "total"})], [verify(lambda _: next(values))]).run(example())


def test_verify_lets_edits_and_kept_values_pass() -> None:
    evaluated: list[str] = []

    def evaluated_once(circuit: Circuit) -> torch.Tensor:
        evaluated.append(circuit.name)
        return circuit.evaluate()

    passes = [Rename({"sum": "total"}), SplitToConcat("total", 0), Rename({"no": "thing"}), Ablated()]
    out = Pipeline(passes, [verify(evaluated_once)])(example())
    assert out.evaluate().abs().max() == 0
    assert evaluated == [
        "sum",
        "total",
        "total",
        "total_by_pos",
    ]  # not for what is unchanged, not for the edit


def test_verify_is_relative_to_large_values() -> None:
    for scale, fails in ((1.0, True), (1e6, False)):
        values = iter([torch.full((2,), scale), torch.full((2,), scale + 1e-4)])
        pipeline = Pipeline([Rename({"sum": "total"})], [verify(lambda _, v=values: next(v))])
        if fails:
            with pytest.raises(PassError, match="changed the value"):
                pipeline.run(example())
        else:
            pipeline.run(example())


def test_verify_with_values_of_no_elements() -> None:
    circuit = Add(Array(tensor(0, 2), "x"), name="sum")
    assert Pipeline([Rename({"sum": "total"})], [verify(lambda c: c.evaluate())])(circuit).name == "total"


def test_verify_a_model_bound_to_tokens() -> None:
    model = gpt2()
    bound, tokens = bound_circuit(model, 4), tokens_for(model, 2, 4)
    check = verify(
        lambda circuit: evaluate(circuit, tokens, "float64"),
        lambda circuit: bound.update("t.bind_w", lambda _: circuit),
    )
    options: dict[str, Any] = {"split_by_head_config": "full", "use_flatten_res": True}
    circuit = bound.get_unique("t.bind_w")
    configured = configure_transformer(circuit, To.ATTN_HEAD_MLP_NORM, **options, observers=[check])
    assert configured.are_any_found("a1.h1")
    with pytest.raises(PassError, match="'doubled' changed the value"):
        Pipeline([Doubled()], [check])(circuit)


# -- the registry


def test_every_pass_is_registered_with_its_contract() -> None:
    for name, kind in PASSES.items():
        assert kind.name == name
        assert kind.kind in ("preserving", "edit")
        assert kind.requires
        assert kind.ensures
        assert kind.summary().endswith((".", ":")), f"{name}: {kind.summary()!r}"
        assert dataclasses.is_dataclass(kind)


def test_every_pass_that_there_is_is_registered() -> None:
    for module in pkgutil.walk_packages(tapeout.passes.__path__, "tapeout.passes."):
        importlib.import_module(module.name)
    defined, waiting = set(), [Pass]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("tapeout.passes.") and not kind.__subclasses__():
                defined.add(kind)
    registered = {kind for kind in PASSES.values() if kind.__module__.startswith("tapeout.passes.")}
    assert {kind.__name__ for kind in defined} == {kind.__name__ for kind in registered}
    seeds = (
        "pull_up_bias push_down_weights split_by_head pull_up_head_split clear_block_module flatten_res "
        "conform_all_modules substitute_modules rename split_to_concat strip_names"
    )
    assert set(seeds.split()) <= set(PASSES)


def test_options_are_typed_fields_with_their_documentation() -> None:
    assert PASSES["push_down_weights"].options() == {"to": "To", "use_strip_arr": "bool"}
    assert PASSES["strip_names"].options() == {}
    for name, kind in PASSES.items():
        for option in kind.options():
            assert f"{option}:" in (kind.__doc__ or ""), f"{name} does not say what {option} is"


def test_options_are_values() -> None:
    assert SubstituteModules("x") == SubstituteModules("x") != SubstituteModules("y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        SubstituteModules("x").matcher = "y"  # type: ignore[misc]


def test_registering_a_pass(registry: dict[str, type[Pass]]) -> None:
    @register("zero", kind="edit", requires="nothing", ensures="the value is 0")
    @dataclass(frozen=True)
    class Zero(Pass):
        """Puts 0 in the place of a circuit.

        More is said below.
        """

        def run(self, circuit: Circuit) -> Circuit:
            return Scalar(0.0, circuit.shape)

    assert registry["zero"] is Zero
    assert (Zero.name, Zero.kind, Zero.requires, Zero.ensures) == (
        "zero",
        "edit",
        "nothing",
        "the value is 0",
    )
    assert Zero.summary() == "Puts 0 in the place of a circuit."
    assert Zero()(example()) is Scalar(0.0, (3, 2))


def test_a_pass_without_a_rewrite() -> None:
    with pytest.raises(TapeoutError, match="has no rewrite"):
        Pass()(example())
