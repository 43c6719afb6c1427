"""Names of a model's parts: how they are read, and which nodes they find, in each way a model is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
from splits import by_head_and_position, difference

from tapeout.ir import Circuit, Matcher
from tapeout.ir.errors import MatchError, ParseError
from tapeout.models import circuit_of, split_circuit
from tapeout.tasks.patching import END, NodeName, Site, find, locate, node_names, parse_name, parse_site


@pytest.mark.parametrize(
    ("text", "site"),
    {
        "a9.h6": Site(NodeName("head", 9, 6)),
        "a9.h6_by_pos": Site(NodeName("head", 9, 6)),
        "a9_h6_t5": Site(NodeName("head", 9, 6), (5,)),
        "a9.h6@END": Site(NodeName("head", 9, 6), (END,)),
        " a8.h6.k @ 2, -3": Site(NodeName("head", 8, 6, "k"), (2, -3)),
        "a8.h6.pattern": Site(NodeName("head", 8, 6, "pattern")),
        "a8.kv2.v": Site(NodeName("kv", 8, 2, "v")),
        "m3_t4": Site(NodeName("mlp", 3), (4,)),
        "m3.input": Site(NodeName("mlp_input", 3)),
        "a0.input": Site(NodeName("attn_input", 0)),
        "final.input": Site(NodeName("final_input")),
        "embeds": Site(NodeName("embeds")),
        "logits": Site(NodeName("logits")),
    }.items(),
)
def test_names_are_read_and_written(text: str, site: Site) -> None:
    assert parse_site(text) == site and parse_name(text) == site.name
    assert parse_site(str(site)) == site and parse_site(site) is site and parse_site(site.name).name == site.name
    if site.positions is not None:
        assert parse_site(site.row_name(7)) == Site(site.name, (7,))


@pytest.mark.parametrize("text", ["a9", "a9.h6.o", "m3.q", "b9.a.h6", "a9.kv2", "a9.h6.input", "", "a9.h6->m3"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ParseError, match=r"hint: use names such as a9.h6"):
        parse_name(text)


def test_positions_that_cannot_be_read() -> None:
    with pytest.raises(ParseError, match=r"'IO'.*\nhint: positions are numbers from 0, or END"):
        parse_site("a9.h6@IO")


def unsplit_by_position(model: Any, length: int) -> Circuit:
    """By head alone."""
    by_position = by_head_and_position(model, length)
    return by_position.update(Matcher.regex("_by_pos$"), lambda node: node.children[0].children[0])


WAYS: dict[str, Callable[[Any, int], Circuit]] = {
    "by position": by_head_and_position,
    "by head": unsplit_by_position,
}


@pytest.mark.parametrize("way", WAYS)
def test_names_find_nodes(way: str) -> None:
    circuit = difference(WAYS[way](tiny.gpt2(11), 3))
    assert circuit.are_any_found("a0_h0_t2") == (way == "by position")
    for text, found in {
        "a1.h0.q": "a.q_p_bias",
        "a1.h0.k": "a.k_p_bias",
        "a1.h0.v": "a.v_p_bias",
        "a1.h0.pattern": "a.attn_probs",
        "a1.h0": "a1.h0",
        "m1": "m1",
        "a0.input": "embeds",
        "embeds": "embeds",
        "m0.input": "b0.resid.a",
        "final.input": "final.input",
        "logits": "logits",
    }.items():
        assert find(circuit, text).node.name == found
    k, q = find(circuit, "a1.h0.k"), find(circuit, "a1.h0.q")
    assert k.node is not q.node and k.reader is q.reader is not find(circuit, "a1.h1.k").reader
    assert k.reader is not None and k.reader.children[k.operand or 0] is k.node


def test_shared_keys() -> None:
    circuit = difference(by_head_and_position(tiny.llama(11), 3))
    key = find(circuit, "a1.kv0.k")
    assert key.node.name == "a1.kv0.k" and key.reader is None
    reads = [find(circuit, f"a1.h{head}.k") for head in range(4)]
    assert [read.node is key.node for read in reads] == [True, True, False, False]
    assert len({read.reader for read in reads}) == 4
    assert find(circuit, "a1.h0.q").node.name == "a.q_rot"  # after rotary
    assert find(circuit, "embeds").node is find(circuit, "a0.input").node is circuit.get_unique("tok_embeds")


@pytest.mark.parametrize("way", WAYS)
def test_the_parts_of_a_circuit_in_the_order_of_data_flow(way: str) -> None:
    listed = [str(name) for name in node_names(WAYS[way](tiny.gpt2(11), 3))]
    block = "a{0}.input a{0}.h0 a{0}.h1 m{0}.input m{0}"
    assert listed == f"embeds {block.format(0)} {block.format(1)} final.input logits".split()


def test_names_survive_rewrites_that_keep_them() -> None:
    circuits, info = circuit_of(tiny.llama(11))
    circuit = difference(split_circuit(circuits, info, 3)[0])
    rewritten = circuit.update(Matcher.regex("norm$"), lambda node: node.cast_module().substitute())
    rewritten = rewritten.update("a1.h0", lambda node: node.rename(None)).update(
        "a1.h0_by_pos", lambda node: node.rename("a1.h0")
    )
    names = node_names(circuit)
    assert node_names(rewritten) == names and set(locate(rewritten, names)) == set(names)
    assert find(rewritten, "a1.h0.v").node.name == "a1.kv0.v"


def test_unknown_names_are_errors_that_list_near_ones() -> None:
    circuit = by_head_and_position(tiny.gpt2(11), 3)
    with pytest.raises(MatchError, match=r"no a1.h7.k below.*\n  near names: a1.h.*\nhint: all names are listed by"):
        find(circuit, "a1.h7.k")
    with pytest.raises(MatchError, match=r"hint: the heads of this circuit do not share keys: use a1.h0.k"):
        find(circuit, "a1.kv0.k")


def test_a_name_that_several_nodes_have() -> None:
    circuit = by_head_and_position(tiny.gpt2(11), 3).update("m1_t0", lambda node: node.rename("m0"))
    with pytest.raises(MatchError, match=r"2 nodes below .* are called 'm0'\nhint: name parts in the circuit as it"):
        find(circuit, "m0")


def test_a_head_that_is_still_a_call() -> None:
    circuit = by_head_and_position(tiny.gpt2(11), 3).update("a.attn_scores_raw", lambda node: node.rename("scores"))
    with pytest.raises(MatchError, match=r"shows no q.*\nhint: substitute the head's modules first"):
        find(circuit, "a1.h0.q")
