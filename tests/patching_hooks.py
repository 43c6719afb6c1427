"""Activation patching as a loop over hooks on Hugging Face's models: record on one input, put in place on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tapeout.tasks.patching import NodeName, Site, parse_site

Hook = Callable[[Tensor], Tensor]


def _place(model: Any, name: NodeName) -> tuple[Any, bool, slice]:
    """The module, whether its input is meant (else its output), and the columns that are a part."""
    config, layer, head = model.config, name.layer or 0, name.head or 0
    size = config.hidden_size // config.num_attention_heads
    columns = slice(head * size, (head + 1) * size)
    if config.model_type == "llama":
        blocks, norm = model.model.layers, model.model.norm
        attention, out, mlp = blocks[layer].self_attn, blocks[layer].self_attn.o_proj, blocks[layer].mlp.down_proj
        inner, offset = (getattr(attention, f"{name.part}_proj", None), 0)
    else:
        blocks, norm = model.transformer.h, model.transformer.ln_f
        attention, mlp = blocks[layer].attn, blocks[layer].mlp.c_proj
        out, inner = attention.c_proj, attention.c_attn
        offset = 0 if name.part is None else "qkv".index(name.part) * config.hidden_size
    match name.kind:
        case "attn_input":
            return blocks[layer], True, slice(None)
        case "final_input":
            return norm, True, slice(None)
        case "mlp":
            return mlp, False, slice(None)
        case "head" if name.part is None:
            return out, True, columns
    return inner, False, slice(columns.start + offset, columns.stop + offset)


def _hooked(stack: ExitStack, model: Any, name: NodeName, hook: Hook) -> None:
    module, on_input, columns = _place(model, name)

    def on(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., columns] = hook(value[..., columns])
        return value

    if on_input:
        handle = module.register_forward_pre_hook(lambda _, args: (on(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, args, out: on(out))
    stack.callback(handle.remove)


def run_with(model: Any, tokens: Tensor, hooks: dict[NodeName, Hook]) -> Tensor:
    """Logits [N, SEQ, VOCAB] while what goes through parts is changed."""
    with torch.no_grad(), ExitStack() as stack:
        for name, hook in hooks.items():
            _hooked(stack, model, name, hook)
        logits: Tensor = model(tokens).logits
        return logits


def recorded(model: Any, tokens: Tensor, names: Sequence[NodeName]) -> dict[NodeName, Tensor]:
    """The values of parts."""
    out: dict[NodeName, Tensor] = {}

    def keep(name: NodeName) -> Hook:
        return lambda value: out.setdefault(name, value)

    run_with(model, tokens, {name: keep(name) for name in names})
    return out


def patched_by_hooks(model: Any, tokens: Tensor, sites: Sequence[str | Site], values: dict[NodeName, Tensor]) -> Tensor:
    """Logits with parts replaced at their positions."""

    def put(site: Site) -> Hook:
        def hook(value: Tensor) -> Tensor:
            at = slice(None) if site.positions is None else list(site.positions)
            value = value.clone()
            value[:, at] = values[site.name][:, at]
            return value

        return hook

    return run_with(model, tokens, {site.name: put(site) for site in map(parse_site, sites)})
