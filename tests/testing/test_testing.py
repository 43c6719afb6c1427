"""What `tapeout.testing` gives to other suites: the assertion, the catalogue, random circuits."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import faulty
import pytest
import torch
from hypothesis import given, settings
from random_models import gpt2
from splits import by_head_and_position, difference

from tapeout.compiler.backends import BACKENDS, Backend
from tapeout.ir import Add, Array, Circuit, DiscreteVar, Symbol
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.testing import assert_backends_agree, cases, need
from tapeout.testing.strategies import circuits

pytest_plugins = ["pytester"]

COMPARE = sys.modules["tapeout.compiler.checks.compare"]  # `tapeout.compiler.checks.compare` is the function
TOKENS = {"tokens": torch.tensor([[1, 2, 3, 4, 5], [10, 0, 7, 7, 2]]), "labels": torch.tensor([[1, 2], [3, 4]])}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds the backend "faulty", whose nodes of an origin are wrong."""
    monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty"))
    return lambda name: monkeypatch.setattr(faulty, "WRONG", name)


# -- the assertion


@cases.parametrize("build")
def test_every_case_of_the_catalogue_agrees(build: Callable[[torch.dtype], Circuit]) -> None:
    assert_backends_agree(build(torch.float64), backends=["fx"], dtype="float64")


@settings(max_examples=15)
@given(circuits())
def test_random_circuits_agree(circuit: Circuit) -> None:
    assert_backends_agree(circuit, backends=["fx"], dtype="float64")


def test_a_wrong_backend_fails_with_the_node(broken: Callable[[str], None]) -> None:
    metric = difference(by_head_and_position(gpt2(), 5))
    broken("")
    assert_backends_agree(metric, TOKENS, ["fx", "faulty"])
    broken("m0.norm")
    with pytest.raises(AssertionError) as caught:
        assert_backends_agree(metric, TOKENS, ["fx", "faulty"])
    lines = str(caught.value).splitlines()
    assert "not the values of the reference on <logit_diff" in lines[0] and lines[0].endswith(": faulty")
    assert lines[1].startswith("  fx in float32: off by ") and "wrong" not in lines[1]
    assert lines[2].startswith("  faulty in float32: off by ") and lines[2].endswith("(wrong)")
    assert lines[3].startswith("  faulty parts from the reference at m0.norm (")


def test_the_tolerance_can_be_chosen(broken: Callable[[str], None]) -> None:
    x = Symbol.new_with_random_uuid((2,), "x")
    node, given = Add(x, x, name="twice"), {"x": torch.ones(3, 2)}
    broken("twice")
    with pytest.raises(AssertionError):
        assert_backends_agree(node, given, ["faulty"])
    assert_backends_agree(node, given, ["faulty"], tolerance=0.02)


@pytest.mark.parametrize("error", [UnsupportedError, LoweringError])
def test_a_backend_that_was_asked_for_must_run_it(
    error: Any, broken: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("")
    monkeypatch.setattr(faulty, "REFUSES", error)
    with pytest.raises(AssertionError, match=r"faulty in float32: it cannot be done \(wrong\)"):
        assert_backends_agree(Array(torch.ones(2), "x"), backends=["fx", "faulty"])


def test_without_names_those_that_can_run_it_must_agree(
    broken: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("")
    monkeypatch.setattr(faulty, "REFUSES", UnsupportedError)
    monkeypatch.setattr(COMPARE, "BACKENDS", {name: BACKENDS[name] for name in ("fx", "faulty")})
    assert_backends_agree(Array(torch.ones(2), "x"))
    monkeypatch.setattr(COMPARE, "BACKENDS", {"faulty": Backend("faulty")})
    with pytest.raises(AssertionError, match="no backend can run"):
        assert_backends_agree(Array(torch.ones(2), "x"))


def test_what_cannot_be_compiled_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)hint"):
        assert_backends_agree(DiscreteVar(Array(torch.ones(2, 3), "rows")), backends=["fx"])


# -- in another suite


SUITE = """
import torch
from hypothesis import given, settings
from tapeout.testing import assert_backends_agree, cases, random_circuit
from tapeout.testing.strategies import circuits

@cases.parametrize("make")
def test_case(make):
    assert make(torch.float32).name is not None

@settings(max_examples=3, deadline=None, database=None)
@given(circuits(size=4))
def test_random(circuit):
    assert circuit.evaluate().isfinite().all()
"""


def test_the_catalogue_and_random_circuits_in_another_suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=SUITE)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.parseoutcomes() == {"passed": len(cases.CASES) + 1}


# -- what is missing


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str) -> Any:
        if name.partition(".")[0] in ("pytest", "hypothesis"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(need, "import_module", missing)
    with pytest.raises(UnsupportedError, match=r"(?s)needs pytest.*hint: pip install pytest"):
        cases.parametrize()
    monkeypatch.delitem(sys.modules, "tapeout.testing.strategies")
    with pytest.raises(UnsupportedError, match=r"(?s)needs hypothesis.*hint: pip install hypothesis"):
        importlib.import_module("tapeout.testing.strategies")
