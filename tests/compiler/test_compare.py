"""The comparison of backends: errors against the reference, refusals, and the first node at which two part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faulty
import pytest
import torch
from batches import WRONG_INPUTS
from harness import symbol, tensor
from random_models import gpt2, llama
from splits import bind_row, by_head_and_position, difference

from tapeout.backends import rust_circuit
from tapeout.backends.reference import evaluate_many
from tapeout.compiler import bisect, compare
from tapeout.compiler.backends import BACKENDS, Backend
from tapeout.compiler.checks.peers import rust_circuit_peer
from tapeout.compiler.checks.reference import reference_values
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation
from tapeout.compiler.measure import memory_growth
from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, postorder
from tapeout.ir.errors import DataError, LoweringError, ModuleBindingError, TapeoutError, UnsupportedError

TOKENS = {"tokens": torch.tensor([[1, 2, 3, 4, 5], [10, 0, 7, 7, 2]]), "labels": torch.tensor([[1, 2], [3, 4]])}
NO_TIMING: dict[str, Any] = {"repeat": 0, "sizes": False}


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def metric(request: pytest.FixtureRequest) -> Circuit:
    """A logit difference, split by head and position."""
    return difference(by_head_and_position(request.param(), 5))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds the backend "faulty", whose nodes of an origin are wrong."""
    monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty"))
    return lambda name: monkeypatch.setattr(faulty, "WRONG", name)


# -- the reference


