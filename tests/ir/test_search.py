"""Searching and replacing: pruned walks against naive ones, matchers, paths, errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

import pytest
import torch
from harness import symbol, tensor
from hypothesis import given, settings

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    GeneralFunction,
    Getter,
    IterativeMatcher,
    Matcher,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Regex,
    Scalar,
    Symbol,
    Updater,
    cos,
    new_traversal,
    nodes_below,
    postorder,
    restrict,
    sin,
)
from tapeout.ir.errors import MatchError, ParseError, TypeMismatchError
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS


def naive_get(circuit: Circuit, accepts: Callable[[Circuit], bool]) -> set[Circuit]:
    return {node for node in postorder(circuit) if accepts(node)}


def naive_update(circuit: Circuit, accepts: Callable[[Circuit], bool], f: Callable[[Circuit], Circuit]) -> Circuit:
    """Rebuilds every node from the leaves up, bound symbols left alone."""
    done: dict[Circuit, Circuit] = {}
    for node in postorder(circuit):
        new = node.with_children(tuple(done[child] for child in node.children))
        done[node] = f(new) if accepts(node) else new
    return done[circuit]


def plain_matchers(rng: Random, circuit: Circuit) -> list[tuple[Any, Callable[[Circuit], bool]]]:
    """Matchers beside the plain predicates that they stand for."""
    names = [node.op_name for node in postorder(circuit)]
    one, other = (rng.choice(names) or "a" for _ in range(2))
    node = rng.choice(list(postorder(circuit)))
    short = lambda n: len(n.name) < 2  # noqa: E731
    return [
        (one, lambda n: n.op_name == one),
        ({one, other, "missing"}, lambda n: n.op_name in (one, other)),
        (Regex("a.b"), lambda n: "a.b" in n.name),
        (Regex("^m|c$"), lambda n: n.name.startswith("m") or n.name.endswith("c")),
        (Add, lambda n: n.kind == "Add"),
        ({Add, Array}, lambda n: n.kind in ("Add", "Array")),
        (Circuit, lambda n: True),
        (short, short),
        (node, lambda n: n is node),
        ({node}, lambda n: n is node),
        (True, lambda n: True),
        (False, lambda n: False),
        (~Matcher(one), lambda n: n.op_name != one),
        (Matcher(Einsum) | Regex("m"), lambda n: n.kind == "Einsum" or "m" in n.name),
        (Matcher(GeneralFunction) & one, lambda n: n.kind == "GeneralFunction" and n.op_name == one),
        (Matcher(Add) & Regex(".") & short, lambda n: n.kind == "Add" and "." in n.name and short(n)),
        (~(Matcher(one) | Add), lambda n: n.op_name != one and n.kind != "Add"),
        (Matcher.all(), lambda n: True),
        (Matcher.any(), lambda n: False),
        (Matcher.types(Module, Symbol), lambda n: n.kind in ("Module", "Symbol")),
        (Matcher.match_any_found(one), lambda n: any(m.op_name == one for m in postorder(n))),
    ]


@settings(max_examples=120)
@given(SEEDS)
def test_pruned_searches_find_what_naive_ones_find(seed: int) -> None:
    circuit = random_circuit(Random(seed), size=20)
    for matcher, accepts in plain_matchers(Random(seed), circuit):
        wanted = naive_get(circuit, accepts)
        assert circuit.get(matcher) == wanted
        assert circuit.get(IterativeMatcher(matcher).filter()) == wanted
        assert circuit.are_any_found(matcher) == bool(wanted)
        assert set(circuit.get_paths(matcher)) == wanted
        assert Getter()(circuit, matcher) == Getter().bind(matcher)(circuit) == wanted
        assert {node for node in postorder(circuit) if Matcher(matcher)(node)} == wanted


@settings(max_examples=50)
@given(SEEDS)
def test_pruned_updates_give_what_naive_ones_give(seed: int) -> None:
    circuit = random_circuit(Random(seed), size=20)

    def renamed(node: Circuit) -> Circuit:
        return node if isinstance(node, Symbol) else node.rename(f"{node.name}!")

    for matcher, accepts in plain_matchers(Random(seed), circuit):
        wanted = naive_update(circuit, accepts, renamed)
        assert circuit.update(matcher, renamed) is wanted
        assert circuit.update(IterativeMatcher(matcher).filter(), renamed) is wanted
        assert Updater(renamed)(circuit, matcher) is wanted
        assert circuit.update(matcher, lambda node: node) is circuit
        torch.testing.assert_close(evaluate(wanted), evaluate(circuit))


@settings(max_examples=60)
@given(SEEDS)
def test_an_update_keeps_labels_right_for_the_next_search(seed: int) -> None:
    """What is remembered of the names below a node is true of rebuilt nodes too."""
    circuit = random_circuit(Random(seed), size=20)
    circuit.get("a")
    names = sorted({node.name for node in postorder(circuit) if not isinstance(node, Symbol)})
    for i, name in enumerate(names):
        circuit = circuit.update(Matcher(name) & ~Matcher(Symbol), lambda node, i=i: node.rename(f"new{i}"))  # type: ignore[misc]
        assert circuit.get(f"new{i}") == naive_get(circuit, lambda node, i=i: node.name == f"new{i}")  # type: ignore[misc]
        assert circuit.get(Regex(r"^new\d")) == naive_get(circuit, lambda node: node.name.startswith("new"))


LEAF = Array(tensor(3, seed=1), "x")


class TestUpdate:
    def test_works_from_the_leaves_up_and_does_not_search_its_results(self) -> None:
        seen = []
        circuit = sin(Add(LEAF, LEAF, name="a"), "a")

        def transform(node: Circuit) -> Circuit:
            seen.append(node)
            return cos(node, "a")

        updated = circuit.update("a", transform)
        assert [node.kind for node in seen] == ["Add", "GeneralFunction"]
        inner = cos(Add(LEAF, LEAF, name="a"), "a")
        assert updated is cos(sin(inner, "a"), "a")

    def test_a_node_is_transformed_once_however_often_it_is_read(self) -> None:
        calls = count()
        shared = sin(LEAF, "s")
        circuit = Add(shared, cos(shared), Add(shared, shared))
        circuit.update("s", lambda node: node.rename(f"s{next(calls)}"))
        assert next(calls) == 1
        calls = count()
        circuit.update(IterativeMatcher(Add).chain("s"), lambda node: node.rename(f"s{next(calls)}"))
        assert next(calls) == 1

    def test_only_what_is_above_a_match_is_rebuilt(self) -> None:
        left, right = sin(LEAF, "left"), cos(LEAF, "right")
        updated = Add(left, right, name="top").update("left", lambda node: node.rename("new"))
        assert updated.children[1] is right

    def test_what_does_not_match_changes_nothing(self) -> None:
        circuit = sin(LEAF, "s")
        assert circuit.update("missing", lambda _: LEAF) is circuit

    @pytest.mark.parametrize("matcher", ["x", IterativeMatcher("s").chain("x")], ids=["plain", "chain"])
    def test_assertions(self, matcher: Any) -> None:
        circuit = Add(sin(LEAF, "s"), LEAF)
        rename = lambda node: node.rename("y")  # noqa: E731
        circuit.update(matcher, rename, assert_found=True, assert_different=True)
        circuit.update(matcher, rename, assert_found=1)
        with pytest.raises(MatchError, match=r"(?s)1 nodes match .* where 2 should.*hint"):
            circuit.update(matcher, rename, assert_found=2)
        with pytest.raises(MatchError, match=r"(?s)0 nodes match 'z' .* where at least one should.*hint"):
            circuit.update("z", rename, assert_found=True)
        with pytest.raises(MatchError, match=r"(?s)changes nothing.*hint"):
            circuit.update(matcher, lambda node: node, assert_different=True)

    def test_an_updater_transforms_each_node_once_over_all_calls(self) -> None:
        calls = count()
        updater = Updater(lambda node: node.rename(f"y{next(calls)}"), default_assert_found=True)
        assert updater(sin(LEAF), "x").children == updater(cos(LEAF), "x").children
        assert next(calls) == 1
        with pytest.raises(MatchError, match="at least one"):
            updater.update(sin(LEAF), "missing")
        assert updater.update(sin(LEAF), "missing", assert_found=False) is sin(LEAF)
        assert updater.bind("x")(sin(LEAF)) is updater(sin(LEAF), "x")


class TestBoundSymbols:
    """A symbol that a module binds is the module's own: if it changes in the body, the module follows."""

    x = symbol(1, (3,), "x sym")
    inner = sin(x, "inner")
    call = Module(ModuleSpec(Add(inner, x, name="body"), [ModuleArgSpec(x)]), "call", **{"x sym": LEAF})

    @pytest.mark.parametrize(
        "matcher",
        [
            "x sym",
            Symbol,
            IterativeMatcher("body").chain("x sym"),
            IterativeMatcher("x sym").filter(end_depth=5),
            IterativeMatcher("x sym").filter(term_early_at="nowhere"),
        ],
        ids=["name", "kind", "chain", "depth", "early"],
    )
    def test_renamed_everywhere_the_module_binds_the_new_one(self, matcher: Any) -> None:
        renamed = self.call.update(matcher, lambda node: node.rename("y"))
        assert renamed.cast_module().arg_specs[0].symbol.name == "y"
        assert not renamed.free_symbols
        torch.testing.assert_close(evaluate(renamed), evaluate(self.call))

    def test_renamed_in_one_place_it_is_another_symbol_there(self) -> None:
        renamed = self.call.update(IterativeMatcher("inner").chain("x sym"), lambda node: node.rename("y"))
        assert [s.name for s in renamed.free_symbols] == ["y"]
        assert renamed.cast_module().arg_specs[0].symbol is self.x

    def test_replaced_by_a_constant_in_one_place_the_rest_stays_bound(self) -> None:
        patched = self.call.update(IterativeMatcher("inner").chain("x sym"), lambda _: Scalar(0.0, (3,)))
        torch.testing.assert_close(evaluate(patched), LEAF.value)


