"""Options of the text form, beside rust_circuit's; the HTML form; differences of circuits."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
import torch
from hypothesis import given

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    Index,
    Module,
    PrintHtmlOptions,
    PrintOptions,
    Symbol,
    circuit_text,
    diff_circuits,
    new_traversal,
    parse_circuit,
    postorder,
    sin,
    softmax,
    tensors_of,
)
from tapeout.ir.errors import UnsupportedError
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

VALUES = [torch.arange(12.0).reshape(3, 4), torch.ones(3, 4), torch.arange(4.0)]


def circuits(rc: Any) -> dict[str, Any]:
    """Circuits with shared nodes and a module, in either library."""
    a, b, v = (rc.Array(value, name) for value, name in zip(VALUES, "abv", strict=True))
    x = rc.Add(a, rc.Einsum.from_einsum_string("ab,b->ab", b, v, name="product"), name="x")
    s = rc.Symbol((3, 4), UUID(int=1), "s")
    spec = rc.ModuleSpec(rc.Add(rc.sin(s, name="inner"), s, name="body"), [rc.ModuleArgSpec(s)])
    return {
        "shared": rc.Add(rc.softmax(x, name="soft"), rc.Index(x, [slice(0, 3)], name="part"), name="top"),
        "module": rc.Module(spec, "call", s=a),
        "picked": rc.Index(a, [torch.tensor([0, 2])], name="picked"),
    }


def ours() -> dict[str, Circuit]:
    import tapeout

    return circuits(tapeout)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "arrows": {"arrows": True},
    "leaves on top": {"arrows": True, "leaves_on_top": True},
    "serial numbers": {"force_use_serial_numbers": True},
    "few shapes": {"shape_only_when_necessary": True},
    "roles": {"comment_arg_names": True},
    "literal": {"tensor_index_literal": True},
}


@pytest.mark.parametrize("label", OPTIONS)
def test_text_is_the_oracles(label: str) -> None:
    rust: ModuleType = pytest.importorskip("rust_circuit")
    options = {"bijection": False, "shape_only_when_necessary": False} | OPTIONS[label]
    mine, theirs = ours(), circuits(rust)
    if label != "literal":
        del mine["picked"]  # hashes of tensors differ
    for name, circuit in mine.items():
        assert circuit.repr(PrintOptions(**options)) == theirs[name].repr(rust.PrintOptions(**options))


@given(SEEDS)
def test_text_with_numbers_and_few_shapes_reads_back(seed: int) -> None:
    from random import Random

    circuit = random_circuit(Random(seed))
    for options in (PrintOptions(force_use_serial_numbers=True), PrintOptions(shape_only_when_necessary=True)):
        assert parse_circuit(options.repr(circuit), tensors_of(circuit)) is circuit


def test_options_can_be_changed_and_print(capsys: pytest.CaptureFixture[str]) -> None:
    top = ours()["shared"]
    options = PrintOptions(bijection=False).evolve(arrows=True)
    options.print(top)
    top.print(options)
    first, second = capsys.readouterr().out.split("top [3,4] Add\n")[1:]
    assert first == second and "├‣soft" in first
    PrintOptions.print_depth(top, end_depth=2)
    assert capsys.readouterr().out.splitlines() == [
        "top [3,4] Add",
        "  soft [3,4] GeneralFunction softmax ...",
        "  part [3,4] Index [0:3,:] ...",
    ]


def test_nests_of_one_kind() -> None:
    leaf = Array(VALUES[0], "leaf")
    nest = Add(leaf, Add(leaf, sin(Add(leaf, leaf, name="below"), name="other"), name="inner"), name="outer")
    text = PrintOptions.add_nest_default().repr(nest)
    assert "inner" in text and "other" in text and "below" not in text
    assert "... " not in PrintOptions.einsum_nest_default().repr(Einsum.identity(leaf, "same"))


class TestColors:
    def test_names_and_numbers(self) -> None:
        node = Array(VALUES[0], "a")
        lines = {
            color: PrintOptions(colorer=PrintOptions.fixed_color(color)).repr(node) for color in ("Red", 1, 208, None)
        }
        assert lines["Red"] == lines[1] == f"\x1b[38;5;1m{lines[None]}\x1b[0m"
        assert lines[208].startswith("\x1b[38;5;208m")

    def test_by_kind_by_size_and_by_node(self) -> None:
        top = ours()["shared"]
        by_kind = PrintOptions.type_colorer()
        assert by_kind(top) != by_kind(top.children[0]) and by_kind(top) == by_kind(top.get_unique("x"))
        large = Symbol((2000, 3000), UUID(int=4), "large")
        assert PrintOptions.size_colorer()(large) == 2 and PrintOptions.size_colorer()(top) is None
        chosen = PrintOptions.circuit_set_colorer({"Blue": top, "Green": [large]})
        assert [chosen(node) for node in (top, large, top.children[0])] == ["Blue", "Green", None]

    @pytest.mark.parametrize("color", ["Purple", 256, -1])
    def test_unknown(self, color: Any) -> None:
        with pytest.raises(UnsupportedError, match="hint: use Red, "):
            PrintOptions(colorer=PrintOptions.fixed_color(color)).repr(ours()["shared"])


def test_comments_of_dtypes_and_sizes() -> None:
    a = Array(VALUES[0], "a")
    text = circuit_text(sin(a, "s"), options=PrintOptions(commenters=[PrintOptions.dtype_commenter(only_arrays=True)]))
    assert [line.partition(" # ")[2] for line in text.splitlines()] == ["", "float32"]
    sizes = PrintOptions(commenters=[PrintOptions.size_threshold_commenter(11)])
    assert [line.partition(" # ")[2] for line in sizes.repr(a.sum()).splitlines()] == ["", "12"]


def chain(length: int) -> Circuit:
    node: Circuit = Array(VALUES[0], "leaf")
    for i in range(length):
        node = sin(node, f"n{i}")
    return node


def test_depth() -> None:
    """Nothing is recursive, and lines stay short."""
    deep = chain(20_000)
    text = PrintOptions(arrows=True).repr(deep)
    assert max(map(len, text.splitlines())) < 200
    assert PrintHtmlOptions().repr(deep).count("<details") == 20_000
    difference = diff_circuits(deep, deep.update("leaf", lambda c: c.rename("other")))
    assert len(difference.splitlines()) == 20_002 and len(difference) < 200 * 20_000


# -- HTML


class Tags(HTMLParser):
    """Reads HTML: that tags close in order, the ids, the links, the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.unfolded = 0
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.open.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [(found["href"] or "").removeprefix("#")] if "href" in found else []
        self.unfolded += "open" in found

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.text += data


