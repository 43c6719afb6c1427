"""Algebraic rules: each says `before --> after`, for one kind of node, whatever the weights are.

A rule is a function from a node, whose children are in normal form, to what takes its place, or None
where it does not apply. The result has the node's shape and, for every input, its value. Rules give
their results no names: they work on circuits whose names were stripped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tapeout.ir import (
    Add,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    Index,
    Rearrange,
    Scatter,
    SetSymbolicShape,
    Tag,
)
from tapeout.passes.rules.add import ADD_RULES
from tapeout.passes.rules.concat import CONCAT_RULES
from tapeout.passes.rules.einsum import EINSUM_RULES
from tapeout.passes.rules.function import FUNCTION_RULES
from tapeout.passes.rules.index import INDEX_RULES
from tapeout.passes.rules.rearrange import REARRANGE_RULES
from tapeout.passes.rules.wrappers import SCATTER_RULES, SET_SYMBOLIC_SHAPE_RULES, TAG_RULES

Rule = Callable[[Any], Circuit | None]
Rules = Mapping[type[Circuit], tuple[Rule, ...]]

RULES: Rules = {
    GeneralFunction: FUNCTION_RULES,
    Einsum: EINSUM_RULES,
    Add: ADD_RULES,
    Index: INDEX_RULES,
    Concat: CONCAT_RULES,
    Rearrange: REARRANGE_RULES,
    Scatter: SCATTER_RULES,
    Tag: TAG_RULES,
    SetSymbolicShape: SET_SYMBOLIC_SHAPE_RULES,
}
"""For each kind of node its rules, in the order in which they are tried."""


def rule_name(rule: Rule) -> str:
    """What a rule is called in counts and messages."""
    return getattr(rule, "__name__", repr(rule))


__all__ = ["RULES", "Rule", "Rules", "rule_name"]