class TestFilters:
    # a (b (c (d)), d): d is at depths 1 and 3
    d = LEAF.rename("d")
    circuit = Add(sin(cos(d, "c"), "b"), d, name="a")

    @pytest.mark.parametrize(
        ("matcher", "names"),
        [
            (new_traversal(), "abcd"),
            (new_traversal(start_depth=1), "bcd"),
            (new_traversal(start_depth=2), "cd"),
            (new_traversal(start_depth=4), ""),
            (new_traversal(end_depth=1), "a"),
            (new_traversal(end_depth=2), "abd"),
            (new_traversal(end_depth=0), ""),
            (new_traversal(start_depth=1, end_depth=2), "bd"),
            (new_traversal(term_early_at="b"), "abd"),
            (new_traversal(term_early_at={"a"}), "a"),
            (restrict(Regex("[bcd]"), term_if_matches=True), "bd"),
            (restrict(Regex("[bcd]"), term_if_matches=True, start_depth=2), "c"),
            (IterativeMatcher("b").chain("d"), "d"),
            (IterativeMatcher("b").chain(True), "bcd"),
            (IterativeMatcher("b").chain(True, must_be_sub=True), "cd"),
            (IterativeMatcher("b").chain("b"), "b"),
            (IterativeMatcher("b").chain("b", must_be_sub=True), ""),
            (IterativeMatcher("c").chain("b"), ""),
            (IterativeMatcher("a").chain("b", "c", "d"), "d"),
            (IterativeMatcher("a").chain_many(("b", "c"), ("d",)), "cd"),
            (IterativeMatcher.new_chain("b", "c"), "c"),
            (IterativeMatcher("a").chain(new_traversal(start_depth=1, end_depth=2)), "bd"),
            (IterativeMatcher.term(), ""),
            (IterativeMatcher.term(match_next=True), "a"),
            (IterativeMatcher.noop_traversal(), "abcd"),
            (IterativeMatcher("b", "c") | "d", "bcd"),
            (IterativeMatcher(Regex("[bc]")) & {"c", "d"}, "c"),
            (IterativeMatcher.all("c", IterativeMatcher("b").chain(True)), "c"),
            (IterativeMatcher("b").children_matcher({0}), "c"),
            (Matcher("a").chain("c"), "c"),
            (Matcher("a", "c").filter(start_depth=1), "c"),
        ],
    )
    def test_what_is_found(self, matcher: IterativeMatcher, names: str) -> None:
        assert {node.name for node in self.circuit.get(matcher)} == set(names)
        assert {node.name for node in matcher.get(self.circuit)} == set(names)
        marked = matcher.update(self.circuit, lambda node: node.rename(node.name.upper()))
        assert {node.name for node in postorder(marked) if node.name.isupper()} == set(names.upper())

    def test_a_path_decides_which_occurrence_is_updated(self) -> None:
        updated = self.circuit.update(IterativeMatcher("b").chain("d"), lambda node: node.rename("D"))
        assert updated.children[1] is self.d
        assert updated.get_unique("c").children[0].name == "D"
        shallow = self.circuit.update(restrict("d", end_depth=2), lambda node: node.rename("D"))
        assert shallow.children[1].name == "D" and shallow.children[0] is self.circuit.children[0]

    def test_paths(self) -> None:
        paths = self.circuit.get_all_paths("d")
        assert {tuple(node.name for node in path) for path in paths[self.d]} == {("d", "a"), ("d", "c", "b", "a")}
        assert self.circuit.get_paths("d")[self.d] in paths[self.d]
        through = self.circuit.get_all_paths(IterativeMatcher("b").chain("d"))
        assert [[node.name for node in path] for path in through[self.d]] == [["d", "c", "b", "a"]]
        assert self.circuit.get_paths("missing") == self.circuit.get_all_paths("missing") == {}
        assert self.circuit.get_paths("a") == {self.circuit: [self.circuit]}

    def test_parts_of_modules(self) -> None:
        call = TestBoundSymbols.call
        wrapped = sin(call, "top")
        modules = IterativeMatcher(Module)
        assert wrapped.get(modules.spec_circuit_matcher()) == {call.children[0]}
        assert wrapped.get(modules.module_arg_matcher("x sym")) == {LEAF}
        assert wrapped.get(modules.module_arg_matcher("other")) == set()
        assert wrapped.get(modules.children_matcher({0, 1})) == set(call.children)
        with pytest.raises(MatchError, match=r"(?s)<top \[3\] GeneralFunction> is no Module.*hint"):
            wrapped.get(IterativeMatcher("top").module_arg_matcher("x sym"))
        with pytest.raises(MatchError, match=r"(?s)is no Module.*hint"):
            wrapped.get(IterativeMatcher("top").spec_circuit_matcher())
        with pytest.raises(MatchError, match=r"(?s)<top \[3\] GeneralFunction> has no child 1.*hint"):
            wrapped.get(IterativeMatcher("top").children_matcher({0, 1}))


