"""A model taken apart as for an experiment: by head and by token position, under short names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from tapeout.ir import Circuit, GeneralFunction, Matcher, Regex, Symbol
from tapeout.ir.errors import DataError
from tapeout.models.info import TransformerInfo
from tapeout.passes import (
    ConformAllModules,
    Pass,
    PassRecord,
    Pipeline,
    Rename,
    SplitToConcat,
    SubstituteModules,
    To,
    transformer_passes,
)
from tapeout.passes.pipeline import Observer

NOT_NORMS = ~(Matcher.regex("norm") | Matcher.regex("ln") | Matcher.regex("final"))
"""Modules that are no norms: what is substituted so that paths through the model can be named."""

HEADS_AND_MLPS = Matcher(Regex(r"^(a\d+.h\d+|m\d+)$"))
"""The nodes that are split by position: each head's and each MLP's output."""


def split_circuit(
    circuits: Mapping[str, Circuit], info: TransformerInfo, length: int, observers: Iterable[Observer] = ()
) -> tuple[Circuit, list[PassRecord]]:
    """A model's logits [length, VOCAB] from the symbol `tokens` [length], split by head and by position.

    Head 3 of layer 1 is `a1.h3`, its output at position 5 `a1_h3_t5`; MLP 1 is `m1`, at position 5
    `m1_t5`; `a1.input` is the residual stream before layer 1's attention, `final.input` the last one.
    Norms stay modules (`a1.norm`, `m1.norm`, `final.norm`), everything else is substituted.

    Args:
        circuits: what `load_circuit` returns first.
        info: what `load_circuit` returns third.
        length: the number of tokens of a prompt.
        observers: see `Pipeline`.

    Raises:
        ModelError: if the model knows no position so far.
        DataError: if there are no tokens.
    """
    if not isinstance(length, int) or length < 1:
        raise DataError(f"a circuit of {length!r} tokens", hint="give their number, at least 1: dataset.max_len")
    tokens = Symbol.new_with_none_uuid((length,), "tokens", torch.int64)
    embeds = GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    observers = tuple(observers)
    weights_down = transformer_passes(
        To.ATTN_HEAD_MLP_NORM, split_by_head_config="full", use_pull_up_head_split=True, use_flatten_res=True
    )
    model, first = Pipeline(weights_down, observers).run(circuits["t.bind_w"])
    bound = info.bind_to_input(model, embeds, circuits.get("t.w.pos_embeds"))
    split, second = Pipeline(_walk(info), observers).run(bound)
    return split, first + second


def _walk(info: TransformerInfo) -> list[Pass]:
    return [
        ConformAllModules(),
        SubstituteModules("t.call"),
        SubstituteModules(NOT_NORMS),
        Rename(short_names(info)),
        SplitToConcat(HEADS_AND_MLPS, axis=0, index_name="{flat}_t{part}"),
    ]


def short_names(info: TransformerInfo) -> dict[str, str]:
    """From the names that the passes leave to short ones without blocks: `b3.a.h5` is `a3.h5`."""
    last = info.params.num_layers - 1
    names = {"t.call": "logits", "t.inp_tok_pos": "embeds"}
    for layer in range(last + 1):
        names[f"b{layer}"] = "final.input" if layer == last else f"a{layer + 1}.input"
        for part in "am":
            names[f"b{layer}.{part}"] = f"{part}{layer}"
            names[f"b{layer}.{part}.p_bias"] = f"{part}{layer}.p_bias"
        for head in range(info.params.num_heads):
            names[f"b{layer}.a.h{head}"] = f"a{layer}.h{head}"
    return names