class MostRows:
    """`evaluate_many`, which remembers with how many rows it was called."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, circuits: Sequence[Circuit], *arguments: Any, **options: Any) -> list[torch.Tensor]:
        self.seen.append(int(circuits[0].shape[0]))  # type: ignore[arg-type]
        return evaluate_many(circuits, *arguments, **options)


def test_the_reference_is_the_value_of_each_row(metric: Circuit) -> None:
    (found,) = reference_values([metric], TOKENS)
    rows = [bind_row(metric, [(name, value[i]) for name, value in TOKENS.items()]).evaluate("float64") for i in (0, 1)]
    assert found.dtype is torch.float64
    assert Deviation.of(found, torch.stack(rows)).within(1e-12)


def test_many_rows_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = symbol(1, (2,), "x")
    rows, said = torch.arange(14.0).reshape(7, 2), list[tuple[int, int]]()
    circuits = [Add(x, Array(tensor(2), "k")), Array(tensor(3), "l")]
    whole = reference_values(circuits, {"x": rows})
    monkeypatch.setattr("tapeout.compiler.checks.reference.ROWS_AT_ONCE", 3)
    monkeypatch.setattr("tapeout.compiler.checks.reference.evaluate_many", most_rows := MostRows())
    found = reference_values(circuits, {"x": rows}, lambda _, done, total: said.append((done, total)))
    assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
    assert most_rows.seen == [3, 3, 1] and [done for done, _ in said] == sorted({done for done, _ in said})
    assert said[-1][0] == said[-1][1]


def test_what_does_not_depend_on_the_inputs_is_repeated() -> None:
    x = symbol(1, (2,), "x")
    both = reference_values([Array(tensor(3), "k"), x], {"x": torch.ones(4, 2)})
    assert [value.shape for value in both] == [(4, 3), (4, 2)]


WRONG = WRONG_INPUTS | {"one is missing": ({"labels": TOKENS["labels"]}, ModuleBindingError)}
"""Labels that are not given are what the circuit has for them."""


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_refused(what: str) -> None:
    values, error = WRONG[what]
    with pytest.raises(TapeoutError if what == "one is unknown" else error) as caught:
        compare(difference(by_head_and_position(gpt2(), 5)), values, ["fx"], **NO_TIMING)
    assert caught.value.hint


# -- how far values are apart


@pytest.mark.parametrize(
    ("found", "expected", "absolute", "relative", "within"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, 0.0, True),
        ([0.0, 8.5], [0.0, 8.0], 0.5, 0.0625, True),
        ([0.0, 9.0], [0.0, 8.0], 1.0, 0.125, False),
        ([0.0625], [0.0], 0.0625, math.inf, True),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0, 0.0, True),
        ([math.inf], [-math.inf], math.inf, math.inf, False),
        ([], [], 0.0, 0.0, True),
    ],
)
def test_deviation(found: list[float], expected: list[float], absolute: float, relative: float, within: bool) -> None:
    off = Deviation.of(torch.tensor(found), torch.tensor(expected))
    assert (off.absolute, off.relative, off.within(0.1)) == (absolute, relative, within)


def test_what_is_no_number_is_never_within() -> None:
    nan = torch.tensor([1.0, math.nan])
    for pair in ((nan, torch.ones(2)), (torch.ones(2), nan), (nan, nan)):
        assert not Deviation.of(*pair).within(math.inf)


# -- the table


def test_every_backend_and_dtype_is_a_row_within_tolerance(metric: Circuit) -> None:
    dtypes = ("float32", "float64", "bfloat16")
    result = compare(metric, TOKENS, ["fx", "torchscript", "onnx"], dtypes, repeat=1)
    assert [(way.name, way.dtype) for way in result.ways] == [
        (name, dtype) for dtype in dtypes for name in ("fx", "torchscript", "onnx")
    ]
    refused = result.way("onnx", "bfloat16")
    assert "no bfloat16 kernels" in refused.note and refused.deviation is None
    assert result.within
    assert all(way.within and way.seconds and way.artefact for way in result.ways if way is not refused)
    errors = [result.way("fx", dtype).deviation for dtype in ("float64", "float32", "bfloat16")]
    assert errors[0] and errors[1] and errors[2]
    assert errors[0].absolute < 1e-12 < errors[1].absolute < 1e-4 < errors[2].absolute
    assert result.way("fx").to_json().keys() == result.to_json()["ways"][0].keys()
    with pytest.raises(DataError, match=r"(?s)abacus in float32 was not compared.*hint: there are fx float32"):
        result.way("abacus")


def test_a_wrong_backend_is_out_of_tolerance(metric: Circuit, broken: Callable[[str], None]) -> None:
    broken("logit_diff")
    result = compare(metric, TOKENS, ["fx", "faulty"], repeat=0)
    assert not result.within
    assert [way.within for way in result.ways] == [True, False]
    off = result.way("faulty").deviation
    assert off is not None and off.relative == pytest.approx(0.01, rel=1e-3)


def test_a_backend_that_refuses_is_said_and_one_that_fails_is_counted(
    broken: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = symbol(1, (2,), "x")
    given = {"x": torch.ones(3, 2)}
    broken("")
    for error, within in ((UnsupportedError, True), (LoweringError, False)):
        monkeypatch.setattr(faulty, "REFUSES", error)
        result = compare(Add(x, x), given, ["fx", "faulty"], **NO_TIMING)
        row = result.way("faulty")
        assert (row.note, row.deviation, row.within, result.within) == ("it cannot be done", None, within, within)
        assert not compare(Add(x, x), given, ["faulty"], **NO_TIMING).within  # nothing was compared


def test_another_shape_is_no_agreement() -> None:
    x = symbol(1, (2,), "x")
    result = compare(x, {"x": torch.ones(3, 2)}, ["fx"], peers={"other": lambda: lambda: torch.ones(3)}, **NO_TIMING)
    assert "shape [3], not [3, 2]" in result.way("other").note


def test_memory_is_that_of_the_call() -> None:
    with memory_growth() as small:
        torch.ones(1000)
    with memory_growth() as large:
        torch.ones(50_000_000)
    if small.peak is None or large.peak is None:
        pytest.skip("this system keeps no account of resident memory")
    assert small.peak < 50e6 < 190e6 < large.peak


@pytest.mark.parametrize(
    ("backends", "dtypes", "message"),
    [
        (["abacus"], ["float32"], "there is no backend abacus"),
        ([], ["float32"], "no backend was named"),
        (["fx"], ["int64"], "cannot compare in torch.int64"),
    ],
)
def test_unknown_backends_and_dtypes(backends: list[str], dtypes: list[str], message: str) -> None:
    x = symbol(1, (2,), "x")
    with pytest.raises(UnsupportedError, match=rf"(?s){message}.*hint: "):
        compare(x, {"x": torch.ones(1, 2)}, backends, dtypes)


# -- rust_circuit beside them


@pytest.mark.skipif(not rust_circuit.installed(), reason="rust_circuit has wheels for CPython 3.11 on Linux only")
def test_rust_circuit_stands_beside() -> None:
    gpt, other = (difference(by_head_and_position(make(), 5)) for make in (gpt2, llama))
    result = compare(gpt, TOKENS, ["fx"], peers={"rust": lambda: rust_circuit_peer(gpt, TOKENS)}, repeat=0)
    off = result.way("rust").deviation
    assert off is not None and off.within(TOLERANCES[torch.float32])
    with pytest.raises(UnsupportedError, match=r"(?s)no function rotate_half.*hint: "):
        rust_circuit_peer(other, TOKENS)


def test_without_rust_circuit_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapeout.compiler.checks.peers.installed", lambda: False)
    x = symbol(1, (2,), "x")
    given = {"x": torch.ones(1, 2)}
    result = compare(x, given, ["fx"], peers={"rust": lambda: rust_circuit_peer(x, given)}, **NO_TIMING)
    assert result.way("rust").note == "rust_circuit is not installed"
    assert result.within


# -- where two part


@pytest.mark.parametrize(
    ("pair", "dtype"),
    [
        (("fx", "torchscript"), "float32"),
        (("fx", "onnx"), "float32"),
        (("onnx", "reference"), "float64"),
        (("fx", "reference"), "bfloat16"),
    ],
)
def test_backends_that_agree_do_not_part(metric: Circuit, pair: tuple[str, str], dtype: str) -> None:
    assert bisect(metric, TOKENS, pair, dtype) is None


@pytest.mark.parametrize(("wrong", "towards"), [("m0.norm", "m0.norm"), ("m.pre", "a1.input"), ("final.call", None)])
@pytest.mark.parametrize("other", ["fx", "reference"])
def test_the_first_node_that_is_wrong_is_named(
    wrong: str, towards: str | None, other: str, broken: Callable[[str], None]
) -> None:
    broken(wrong)
    found = bisect(difference(by_head_and_position(gpt2(), 5)), TOKENS, ("faulty", other))
    assert found is not None
    assert (found.name, found.towards) == (wrong, towards or wrong)
    assert found.deviation.relative == pytest.approx(0.01, rel=1e-3)
    assert wrong in str(found) and (towards or wrong) in str(found)
    assert found.to_json()["name"] == wrong


def test_parting_counts_nodes_in_topological_order(broken: Callable[[str], None]) -> None:
    x = symbol(1, (2,), "x")
    first = GeneralFunction.new_by_name(x, spec_name="exp", name="first")
    second = Einsum.from_einsum_string("a,a->", first, x, name="second")
    assert len(list(postorder(second))) == 3
    broken("second")
    found = bisect(second, {"x": torch.ones(3, 2)}, ("fx", "faulty"))
    assert found is not None and (found.position, found.nodes) == (2, 2)


def test_two_backends_are_needed() -> None:
    x = symbol(1, (2,), "x")
    with pytest.raises(DataError, match=r"(?s)are not two backends.*hint: name two different ones"):
        bisect(x, {"x": torch.ones(1, 2)}, ("fx", "fx"))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = symbol(1, (2,), "x")
    assert compare(Add(x, x), {"x": torch.ones(3, 2)}, ["fx"], repeat=0).way("fx").artefact
    assert list(tmp_path.iterdir()) == []