class TestUnique:
    circuit = Add(*(Array(torch.full((2,), float(i)), f"weight{i:02}") for i in range(12)), name="top")

    def test_found(self) -> None:
        assert self.circuit.get_unique("weight03").name == "weight03"
        assert self.circuit.get_unique_op("weight03") is self.circuit.get_unique("weight03")
        assert Matcher("weight03").get_unique(self.circuit).name == "weight03"
        assert self.circuit.get_unique_op("missing") is None

    def test_none_says_what_is_similar(self) -> None:
        with pytest.raises(
            MatchError, match=r"(?s)no node matches 'weigth03' below <top .*similar names: .*weight03.*hint: .*print"
        ):
            self.circuit.get_unique("weigth03")
        with pytest.raises(MatchError, match=r"(?s)no node matches .*Module.*hint"):
            self.circuit.get_unique(Module)

    def test_several_are_counted_and_some_listed(self) -> None:
        with pytest.raises(MatchError, match=r"(?s)12 nodes match .*below <top") as caught:
            self.circuit.get_unique(Regex("weight"))
        text = str(caught.value)
        assert [f"weight{i:02}" in text for i in range(12)] == [True] * 8 + [False] * 4
        assert "and 4 more" in text and "hint: use a longer name" in text
        with pytest.raises(MatchError, match="2 nodes match"):
            self.circuit.get_unique_op({"weight00", "weight01"})


