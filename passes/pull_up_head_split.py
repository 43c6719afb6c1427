"""Pull up head split: each head gets its own call of norm and input."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

from tapeout.ir import Add, Circuit, Matcher, Module
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register
from tapeout.passes.push import push_modules

_LAYER = Matcher.regex(r"^a\d+$")


@register(
    "pull_up_head_split",
    requires="layers split by head",
    ensures="b3.a is a sum of calls b3.a.h0, b3.a.h1, ...: a head can be given another input than its siblings",
)
@dataclass(frozen=True)
class PullUpHeadSplit(Pass):
    """`call(h0 + h1 + ...)` becomes `call(h0) + call(h1) + ...` for the calls of norm and block input.

    Args:
        layers: which layers; None for all, which must all be split then.
    """

    layers: frozenset[int] | None = None

    def check(self, circuit: Circuit) -> None:
        if not circuit.are_any_found(Matcher.regex(r"^a\d+.norm_call$")):
            raise PassError(
                f"pull_up_head_split found no attention calls (a0.norm_call, ...) below {circuit!r}",
                hint="run it after push_down_weights and split_by_head, before modules are substituted",
            )
        split = {int(node.name[1:]): isinstance(node, Add) for node in circuit.get(_LAYER)}
        missing = sorted(layer for layer in self.layers or split if not split.get(layer))
        if missing:
            raise PassError(
                f"pull_up_head_split: layers {missing} are not split by head below {circuit!r}",
                hint=f"split by head are layers {sorted(layer for layer in split if split[layer])}",
            )

    def run(self, circuit: Circuit) -> Circuit:
        layers = self.layers
        chosen = "|".join(map(str, sorted(layers))) if layers is not None else r"\d+"
        attention = Matcher.regex(f"^a({chosen})$")
        mask_holder = Matcher.match_any_found(attention)
        return push_modules(
            circuit,
            push=Matcher.regex(f"^a({chosen}).norm_call$") | Matcher.regex(f"^b({chosen}).a$"),
            stop=~mask_holder,
            namer=_name,
            flatten=False,
        )


def _name(name: str, modules: tuple[Module, ...]) -> str:
    match = re.match(r"a(\d+)\.(.*)", name)
    if match is None or not modules:
        return name
    if re.fullmatch(r"b\d+\.a", modules[-1].name):
        return f"b{match.group(1)}.a.{match.group(2)}"
    return f"{name}.norm_call"


def pull_up_head_split(circuit: Circuit, to_pull_up: Set[int] | None = None) -> Circuit:
    """See `PullUpHeadSplit`."""
    return PullUpHeadSplit(None if to_pull_up is None else frozenset(to_pull_up))(circuit)
