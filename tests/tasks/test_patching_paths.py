"""Path patching: values that are known without it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from splits import by_head_and_position, difference

from tapeout.ir import Circuit, IterativeMatcher, Scalar, restrict
from tapeout.ir.errors import DataError, MatchError, ParseError, ShapeError, TapeoutError, TypeMismatchError
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.tasks.patching import END, PATCH_TOKENS, path_patch

ROWS, LENGTH, VOCABULARY = 3, 5, 11
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


BASELINE = {"tokens": tokens(0), "labels": torch.tensor([[1, 2], [3, 4], [5, 6]])}
PATCH = {"tokens": tokens(1)}


@pytest.fixture(scope="module", params=MODELS)
def metric(request: pytest.FixtureRequest) -> Circuit:
    return difference(by_head_and_position(MODELS[request.param](VOCABULARY), LENGTH))


def plain(metric: Circuit, data: torch.Tensor) -> torch.Tensor:
    return bind_dataset(metric, data, BASELINE["labels"]).evaluate("float64")


def patched(metric: Circuit, paths: Any, patch: Any = PATCH, **options: Any) -> torch.Tensor:
    return path_patch(metric, paths, BASELINE, patch, **options).evaluate("float64")


PATHS = [
    "a0.h0",
    "a1.h1 -> final.input",
    "a1.h1.q@END",
    "a0.h1 -> a1.h0.k -> final.input",
    "a0.h1@2 -> a1.h0.v@2,3",
    "m0 -> m1 -> final.input",
    "a1.input -> m1.input",
    "a1.h0.pattern -> m1",
]


@pytest.mark.parametrize("path", PATHS)
def test_patched_with_its_own_value_nothing_changes(metric: Circuit, path: str) -> None:
    unchanged = patched(metric, path, {"tokens": BASELINE["tokens"]})
    assert (unchanged - plain(metric, BASELINE["tokens"])).abs().max() < 1e-12
    assert (patched(metric, path) - unchanged).abs().max() > 1e-6


ALL = {
    "the embeddings": "embeds",
    "the last residual stream": "final.input",
    "every write to it": [f"{part} -> final.input" for part in "embeds a0.h0 a0.h1 m0 a1.h0 a1.h1 m1".split()],
    "a residual stream, which all that comes after it reads": "m1.input",
    "the logits": "logits",
}


@pytest.mark.parametrize("paths", ALL.values(), ids=ALL)
def test_over_all_paths_it_is_the_patch_run(metric: Circuit, paths: Any) -> None:
    if isinstance(paths, list) and metric.are_any_found("a0.h2"):
        paths = [*paths, *(f"a{layer}.h{head} -> final.input" for layer in (0, 1) for head in (2, 3))]
    expected = plain(metric, PATCH["tokens"])
    assert (patched(metric, paths) - expected).abs().max() < 1e-12


def test_without_data_it_is_the_circuit_of_one_row(metric: Circuit) -> None:
    row = path_patch(metric, "a1.h1 -> final.input")
    assert row.shape == () and {symbol.name for symbol in row.free_symbols} == {"tokens", PATCH_TOKENS}


def test_a_path_by_matcher_and_by_names(metric: Circuit) -> None:
    matcher = IterativeMatcher("final.input").chain(restrict("a1.h0", term_early_at="m1"))
    assert path_patch(metric, matcher) is path_patch(metric, "a1.h0 -> final.input")
    at_end = IterativeMatcher("final.input").chain(restrict("a1_h0_t4", term_early_at="m1"))
    assert path_patch(metric, at_end) is path_patch(metric, "a1.h0 -> final.input", t=END)
    assert path_patch(metric, [matcher, "m1"]) is path_patch(metric, ["m1", ("a1.h0", "final.input")])


WRONG: dict[str, tuple[Any, dict[str, Any], type[TapeoutError], str]] = {
    "backwards": ("a1.h1 -> a0.h0", {}, MatchError, r"computed later.*\n.*\nhint: .*in the direction of data flow"),
    "beside one another": ("a1.h1 -> a1.h0.q", {}, MatchError, r"computed later"),
    "in one layer": ("a1.h1 -> a1.h0", {}, MatchError, r"neither is computed from the other"),
    "no direct way": ("a0.h0.q -> a1.h1 -> m0", {}, MatchError, r"computed later"),
    "one node": ("embeds -> a0.input", {}, MatchError, r"are one node\n.*\nhint: name it once"),
    "outside": ("a0.h0@5", {}, ShapeError, r"outside of the sequence\n.*\nhint: positions are 0 to 4, or .* to -5"),
    "outside by t": ("a0.h0", {"t": 5}, ShapeError, r"position 5 is outside of the sequence"),
    "no position": ("a0.h0", {"t": ()}, ShapeError, r"positions are \(\)\nhint: give a number"),
    "the end by its name": ("a0.h0", {"t": "END"}, ShapeError, r"positions are 'END'\nhint: .*END \(patching.END\)"),
    "a position a row": ("a0.h0", {"t": torch.tensor([1, 2, 3])}, ShapeError, r"hint: .*the same for every prompt"),
    "to an earlier position": ("a0.h0@END -> a1.h0@2", {}, MatchError, r"no data flows from a0.h0@4 to a1.h0@2: later"),
    "to another position": ("m0@2 -> a1.h0.k@3", {}, MatchError, r"to itself\n.*\nhint: .*between=.recomputed"),
    "no name": (["m1", ("a0.h0", 3)], {}, ParseError, r"3 is no name"),
    "twice": (["m1", "m1"], {}, DataError, r"two paths overlap: m1 and m1\nhint: .*leave out the path"),
    "overlapping positions": (["m1@2,3", "m1@3"], {}, DataError, r"overlap: m1@2,3 and m1@3"),
    "the end twice": (["m1@END", "m1@4"], {}, DataError, r"overlap"),
    "one in another": (["a1.h0 -> m1", "a0.h0 -> a1.h0 -> m1"], {}, DataError, r"overlap: a1.h0 -> m1 and a0.h0 ->"),
    "one through another": (["a1.h0 -> m1", "a0.h0 -> a1.h0.q -> m1"], {}, DataError, r"overlap: the path to 'a1.h0'"),
    "unknown part": ("a7.h0 -> final.input", {}, MatchError, r"there is no a7.h0"),
    "unreadable": ("a1.h0 => m1", {}, ParseError, r"hint: use names such as"),
    "no paths": ([], {}, MatchError, r"hint: give at least one"),
    "between": ("m0", {"between": "free"}, DataError, r"hint: use .frozen. or .recomputed."),
    "matcher that finds nothing": (IterativeMatcher("m7"), {}, MatchError, r"matches nothing.*\nhint: .*allow_missing"),
    "positions of a matcher": (IterativeMatcher("m1"), {"t": 2}, DataError, r"hint: let the matcher match"),
}


@pytest.mark.parametrize(("paths", "options", "kind", "text"), WRONG.values(), ids=WRONG)
def test_paths_that_are_refused(
    metric: Circuit, paths: Any, options: dict[str, Any], kind: type[TapeoutError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        path_patch(metric, paths, **options)


def test_no_direct_way() -> None:
    """In a residual stream everything reads everything before it directly, except where it was cut."""
    metric = difference(by_head_and_position(tiny.gpt2(VOCABULARY), LENGTH))
    cut = metric.update("final.input", lambda node: node.with_children(node.children[:1]).rename("final.input"))
    with pytest.raises(MatchError, match=r"final.input does not read m0: .*on every way\n.*\nhint: name the parts"):
        path_patch(cut, "m0 -> final.input")
    assert path_patch(cut, "m0 -> final.input", between="recomputed") is not cut
    assert path_patch(cut, "m0 -> final.input", allow_missing=True) is cut


def test_what_may_be_missing() -> None:
    metric = difference(by_head_and_position(tiny.gpt2(VOCABULARY), LENGTH))
    both = ["a7.h0 -> final.input", "m1 -> final.input"]
    assert path_patch(metric, both, allow_missing=True) is path_patch(metric, both[1])
    assert path_patch(metric, IterativeMatcher("m7"), allow_missing=True) is metric


def without_labels(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"tokens": data["tokens"]}


WRONG_DATA: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "one dataset": (lambda: (BASELINE, None), "only baseline data was given\nhint: give both, or neither"),
    "the other": (lambda: (None, PATCH), "only patch data was given"),
    "sizes": (lambda: (BASELINE, {"tokens": tokens(1)[:2]}), "do not go together\nhint: row i of the one"),
    "lengths": (lambda: (BASELINE, {"tokens": tokens(1)[:, :4]}), "do not go together"),
    "another length": (
        lambda: ({**BASELINE, "tokens": tokens(0)[:, :4]}, {"tokens": tokens(1)[:, :4]}),
        "do not fit .*tokens.*\nhint: give at least one row, and rows of the length",
    ),
    "no labels": (lambda: (without_labels(BASELINE), PATCH), "has none\nhint: give labels"),
    "labels of another size": (
        lambda: ({**BASELINE, "labels": torch.zeros(2, 2, dtype=torch.int64)}, PATCH),
        "for 3 rows\nhint: give",
    ),
    "other entries": (lambda: (BASELINE, {"text": tokens(1)}), "entries are text\nhint: give"),
    "a tensor": (lambda: (BASELINE, tokens(1)), "the data is a Tensor\nhint: give an IOIDataset"),
    "lists": (lambda: (BASELINE, {"tokens": tokens(1).tolist()}), "tokens are list\nhint: give tensors of int64"),
    "floats": (lambda: (BASELINE, {"tokens": tokens(1).float()}), "tokens are torch.float32\nhint: give tensors of"),
}


@pytest.mark.parametrize(("data", "text"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_data_that_is_refused(metric: Circuit, data: Callable[[], tuple[Any, Any]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        path_patch(metric, "m1", *data())


def test_positions_that_are_apart_may_be_missing_or_met_through_attention(metric: Circuit) -> None:
    path = "m0@2 -> a1.h0.k@3"
    assert torch.equal(patched(metric, path, allow_missing=True), plain(metric, BASELINE["tokens"]))
    path_patch(metric, path, between="recomputed")
    path_patch(metric, "m0@2 -> a1.h0@3")


def test_what_is_no_circuit_is_refused(metric: Circuit) -> None:
    with pytest.raises(TypeMismatchError, match=r"hint: .*logit_diff_circuit\(split_circuit"):
        path_patch({"t.bind_w": metric}, "m1")  # type: ignore[arg-type]
    with pytest.raises(TypeMismatchError, match=r"not from a tuple\nhint: .*split, _ = split_circuit"):
        logit_diff_circuit((metric, []))  # type: ignore[arg-type]
    with pytest.raises(MatchError, match=r"does not read the symbol tokens.*\nhint: split the model first"):
        path_patch(Scalar(1.0), "m1")


def test_bound_circuits_are_refused(metric: Circuit) -> None:
    bound = bind_dataset(metric, BASELINE["tokens"], BASELINE["labels"])
    with pytest.raises(DataError, match=r"bound already.*\nhint: patch the circuit of one row"):
        path_patch(bound, "m1")


def test_direct_effects_are_linear_while_norms_are_frozen(metric: Circuit) -> None:
    heads = [f"a{layer}.h{head}" for layer in (0, 1) for head in (0, 1)]
    plain_values = plain(metric, BASELINE["tokens"])
    for frozen in (True, False):
        together = patched(metric, [f"{head} -> final.input" for head in heads], freeze_norm=frozen) - plain_values
        single = [
            patched(metric, f"{head}@{position} -> final.input", freeze_norm=frozen) - plain_values
            for head in heads
            for position in range(LENGTH)
        ]
        assert ((sum(single) - together).abs().max() < 1e-12) == frozen


def test_rust_circuit_gives_the_same() -> None:
    """The same logits in rust_circuit, patched there with its own matchers."""
    rc = pytest.importorskip("rust_circuit")
    from oracle import to_rust

    logits = by_head_and_position(tiny.gpt2(VOCABULARY), LENGTH)
    theirs = to_rust(logits)
    direct = rc.IterativeMatcher("final.input").chain(
        rc.restrict("a0.h1", term_early_at={"m0", "m1", "a1.h0", "a1.h1"})
    )
    scores = rc.IterativeMatcher("a1.h0").chain(rc.restrict("a.attn_scores_raw", term_early_at="a1.input"))
    query = scores.children_matcher({0}).chain(rc.restrict("a0.h1", term_early_at={"m0", "a0.h0"}))
    for path, matcher in (("a0.h1 -> final.input", direct), ("a0.h1 -> a1.h0.q", query)):
        ours = path_patch(logits, path, {"tokens": BASELINE["tokens"]}, PATCH).evaluate("float64")
        for row in range(ROWS):

            def bound(circuit: Any, data: torch.Tensor, row: int = row) -> Any:
                return circuit.update("tokens", lambda _: rc.Array(data[row], name="given"))

            edited = theirs.update(matcher, lambda node: bound(node, PATCH["tokens"]))
            found = bound(edited, BASELINE["tokens"])
            assert (ours[row] - found.evaluate()).abs().max() < 1e-4