class TestHtml:
    @given(SEEDS)
    def test_each_node_stands_once_and_links_lead_somewhere(self, seed: int) -> None:
        from random import Random

        circuit = random_circuit(Random(seed))
        found = Tags(PrintHtmlOptions().repr(circuit))
        assert len(found.ids) == len(set(found.ids)) == sum(1 for _ in postorder(circuit))
        assert set(found.links) <= set(found.ids)

    def test_what_is_unfolded_and_what_is_there(self) -> None:
        top = ours()["shared"]
        assert Tags(PrintHtmlOptions(traversal=new_traversal(end_depth=2)).repr(top)).unfolded == 1
        assert Tags(PrintHtmlOptions(traversal=True).repr(top)).unfolded == 5
        few = Tags(PrintHtmlOptions(overall_traversal=new_traversal(end_depth=2)).repr(top))
        assert few.text.count("...") == 2 and len(few.ids) == 3

    def test_names_are_escaped(self) -> None:
        text = PrintHtmlOptions(commenters=[lambda _: "<b>"]).repr(Array(VALUES[0], "<script>&"))
        assert "<script>" not in text and "<b>" not in text
        assert Tags(text).text.startswith("<script>& [3,4] Array # <b>")

    def test_roles_and_symbols(self) -> None:
        text = Tags(PrintHtmlOptions(comment_arg_names=True).repr(ours()["module"])).text
        assert "# Spec" in text and "! s" in text

    def test_colors(self) -> None:
        top = ours()["shared"]
        one = PrintHtmlOptions(colorer=PrintHtmlOptions.fixed_color("teal")).evolve(primary_color="navy").repr(top)
        assert set(re.findall(r"color:(\w+)", one)) == {"teal", "navy", "inherit"}
        assert PrintHtmlOptions.size_colorer()(Symbol((10**5, 10**5), UUID(int=5), "s")) == "crimson"
        assert PrintHtmlOptions.type_colorer()(top) == "mediumseagreen"

    def test_it_is_shown_in_notebooks_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnsupportedError, match="hint: use print"):
            ours()["shared"].print_html()
        shown = []
        display = ModuleType("IPython.display")
        display.HTML, display.display = str, shown.append  # type: ignore[attr-defined]
        notebook = ModuleType("IPython")
        notebook.get_ipython = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", notebook)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        PrintHtmlOptions.print_depth(ours()["shared"], depth=1)
        assert Tags(shown[0]).unfolded == 1


