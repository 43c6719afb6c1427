"""The logit difference written by hand in torch, pruned by hand: the bar for what is compiled.

Only what the answer needs is computed: the last block's queries, its MLP and the final norm at the last position, and
two rows of the unembedding. The weights are those of Hugging Face's model, in the layout that its checkpoint has, in
which GPT-2's queries, keys and values are one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LogitDiff = Callable[[Tensor, Tensor], Tensor]
"""From tokens [N, SEQ] and labels [N, 2] to logit differences [N]."""


def by_hand(model: Any) -> LogitDiff:
    """The function for a Hugging Face GPT-2 or Llama."""
    return {"gpt2": _gpt2, "llama": _llama}[model.config.model_type](model)


def _difference(x: Tensor, unembed: Tensor, labels: Tensor) -> Tensor:
    io, s = F.embedding(labels, unembed).unbind(1)
    return (x.float() * (io.float() - s.float())).sum(-1)


def _gpt2(model: Any) -> LogitDiff:
    body, heads = model.transformer, model.config.n_head
    width = model.config.n_embd

    def norm(ln: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), ln.weight, ln.bias, ln.eps)

    def conv(layer: Any, x: Tensor) -> Tensor:
        return torch.addmm(layer.bias, x.reshape(-1, x.shape[-1]), layer.weight).view(*x.shape[:-1], -1)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def mlp(block: Any, x: Tensor) -> Tensor:
        hidden = F.gelu(conv(block.mlp.c_fc, norm(block.ln_2, x)), approximate="tanh")
        return conv(block.mlp.c_proj, hidden)

    def logit_diff(tokens: Tensor, labels: Tensor) -> Tensor:
        x = F.embedding(tokens, body.wte.weight) + body.wpe.weight[: tokens.shape[1]]
        for block in body.h[:-1]:
            q, k, v = map(split, conv(block.attn.c_attn, norm(block.ln_1, x)).chunk(3, -1))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + conv(block.attn.c_proj, z.transpose(1, 2).flatten(2))
            x = x + mlp(block, x)
        block = body.h[-1]
        normed, attn = norm(block.ln_1, x), block.attn.c_attn
        q = split(torch.addmm(attn.bias[:width], normed[:, -1], attn.weight[:, :width])[:, None])
        kv = torch.addmm(attn.bias[width:], normed.flatten(0, 1), attn.weight[:, width:])
        k, v = map(split, kv.view(*normed.shape[:-1], -1).chunk(2, -1))
        z = F.scaled_dot_product_attention(q, k, v)
        last = x[:, -1] + conv(block.attn.c_proj, z.flatten(1))
        last = last + mlp(block, last)
        return _difference(norm(body.ln_f, last), model.lm_head.weight, labels)

    return logit_diff


def _llama(model: Any) -> LogitDiff:
    body, config = model.model, model.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    tables: dict[int, tuple[Tensor, Tensor]] = {}

    def norm(layer: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), layer.weight, config.rms_norm_eps)

    def split(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, size)).transpose(1, 2)

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    def mlp(layer: Any, x: Tensor) -> Tensor:
        normed, m = norm(layer.post_attention_layernorm, x), layer.mlp
        gate, up = F.linear(normed, m.gate_proj.weight), F.linear(normed, m.up_proj.weight)
        return F.linear(F.silu(gate) * up, m.down_proj.weight)

    def table(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] not in tables:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            cos, sin = body.rotary_emb(x, positions)
            tables[x.shape[1]] = cos[0], sin[0]
        return tables[x.shape[1]]

    def logit_diff(tokens: Tensor, labels: Tensor) -> Tensor:
        x = F.embedding(tokens, body.embed_tokens.weight)
        cos, sin = table(x)
        for layer in body.layers[:-1]:
            normed, attn = norm(layer.input_layernorm, x), layer.self_attn
            q = rotate(split(F.linear(normed, attn.q_proj.weight), heads), cos, sin)
            k = rotate(split(F.linear(normed, attn.k_proj.weight), groups), cos, sin)
            v = split(F.linear(normed, attn.v_proj.weight), groups)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(z.transpose(1, 2).flatten(2), attn.o_proj.weight)
            x = x + mlp(layer, x)
        layer = body.layers[-1]
        normed, attn = norm(layer.input_layernorm, x), layer.self_attn
        q = rotate(split(F.linear(normed[:, -1:], attn.q_proj.weight), heads), cos[-1:], sin[-1:])
        k = rotate(split(F.linear(normed, attn.k_proj.weight), groups), cos, sin)
        v = split(F.linear(normed, attn.v_proj.weight), groups)
        z = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        last = x[:, -1] + F.linear(z.flatten(1), attn.o_proj.weight)
        last = last + mlp(layer, last)
        return _difference(norm(body.norm, last), model.lm_head.weight, labels)

    return logit_diff
