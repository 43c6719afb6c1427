"""Push down weights: each layer gets blocks of its own, its weights bound where they are used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from tapeout.ir import Array, Circuit, Matcher, Module
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass, register
from tapeout.passes.push import push_modules


class To(Enum):
    """How far down weights are pushed; later ones are more granular."""

    BLOCK = 0
    ATTN_MLP = 1
    ATTN_MLP_NORM = 2
    ATTN_HEAD_MLP_NORM = 3


PushDownTransformerTo = To

_PUSHED = Matcher(Matcher.regex(r"^b\d+$"), "final.norm", "t.bind_w", Matcher.regex(r"^[am].norm$"))
_NORMS = Matcher("ln", "rms")
_STOPS = {
    To.BLOCK: Matcher(_NORMS, "b", Matcher.regex(r"^[am](.p_bias)?$"), "m.p_bias"),
    To.ATTN_MLP: Matcher(_NORMS, Matcher.regex(r"^[am].norm_call$"), Matcher.regex(r"^[am](.p_bias)?$")),
    To.ATTN_MLP_NORM: Matcher(_NORMS, Matcher.regex(r"^[am](.p_bias)?$")),
    To.ATTN_HEAD_MLP_NORM: Matcher(_NORMS, Matcher.regex(r"^m(.p_bias)?$"), "a.head.on_inp"),
}


@register(
    "push_down_weights",
    requires='the module "t.bind_w" of tapeout.models',
    ensures="no weight is bound above the modules that `to` names; layers have numbers in their names",
)
@dataclass(frozen=True)
class PushDownWeights(Pass):
    """Weights bound at the top move down into the blocks, sublayers, norms or heads that use them.

    Args:
        to: how far.
        use_strip_arr: weights no longer share their names with symbols: drop their suffix `_arr`.
    """

    to: To = To.ATTN_HEAD_MLP_NORM
    use_strip_arr: bool = True

    def check(self, circuit: Circuit) -> None:
        require_bound_model(self.name, circuit)

    def run(self, circuit: Circuit) -> Circuit:
        out = push_modules(circuit, _PUSHED, _STOPS[self.to], layer_name)
        return strip_arr(out) if self.use_strip_arr else out


def layer_name(name: str, modules: tuple[Module, ...]) -> str:
    """`a.heads` below block `b3` is `a3.heads`; a norm's body takes the name of the norm."""
    if _NORMS_NAME.fullmatch(name):
        name = modules[0].name
    elif not _NUMBERED.match(name):
        return name
    number = next((m.group(1) for module in modules if (m := _BLOCK.fullmatch(module.name))), "")
    first, dot, rest = name.partition(".")
    return f"{first}{number}{dot}{rest}"


_NORMS_NAME = re.compile(r"ln|rms")
_NUMBERED = re.compile(r"[amb]\.|[am]$")
_BLOCK = re.compile(r"b(\d+)")


def strip_arr(circuit: Circuit) -> Circuit:
    """Arrays without the suffix `_arr` in their names."""
    return circuit.update(Matcher.regex("_arr$") & Array, lambda node: node.rename(node.name.removesuffix("_arr")))


def require_bound_model(what: str, circuit: Circuit) -> None:
    """Raises PassError if the circuit is not the module `t.bind_w` that the model library makes."""
    if circuit.name != "t.bind_w" or not isinstance(circuit, Module):
        raise PassError(
            f"{what} takes the model with its weights bound, the Module 't.bind_w', not {circuit!r}",
            hint='take it from load_circuit(...)[0]["t.bind_w"], or use circuit.update("t.bind_w", lambda '
            "c: configure_transformer(c, ...))",
        )


def push_down_transformer_weights(circuit: Circuit, to: To, use_strip_arr: bool = True) -> Circuit:
    """See `PushDownWeights`."""
    return PushDownWeights(to, use_strip_arr)(circuit)
