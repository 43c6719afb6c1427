"""What each backend supports: every kind of node and every function, by a rule or by a reason why not.

`docs/support.md` is generated here; `pytest --update-golden` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import KINDS, tensor

from tapeout.backends.common.program import Program
from tapeout.backends.common.rules import Refused
from tapeout.backends.fx import lower
from tapeout.backends.fx.functions import FUNCTION_RULES
from tapeout.backends.fx.kinds import RULES
from tapeout.backends.onnx.functions import FUNCTION_RULES as ONNX_FUNCTION_RULES
from tapeout.backends.onnx.functions import NOT_IN_FLOAT64
from tapeout.backends.onnx.kinds import RULES as ONNX_RULES
from tapeout.backends.onnx.lower import lower as lower_to_onnx
from tapeout.backends.onnx.options import OnnxOptions
from tapeout.backends.reference.evaluate import _RULES as REFERENCE_RULES
from tapeout.compiler.backends import BACKENDS
from tapeout.ir import Add, Array, Circuit, DiscreteVar, Module, ModuleArgSpec, ModuleSpec, Symbol
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.nodes.functions import FUNCTIONS, Cast, GenIndex
from tapeout.ir.nodes.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary
from tapeout.testing.cases import CASES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"

PARAMETRISED: dict[str, type] = {"gen_index": GenIndex, "cast": Cast}
KERNELS: dict[str, type] = {
    "linear": Linear, "layer_norm": LayerNorm, "rms_norm": RMSNorm, "rotary": Rotary, "attention": Attention,
}  # fmt: skip
"""Functions that only the compiler makes."""

NOTES: dict[type[Circuit], str] = {
    Array: "a constant of the module, held once by content",
    Symbol: "an input",
    Module: "inlined first, by every backend",
    DiscreteVar: "an input, or sampled first",
}
"""How the kinds without a rule get to a backend all the same."""


def functions() -> dict[str, object]:
    """Every function by name: what it is listed under in a table of rules."""
    return {name: name for name in FUNCTIONS} | PARAMETRISED | KERNELS


def page() -> str:
    lines = [
        "# What the backends support",
        "",
        "Generated from the tables of rules by `pytest tests/backends/test_support.py --update-golden`.",
        "",
        f"The backends of `compile` are {', '.join(BACKENDS)}. torchscript and inductor run the fx module, and support",
        "what fx does. onnx builds a model of its own; on the CPU it has no bfloat16.",
        "`reference` is what they are compared with.",
        "",
        "## Kinds of nodes",
        "",
        "| kind | reference | fx | onnx |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        columns = " | ".join(_of_kind(rules, kind) for rules in (RULES, ONNX_RULES))
        lines.append(f"| {kind.__name__} | {_reference(kind)} | {columns} |")
    lines += ["", "## Functions", "", "| function | reference | fx | onnx |", "|---|---|---|---|"]
    for name, key in functions().items():
        made = " (made by the compiler)" if name in KERNELS else ""
        fx = "rule" if key in FUNCTION_RULES else "none"
        limit = f", not in float64 (no {NOT_IN_FLOAT64[name]} of it)" if name in NOT_IN_FLOAT64 else ""
        onnx = f"rule{limit}" if key in ONNX_FUNCTION_RULES else "none"
        lines.append(f"| {name}{made} | definition | {fx} | {onnx} |")
    return "\n".join(lines) + "\n"


def _reference(kind: type[Circuit]) -> str:
    if kind is Module:
        return "inlined first"
    return {Symbol: "bound first", DiscreteVar: "sampled first"}.get(kind, "rule")


def _of_kind(rules: Mapping[type[Circuit], Any], kind: type[Circuit]) -> str:
    rule = rules[kind]
    if kind in NOTES:
        return NOTES[kind]
    return f"none: {rule.reason}" if isinstance(rule, Refused) else "rule"


def test_the_page_says_what_the_tables_say(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew with --update-golden"


@pytest.mark.parametrize(
    ("kinds", "known"), [(RULES, FUNCTION_RULES), (ONNX_RULES, ONNX_FUNCTION_RULES)], ids=["fx", "onnx"]
)
def test_there_is_a_rule_or_a_reason_for_every_kind_and_function(
    kinds: Mapping[type[Circuit], Any], known: Mapping[object, Any]
) -> None:
    assert set(kinds) == set(KINDS)
    assert set(functions().values()) == set(known)
    assert all(
        isinstance(rule, Refused) and rule.reason
        for kind, rule in kinds.items()
        if kind in NOTES and kind is not Symbol
    )


def test_the_reference_has_a_rule_for_every_kind() -> None:
    assert set(REFERENCE_RULES) | {Module} == set(KINDS)


def test_every_function_has_a_case() -> None:
    for name in FUNCTIONS:
        assert f"function {name}" in CASES, name


def test_what_is_refused_says_so() -> None:
    x = Symbol.new_with_random_uuid((3,), "x")
    call = Module(ModuleSpec(Add(x, Array(tensor(3), "k")), [ModuleArgSpec(x)]), "call", x=Array(tensor(3), "y"))
    for each in (lower, partial(lower_to_onnx, options=OnnxOptions())):
        with pytest.raises(UnsupportedError, match="sample"):
            each(Program([DiscreteVar(Array(tensor(2, 3), "rows"))]))
        with pytest.raises(UnsupportedError, match="inlined"):
            each(Program([call], [x]))
