"""GPT-2 (Radford et al. 2019): LayerNorm, learnt positions, biases everywhere, gelu in its tanh form.

Axes: H heads, C head size, D hidden, M neurons, V vocabulary. Hugging Face stores projections as
[in, out]; the library's weights are [out, in]: all are views, nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch

from tapeout.models.family import Family, Loaded, require, tensor, unembedding
from tapeout.models.info import TransformerInfo, TransformerParams
from tapeout.models.library import Weights, attention, block, layer_norm, model_circuits, pointwise_mlp

_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def _build(config: Any, weights: Weights, activation: str | None, source: str) -> Loaded:
    activation = activation or config.activation_function
    require(
        activation in _ACTIVATIONS,
        f"the activation {activation!r} is not supported",
        f"supported are {', '.join(_ACTIVATIONS)}",
    )
    require(
        config.n_embd % config.n_head == 0,
        f"{config.n_embd} hidden sizes cannot be divided among {config.n_head} heads evenly",
        "the configuration is damaged",
    )
    params = TransformerParams(
        num_layers=config.n_layer,
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_size=config.n_embd // config.n_head,
        hidden_size=config.n_embd,
        mlp_size=config.n_inner or 4 * config.n_embd,
        vocab_size=config.vocab_size,
        max_positions=config.n_positions,
    )
    norm = layer_norm(config.layer_norm_epsilon)
    body = block(attention(bias=True), pointwise_mlp(_ACTIVATIONS[activation], bias=True), norm)
    prefix = "transformer." if any(name.startswith("transformer.") for name in weights) else ""
    hidden, vocab = params.hidden_size, params.vocab_size
    embeds = tensor(weights, f"{prefix}wte.weight", vocab, hidden)
    layers = [_layer(weights, f"{prefix}h.{layer}.", params) for layer in range(params.num_layers)]
    final = {
        "final.ln.w.scale": tensor(weights, f"{prefix}ln_f.weight", hidden),
        "final.ln.w.bias": tensor(weights, f"{prefix}ln_f.bias", hidden),
        "t.w.unembed": unembedding(weights, config, embeds),
    }
    tables = {
        "t.w.tok_embeds": embeds,
        "t.w.pos_embeds": tensor(weights, f"{prefix}wpe.weight", params.max_positions, hidden),
    }
    circuits = model_circuits(body, norm, layers, final, tables)
    return circuits, TransformerInfo(params, "gpt2", source=source)


def _layer(weights: Weights, prefix: str, params: TransformerParams) -> dict[str, torch.Tensor]:
    heads, size, hidden, mlp = params.num_heads, params.head_size, params.hidden_size, params.mlp_size
    qkv = tensor(weights, f"{prefix}attn.c_attn.weight", hidden, 3 * hidden).t().unflatten(0, (3, heads, size))  # 3HC,D
    qkv_bias = tensor(weights, f"{prefix}attn.c_attn.bias", 3 * hidden).unflatten(0, (3, heads, size))
    out = tensor(weights, f"{prefix}attn.c_proj.weight", hidden, hidden).unflatten(0, (heads, size))  # H,C,D
    layer = {
        "a.w.o": out.transpose(1, 2),
        "a.w.o_bias": tensor(weights, f"{prefix}attn.c_proj.bias", hidden),
        "m.w.proj_in": tensor(weights, f"{prefix}mlp.c_fc.weight", hidden, mlp).t(),
        "m.w.in_bias": tensor(weights, f"{prefix}mlp.c_fc.bias", mlp),
        "m.w.proj_out": tensor(weights, f"{prefix}mlp.c_proj.weight", mlp, hidden).t(),
        "m.w.out_bias": tensor(weights, f"{prefix}mlp.c_proj.bias", hidden),
    }
    for i, which in enumerate("qkv"):
        layer[f"a.w.{which}"], layer[f"a.w.{which}_bias"] = qkv[i], qkv_bias[i]
    for ours, theirs in (("a", "ln_1"), ("m", "ln_2")):
        layer[f"{ours}.ln.w.scale"] = tensor(weights, f"{prefix}{theirs}.weight", hidden)
        layer[f"{ours}.ln.w.bias"] = tensor(weights, f"{prefix}{theirs}.bias", hidden)
    return layer


GPT2 = Family(
    "gpt2",
    understood=frozenset(
        "vocab_size n_positions n_ctx n_embd n_layer n_head n_inner activation_function "
        "layer_norm_epsilon tie_word_embeddings".split()
    ),
    irrelevant=frozenset(
        "resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation summary_proj_to_labels "
        "summary_first_dropout reorder_and_upcast_attn".split()
    ),
    build=_build,
)
