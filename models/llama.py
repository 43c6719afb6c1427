"""Llama (Touvron et al. 2023) and what follows its layout: RMSNorm, rotary positions, grouped queries, SwiGLU.

Axes: H query heads, K key/value heads, C head size, D hidden, M neurons, V vocabulary. Weights are
[out, in] as stored; all are views.
"""

from __future__ import annotations

from typing import Any

import torch

from tapeout.models.family import Family, Loaded, require, tensor, unembedding
from tapeout.models.info import TransformerInfo, TransformerParams
from tapeout.models.library import Weights, block, gated_mlp, grouped_rotary_attention, model_circuits, rms_norm


def _build(config: Any, weights: Weights, activation: str | None, source: str) -> Loaded:
    require(
        (activation or config.hidden_act) == "silu",
        f"the activation {activation or config.hidden_act!r} is not supported for llama",
        "llama models use silu",
    )
    require(
        config.num_attention_heads % config.num_key_value_heads == 0,
        f"{config.num_attention_heads} query heads cannot share {config.num_key_value_heads} key/value heads evenly",
        "the configuration is damaged",
    )
    params = TransformerParams(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
        mlp_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )
    norm = rms_norm(config.rms_norm_eps)
    body = block(grouped_rotary_attention(params.num_heads // params.num_kv_heads), gated_mlp(), norm)
    embeds = tensor(weights, "model.embed_tokens.weight", params.vocab_size, params.hidden_size)
    layers = [_layer(weights, f"model.layers.{layer}.", params) for layer in range(params.num_layers)]
    final = {
        "final.rms.w.scale": tensor(weights, "model.norm.weight", params.hidden_size),
        "t.w.unembed": unembedding(weights, config, embeds),
    }
    circuits = model_circuits(body, norm, layers, final, {"t.w.tok_embeds": embeds})
    return circuits, TransformerInfo(params, "llama", rope_theta=_rope_theta(config), source=source)


def _rope_theta(config: Any) -> float:
    rope = dict(getattr(config, "rope_parameters", None) or {})
    theta = rope.pop("rope_theta", 10_000.0)
    kind = rope.pop("rope_type", "default")
    require(
        kind == "default" and not rope,
        f"rotary embeddings of type {kind!r} with {rope or 'no'} further parameters are not supported",
        "only rope_type 'default' with a rope_theta is",
    )
    return float(theta)


def _layer(weights: Weights, prefix: str, params: TransformerParams) -> dict[str, torch.Tensor]:
    size, hidden, mlp = params.head_size, params.hidden_size, params.mlp_size
    heads = {"q": params.num_heads, "k": params.num_kv_heads, "v": params.num_kv_heads}
    layer = {
        f"a.w.{which}": tensor(weights, f"{prefix}self_attn.{which}_proj.weight", count * size, hidden).unflatten(
            0, (count, size)
        )
        for which, count in heads.items()
    }
    out = tensor(weights, f"{prefix}self_attn.o_proj.weight", hidden, params.num_heads * size)  # D,HC
    layer["a.w.o"] = out.unflatten(1, (params.num_heads, size)).transpose(0, 1)
    layer["m.w.gate"] = tensor(weights, f"{prefix}mlp.gate_proj.weight", mlp, hidden)
    layer["m.w.proj_in"] = tensor(weights, f"{prefix}mlp.up_proj.weight", mlp, hidden)
    layer["m.w.proj_out"] = tensor(weights, f"{prefix}mlp.down_proj.weight", hidden, mlp)
    layer["a.rms.w.scale"] = tensor(weights, f"{prefix}input_layernorm.weight", hidden)
    layer["m.rms.w.scale"] = tensor(weights, f"{prefix}post_attention_layernorm.weight", hidden)
    return layer


LLAMA = Family(
    "llama",
    understood=frozenset(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
        "max_position_embeddings rms_norm_eps tie_word_embeddings rope_parameters head_dim".split()
    ),
    irrelevant=frozenset("attention_dropout pretraining_tp rope_theta".split()),
    build=_build,
)
