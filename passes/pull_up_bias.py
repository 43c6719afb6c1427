"""Pull up bias: the output biases of attention and MLP leave the calls."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir import Add, Circuit, Matcher, Module
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register
from tapeout.passes.push import push_modules

_CALLS = Matcher.regex(r"^[am].norm_call$") | Matcher.regex(r"^b.[am]$")


@register(
    "pull_up_bias",
    requires="a model of tapeout.models, its weights not pushed down",
    ensures="b.a and b.m are calls without output bias",
)
@dataclass(frozen=True)
class PullUpBias(Pass):
    """`call(x + bias)` becomes `call(x) + bias` for attention and MLP: the bias is a node of the residual stream."""

    def check(self, circuit: Circuit) -> None:
        if not circuit.are_any_found(_CALLS & Module):
            raise PassError(
                f"pull_up_bias found no calls of blocks (b.a, b.m) below {circuit!r}",
                hint="run it first, on the model as load_circuit returns it: later its layers have numbers",
            )

    def run(self, circuit: Circuit) -> Circuit:
        out = push_modules(
            circuit,
            push=_CALLS,
            stop=Matcher.regex(r"^[am]$"),
            namer=_name,
            flatten=False,
        )
        return out.update(Matcher.regex(r"^b.[am]$") & Add, lambda node: node.rename(f"{node.name}.p_bias"))


def _name(name: str, modules: tuple[Module, ...]) -> str:
    if name not in ("a", "m"):
        return name
    return f"b.{name}" if modules[-1].name in ("b.a", "b.m") else f"{name}.norm_call"


def pull_up_bias(circuit: Circuit) -> Circuit:
    """See `PullUpBias`."""
    return PullUpBias()(circuit)
