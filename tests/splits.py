"""A model's circuit on one prompt, taken apart in every way there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tapeout.ir import Circuit, GeneralFunction, Symbol
from tapeout.models import circuit_of, split_circuit
from tapeout.passes import To, configure_transformer
from tapeout.tasks.ioi.circuit import logit_diff_circuit

HEADS: dict[str, Any] = {"to": To.ATTN_HEAD_MLP_NORM, "split_by_head_config": "full"}

WAYS: dict[str, dict[str, Any]] = {
    "block": {"to": To.BLOCK, "use_clear_block_module": False},
    "attention and mlp": {"to": To.ATTN_MLP},
    "norms": {"to": To.ATTN_MLP_NORM},
    "heads as modules": {"to": To.ATTN_HEAD_MLP_NORM},
    "heads": HEADS,
    "heads, biases left": HEADS | {"use_pull_up_bias": False},
    "heads pulled up": HEADS | {"use_pull_up_head_split": True},
    "one layer": HEADS | {"split_by_head_config": {1}},
    "flat residual": HEADS | {"use_pull_up_head_split": True, "use_flatten_res": True},
    "flat components": HEADS | {"use_pull_up_head_split": True, "use_flatten_res": True, "flatten_components": True},
}
"""Options of `configure_transformer` that take a model of four heads and two layers apart."""


def unsplit(model: Any, length: int, configure: Callable[[Circuit], Circuit] = lambda bound: bound) -> Circuit:
    """The logits [length, VOCAB] on the symbol `tokens`, of the model as `configure` makes it."""
    circuits, info = circuit_of(model)
    tokens = Symbol.new_with_none_uuid((length,), "tokens", torch.int64)
    embeds = GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    return info.bind_to_input(configure(circuits["t.bind_w"]), embeds, circuits.get("t.w.pos_embeds"))


def taken_apart(model: Any, length: int, way: str) -> Circuit:
    """The logits [length, VOCAB] of the model taken apart in one of `WAYS`."""
    return unsplit(model, length, lambda bound: configure_transformer(bound, **WAYS[way]))


def by_head_and_position(model: Any, length: int) -> Circuit:
    """The logits [length, VOCAB], split by head and by position, under short names."""
    circuits, info = circuit_of(model)
    return split_circuit(circuits, info, length)[0]


def difference(logits: Circuit) -> Circuit:
    """The logit difference of one prompt."""
    return logit_diff_circuit(logits)


def bind_row(circuit: Circuit, values: Sequence[tuple[str, torch.Tensor]]) -> Circuit:
    """The circuit with constants in the places of its inputs."""
    from tapeout.ir import Array

    for name, value in values:
        circuit = circuit.update(name, lambda _, n=name, v=value: Array(v, n))  # type: ignore[misc]
    return circuit