# -- differences


def difference(new: Circuit, old: Circuit, **options: Any) -> list[str]:
    colors = dict.fromkeys(("same_self_color", "new_color", "removed_color"))
    return diff_circuits(new, old, print_legend=False, **colors, **options).splitlines()


class TestDifferences:
    top = ours()["shared"]

    def test_the_same(self) -> None:
        assert difference(self.top, self.top) == ["  top [3,4] Add ..."]
        whole = difference(self.top, self.top, options=PrintOptions(traversal=new_traversal(end_depth=2)))
        assert len(whole) == 3

    def test_renamed_below(self) -> None:
        old = self.top.update("b", lambda c: c.rename("old"))
        lines = difference(self.top, old)
        assert "~         b [3,4] Array # was 'old'" in lines
        assert lines[-1].split() == ["~", "x"]  # met before, under the other parent
        assert "        a [3,4] Array" in lines

    def test_replaced(self) -> None:
        old = self.top.update("soft", lambda c: sin(c.children[0], "soft"))
        assert difference(self.top, old) == [
            "~ top [3,4] Add",
            "-   soft [3,4] GeneralFunction sin",
            "-     x [3,4] Add ...",
            "+   soft [3,4] GeneralFunction softmax",
            "+     x [3,4] Add ...",
            "    part [3,4] Index [0:3,:] ...",
        ]

    def test_children_added(self) -> None:
        a, b = (Array(value, name) for value, name in zip(VALUES, "ab", strict=False))
        more, fewer = Add(a, b, name="n"), Add(a, name="n")
        assert [line[0] for line in difference(more, fewer)] == ["-", "-", "+", "+", "+"]
        assert difference(more, fewer, require_child_count_same=False) == [
            "~ n [3,4] Add",
            "    a [3,4] Array",
            "+   b [3,4] Array",
        ]

    def test_shapes_and_names_can_be_required(self) -> None:
        a, v = Array(VALUES[0], "a"), Array(VALUES[2], "v")
        assert [line[0] for line in difference(softmax(a, "f"), softmax(v, "f"))] == ["~", "-", "+"]
        assert [line[0] for line in difference(softmax(a, "f"), softmax(v, "f"), require_child_shapes_same=True)] == [
            *"--++"
        ]
        assert [line[0] for line in difference(softmax(a, "f"), softmax(a, "g"), require_name_same=True)] == [*"--++"]

    def test_attributes_and_kinds_tell_nodes_apart(self) -> None:
        a = Array(VALUES[0], "a")
        pairs = [(Index(a, [0], "n"), Index(a, [1], "n")), (sin(a, "n"), Add(a, name="n"))]
        for new, old in pairs:
            assert [line[0] for line in difference(new, old)] == ["-", "-", "+", "+"]

    def test_legend_and_colors(self) -> None:
        lines = diff_circuits(self.top, self.top.rename("old")).splitlines()
        assert lines[0].startswith("\x1b[38;5;4m~ top") and lines[-1].startswith("(~ renamed")

    def test_modules(self) -> None:
        call = ours()["module"]
        old = call.update("inner", lambda c: c.rename("was"))
        assert isinstance(call, Module)
        assert any("was 'was'" in line for line in difference(call, old))
