"""The passes of `configure_transformer`, each by itself: golden texts, values, and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import symbol
from random_models import bound_circuit, evaluate, gpt2, llama, tokens_for

import tapeout as rc
from tapeout import PassError, PrintOptions, ShapeError, circuit_text
from tapeout.models import circuit_of
from tapeout.passes import (
    PASSES,
    ClearBlockModule,
    FlattenRes,
    Pass,
    PullUpBias,
    PullUpHeadSplit,
    PushDownWeights,
    SplitByHead,
    To,
    clear_block_module,
    configure_transformer,
    flatten_res,
    pull_up_bias,
    pull_up_head_split,
    push_down_transformer_weights,
    split_by_head,
    transformer_passes,
)
from tapeout.passes.push import push_modules

Golden = Callable[[str, str], None]

IN_ORDER: list[Pass] = [
    PullUpBias(),
    PushDownWeights(To.ATTN_HEAD_MLP_NORM),
    SplitByHead("full"),
    PullUpHeadSplit(),
    ClearBlockModule(),
    FlattenRes(),
]


def model_circuit(model: Any) -> rc.Circuit:
    return circuit_of(model)[0]["t.bind_w"]


def after(*passes: Pass, circuit: rc.Circuit | None = None) -> rc.Circuit:
    """A tiny GPT-2 of two layers, or the circuit, after the passes."""
    out = model_circuit(gpt2()) if circuit is None else circuit
    for each in passes:
        out = each(out)
    return out


def text(circuit: rc.Circuit) -> str:
    return circuit_text(circuit, options=PrintOptions(bijection=False))


# -- golden texts: what a pass starts from is what the one before it ended with


def test_golden_of_the_model(golden: Golden) -> None:
    golden("transformer_0_model", text(model_circuit(gpt2(n_layer=1))))


@pytest.mark.parametrize("number", range(1, 7))
def test_golden_of_each_pass(number: int, golden: Golden) -> None:
    circuit = after(*IN_ORDER[:number], circuit=model_circuit(gpt2(n_layer=1)))
    golden(f"transformer_{number}_{IN_ORDER[number - 1].name}", text(circuit))


def test_golden_of_llama_split_by_head(golden: Golden) -> None:
    model = llama(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    golden("transformer_llama_split", text(after(*IN_ORDER[:3], circuit=model_circuit(model))))


def test_golden_of_two_flat_layers(golden: Golden) -> None:
    """The residual streams alone: what each sum adds."""
    for components in (False, True):
        circuit = after(*IN_ORDER[:5], FlattenRes(components))
        sums = sorted(circuit.get(rc.Regex(r"^b\d+(.resid.a)?$")), key=lambda node: node.name)
        lines = [f"{node.name} = {' + '.join(child.name for child in node.children)}" for node in sums]
        golden(f"transformer_residual_streams{'_of_components' if components else ''}", "\n".join(lines))


# -- values


@pytest.mark.parametrize("make", [gpt2, llama])
def test_each_pass_keeps_the_value(make: Callable[[], Any]) -> None:
    model = make()
    tokens = tokens_for(model, 3, 5)
    bound = bound_circuit(model, 5)
    expected = evaluate(bound, tokens, "float64")
    circuit = bound.get_unique("t.bind_w")
    for each in IN_ORDER:
        following = each(circuit)
        assert following is not circuit or (each.name == "pull_up_bias" and make is llama)
        circuit = following
        found = evaluate(bound.update("t.bind_w", lambda _, new=circuit: new), tokens, "float64")
        assert (found - expected).abs().max() < 1e-12, each.name


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("to", To)
def test_weights_pushed_to_each_level_keep_the_value(to: To, make: Callable[[], Any]) -> None:
    model = make()
    tokens = tokens_for(model, 3, 5)
    bound = bound_circuit(model, 5)
    expected = evaluate(bound, tokens, "float64")
    for strip in (True, False):
        pushed = bound.update("t.bind_w", lambda c, s=strip: PushDownWeights(to, s)(c))
        assert (evaluate(pushed, tokens, "float64") - expected).abs().max() < 1e-12
        assert pushed.are_any_found("a0.w.o_arr") is not strip


def test_passes_as_functions_are_the_same() -> None:
    circuit = model_circuit(gpt2())
    functions: list[Callable[[rc.Circuit], rc.Circuit]] = [
        pull_up_bias,
        lambda c: push_down_transformer_weights(c, To.ATTN_HEAD_MLP_NORM),
        split_by_head,
        pull_up_head_split,
        clear_block_module,
        flatten_res,
    ]
    for function, each in zip(functions, IN_ORDER, strict=True):
        assert function(circuit) is each(circuit)
        circuit = each(circuit)
    full = {"split_by_head_config": "full", "use_pull_up_head_split": True, "use_flatten_res": True}
    whole = model_circuit(gpt2())
    assert configure_transformer(whole, To.ATTN_HEAD_MLP_NORM, **full) is circuit
    assert transformer_passes(To.ATTN_HEAD_MLP_NORM, **full) == IN_ORDER


def test_running_a_pass_again_changes_nothing() -> None:
    done = after(*IN_ORDER)
    assert FlattenRes()(done) is done
    flat = FlattenRes(True)(done)
    assert flat is not done
    assert FlattenRes(True)(flat) is flat


@pytest.mark.parametrize("to", To)
def test_nothing_is_bound_above_where_weights_were_pushed(to: To) -> None:
    circuit = PushDownWeights(to)(after(PullUpBias()))
    holders = {node.name for node in circuit.get(rc.Module) if any(isinstance(c, rc.Array) for c in node.children)}
    norms = {"a0.norm", "a1.norm", "m0.norm", "m1.norm"}
    expected = {
        To.BLOCK: {"b"},
        To.ATTN_MLP: {f"{part}{layer}.norm_call" for part in "am" for layer in "01"},
        To.ATTN_MLP_NORM: {"a0", "a1", "m0", "m1"} | norms,
        To.ATTN_HEAD_MLP_NORM: {"a0.heads", "a1.heads", "m0", "m1"} | norms,
    }[to]
    assert holders == expected | {"final.norm"}


# -- what is refused


def refused(each: Pass, circuit: rc.Circuit, *words: str) -> None:
    """The pass raises PassError that says these words, with a hint."""
    with pytest.raises(PassError) as caught:
        each(circuit)
    for word in (each.name, *words) if each.name else words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("done", "each", "word"),
    [
        ([1], PullUpBias(), "run it first"),
        ([0, 1], PushDownWeights(), "t.bind_w"),
        ([], SplitByHead(), "push weights down"),
        ([0, 1, 2, 3], SplitByHead(), "no unsplit heads"),
        ([], PullUpHeadSplit(), "after push_down_weights"),
        ([0, 1], PullUpHeadSplit(), "layers [0, 1] are not split"),
        ([], ClearBlockModule(), "To.ATTN_MLP"),
        ([0, 1, 2, 3, 4], ClearBlockModule(), "no calls of blocks"),
        ([], FlattenRes(), "no residual stream"),
        ([0, 1, 2, 3], FlattenRes(), "still calls"),
    ],
)
def test_the_wrong_order(done: list[int], each: Pass, word: str) -> None:
    refused(each, after(*(IN_ORDER[i] for i in done)), word)


def test_blocks_must_be_pushed_past_before_they_are_cleared() -> None:
    refused(ClearBlockModule(), after(PushDownWeights(To.BLOCK)), "weights are bound at the blocks")


def test_flattening_needs_every_block_cleared() -> None:
    circuit = after(PushDownWeights(To.ATTN_MLP))
    one_call_left = circuit.update("b1.call", lambda node: node.cast_module().substitute().rename("b1"))
    refused(FlattenRes(), one_call_left, "still calls")


@pytest.mark.parametrize("each", IN_ORDER, ids=lambda each: each.name)
def test_circuits_that_are_no_models(each: Pass) -> None:
    refused(each, rc.Add(rc.Array(torch.ones(2), "x"), rc.Scalar(1.0), name="sum"))


HEADS_PUSHED = [PullUpBias(), PushDownWeights(To.ATTN_HEAD_MLP_NORM)]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({2}, ["no attention layers [2]", "layers [0, 1]"]),
        ({0: [(0, "h0")]}, ["hold heads [0], not each of 0 to 1 once"]),
        ({0: [(0, "h0"), (0, "again"), (1, "h1")]}, ["[0, 0, 1]"]),
        ({0: [(slice(0, 2), "both"), (-1, "h1")]}, ["[0, 1, 1]"]),
        ({1: []}, ["hold heads []"]),
        ({0: [(0, "h"), (1, "h")]}, ["called h, h", "a name of its own"]),
    ],
)
def test_groups_that_are_no_partition(split: Any, words: list[str]) -> None:
    with pytest.raises(PassError) as caught:
        SplitByHead(split)(after(*HEADS_PUSHED))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("index", [2, -3, slice(0, 3), torch.tensor([1, 2])])
def test_groups_of_heads_that_do_not_exist(index: Any) -> None:
    with pytest.raises(ShapeError, match="out of range for an axis of size 2 of the heads of 'a0'"):
        SplitByHead({0: [(0, "h0"), (index, "rest")]})(after(*HEADS_PUSHED))


def test_a_layer_that_was_split_before() -> None:
    once = after(*HEADS_PUSHED, SplitByHead({0}))
    with pytest.raises(PassError, match=r"a0 .*is no sum over a head axis"):
        SplitByHead("full")(once)
    assert SplitByHead({1})(once) is after(*HEADS_PUSHED, SplitByHead("full"))


def test_only_split_layers_are_pulled_up() -> None:
    once = after(*HEADS_PUSHED, SplitByHead({1}))
    refused(PullUpHeadSplit(frozenset({0, 1})), once, "layers [0] are not split", "split by head are layers [1]")
    refused(PullUpHeadSplit(frozenset({7})), once, "layers [7]")
    refused(PullUpHeadSplit(), once, "layers [0]")
    assert PullUpHeadSplit(frozenset({1}))(once).are_any_found("b1.a.h0")


FINEST = {"to": To.ATTN_HEAD_MLP_NORM}


@pytest.mark.parametrize(
    ("options", "option", "need"),
    [
        ({"to": None}, "use_strip_arr", "`to`"),
        ({"to": None, "use_strip_arr": False}, "use_clear_block_module", "To.ATTN_MLP"),
        ({"to": To.BLOCK}, "use_clear_block_module", "To.ATTN_MLP"),
        ({"to": To.ATTN_MLP, "split_by_head_config": "full"}, "split_by_head_config", "ATTN_HEAD_MLP_NORM"),
        (FINEST | {"use_pull_up_head_split": True}, "use_pull_up_head_split", "split_by_head_config"),
        (
            FINEST | {"use_flatten_res": True, "use_clear_block_module": False},
            "use_flatten_res",
            "use_clear_",
        ),
        (FINEST | {"flatten_components": True}, "flatten_components", "use_flatten_res"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_do_not_go_together(options: dict[str, Any], option: str, need: str) -> None:
    circuit = model_circuit(gpt2())
    with pytest.raises(PassError) as caught:
        configure_transformer(circuit, **options)
    assert caught.value.message.startswith(f"configure_transformer: {option} needs")
    assert need in caught.value.message
    assert caught.value.hint
    assert transformer_passes(**options, check_valid=False)


def test_configure_transformer_takes_the_model_with_its_weights() -> None:
    bound = bound_circuit(gpt2(), 4)
    with pytest.raises(PassError, match=r"not <t\.call .*Module>") as caught:
        configure_transformer(bound)
    assert 'circuit.update("t.bind_w"' in caught.value.hint


def test_nothing_to_do() -> None:
    circuit = model_circuit(gpt2())
    none = configure_transformer(
        circuit, None, use_pull_up_bias=False, use_strip_arr=False, use_clear_block_module=False
    )
    assert none is circuit


def test_the_passes_are_registered() -> None:
    assert [PASSES[each.name] for each in IN_ORDER] == [type(each) for each in IN_ORDER]
    assert all(each.kind == "preserving" for each in IN_ORDER)


def test_a_call_that_binds_what_a_pushed_one_binds() -> None:
    """Through such a call nothing can be pushed: its body would mean another symbol."""
    x = symbol(1, (2,), "x")
    kept = rc.module_new_bind(rc.Add(x, name="body"), (x, rc.Add(x, name="outer x")), name="kept")
    pushed = rc.module_new_bind(rc.Add(kept, x, name="sum"), (x, rc.Array(torch.ones(2), "one")), name="pushed")
    with pytest.raises(PassError, match=r"through <kept .*: it binds .*<x \[2\] Symbol>"):
        push_modules(pushed, rc.Matcher("pushed"), rc.Matcher(False), lambda name, _: name)