class TestMistakes:
    def test_no_truth_value(self) -> None:
        for matcher in (Matcher("a"), IterativeMatcher("a")):
            with pytest.raises(TypeMismatchError, match=r"(?s)no truth value.*hint: combine matchers with &"):
                _ = matcher and matcher

    @pytest.mark.parametrize("thing", [3, None, 1.5, {"a", 3}])
    def test_not_a_matcher(self, thing: Any) -> None:
        with pytest.raises(TypeMismatchError, match=r"(?s)not a matcher: .*hint: a matcher is a name"):
            LEAF.get(thing)

    def test_not_a_regular_expression(self) -> None:
        with pytest.raises(ParseError, match=r"(?s)not a regular expression: '\(a'.*hint"):
            Regex("(a")

    def test_depths_that_exclude_everything(self) -> None:
        with pytest.raises(MatchError, match=r"(?s)start_depth 3 .*end_depth 2.*hint: start_depth is inclusive"):
            new_traversal(start_depth=3, end_depth=2)

    def test_a_name_is_matched_whole(self) -> None:
        circuit = sin(LEAF, "a.b")
        assert circuit.get("a") == circuit.get("a.") == circuit.get("") == set()
        assert circuit.get("a.b") == {circuit}

    def test_no_name_is_not_an_empty_one(self) -> None:
        circuit = Add(LEAF.rename(""), LEAF.rename(None), name=None)
        assert circuit.get("") == {LEAF.rename("")}
        assert circuit.get(Regex("^$")) == {LEAF.rename("")}
        assert circuit.get(lambda node: node.op_name is None) == {circuit, LEAF.rename(None)}


@settings(max_examples=30)
@given(SEEDS)
def test_nodes_below_are_those_of_a_walk(seed: int) -> None:
    one, other = (random_circuit(Random(seed + i), size=20) for i in range(2))
    assert nodes_below(one, other) == set(postorder(one, other))
    assert nodes_below() == set()


def test_a_pattern_that_was_searched_for_finds_names_that_come_later() -> None:
    x = symbol(1, (3,), "late.x")
    pattern = Matcher.regex(r"^late.\d$")
    assert not x.get(pattern)
    later = Add(x, Scalar(1.0, name="late.1"), name="late.2")
    assert {node.name for node in later.get(pattern)} == {"late.1", "late.2"}
    assert {node.name for node in later.children[1].get(pattern)} == {"late.1"}
