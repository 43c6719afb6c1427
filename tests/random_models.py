"""Hugging Face models with random weights that hide nothing, and what to compare with them.

Hugging Face's own random initialisation has zero biases, unit norms and flat attention: a model with its
query and key biases swapped, or with another gelu, gives nearly the same logits. Here every bias and every
norm parameter is random, and queries and keys are large enough for attention to choose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tapeout as rc
from tapeout.models import circuit_of

Model = GPT2LMHeadModel | LlamaForCausalLM

_SHARP = ("q_proj", "k_proj", "c_attn")
_NORMS = ("ln_1", "ln_2", "ln_f", "norm")
_EMBEDDINGS = ("wte", "wpe", "embed_tokens", "lm_head")
_TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_UNSEEDED = torch.Generator()
_UNSEEDED.seed()


def gpt2(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A tiny GPT-2, or what the configuration says."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_inner": 16, "vocab_size": 11, "n_positions": 20}
    return randomised(GPT2LMHeadModel(GPT2Config(**(sizes | _TOKENS | config))), seed)


def llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A tiny Llama with grouped queries, or what the configuration says."""
    sizes = {
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16,
        "intermediate_size": 24, "vocab_size": 11, "max_position_embeddings": 20,
    }  # fmt: skip
    return randomised(LlamaForCausalLM(LlamaConfig(**(sizes | _TOKENS | config))), seed)


def randomised(model: Any, seed: int) -> Any:
    """The model with every parameter random; logits are of order 1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    hidden = model.config.hidden_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            module = name.rsplit(".", 2)[-2]
            if module in _NORMS or module.endswith("layernorm"):
                value = 0.3 * noise + (1 if name.endswith("weight") else 0)
            elif parameter.ndim == 1:
                value = 0.5 * noise
            elif module in _EMBEDDINGS:
                value = 3 * noise / math.sqrt(hidden)
            else:
                fan_in = parameter.shape[0 if isinstance(model, GPT2LMHeadModel) else 1]
                value = (1.6 if module in _SHARP else 1.0) * noise / math.sqrt(fan_in)
            parameter.copy_(value)
    return model.eval()


def fresh(model: Any) -> Any:
    """The model with weights that no other test has: an Array of equal content that somebody else keeps alive
    would be the same node, in that one's memory."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.rand(weight.shape, generator=_UNSEEDED, dtype=weight.dtype) / 16)
    return model


def tokens_for(model: Any, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens [batch, length] of the model's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What Hugging Face's implementation says: [batch, length, vocabulary]."""
    return model(tokens).logits  # type: ignore[no-any-return]


@torch.no_grad()
def attention_entropy(model: Any, tokens: torch.Tensor) -> float:
    """The mean entropy of attention, relative to that of looking at all earlier tokens alike."""
    model.set_attn_implementation("eager")  # the only one that returns it
    probs = torch.stack(model(tokens, output_attentions=True).attentions).double()[..., 1:, :]
    model.set_attn_implementation("sdpa")
    entropy = -(probs * probs.clamp_min(1e-300).log()).sum(-1)
    uniform = torch.arange(2, tokens.shape[1] + 1).double().log()
    return float((entropy / uniform).mean())


def bound_circuit(model: Any, length: int, **options: Any) -> rc.Circuit:
    """The model's circuit on a symbol `tokens` of that length."""
    circuits, info = circuit_of(model, **options)
    tokens = rc.Symbol.new_with_random_uuid((length,), name="tokens")
    embeds = rc.GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    return info.bind_to_input(circuits["t.bind_w"], embeds, circuits.get("t.w.pos_embeds"))


def evaluate(circuit: rc.Circuit, tokens: torch.Tensor, dtype: Any = None) -> torch.Tensor:
    """The circuit's value for each row of tokens, in place of the symbol `tokens`."""
    rows = rc.DiscreteVar(rc.Array(tokens, "tokens"))
    sampler = rc.Sampler(rc.RunDiscreteVarAllSpec([rows.probs_and_group]))
    return sampler.sample(circuit.update("tokens", lambda _: rows)).evaluate(dtype)
