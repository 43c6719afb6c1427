"""What path patching means, said a second time: a recursion over routes, in plain torch, from Hugging Face's weights.

The value of a part on a route depends on what the paths still look for on it. `Routes` is a set of (path, step): each
says that the path has come so far and that its step is looked for next. At a step a path moves on; at its sender the
value is that of the patch data. Nothing of circuits is used here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tapeout.tasks.patching import NodeName, Path, Site

Routes = frozenset[tuple[int, int]]
NOTHING: Routes = frozenset()


@dataclass
class Tiny:
    """GPT-2 or Llama as functions of tensors in float64."""

    model: Any
    grouped: int = 1

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model).double()
        self.config = self.model.config
        self.is_llama = self.config.model_type == "llama"
        self.body = self.model.model if self.is_llama else self.model.transformer
        self.blocks = self.body.layers if self.is_llama else self.body.h
        self.heads = self.config.num_attention_heads
        self.grouped = self.heads // getattr(self.config, "num_key_value_heads", self.heads)

    def embed(self, tokens: Tensor) -> Tensor:
        if self.is_llama:
            return self.body.embed_tokens.weight[tokens]
        return self.body.wte.weight[tokens] + self.body.wpe.weight[: tokens.shape[-1]]

    def norm(self, point: tuple[int, str], x: Tensor, scale_from: Tensor) -> Tensor:
        layer, kind = point
        if self.is_llama:
            block = self.body.norm if kind == "final" else self.blocks[layer]
            weight = (
                block if kind == "final" else block.input_layernorm if kind == "a" else block.post_attention_layernorm
            ).weight
            square = scale_from.pow(2).mean(-1, keepdim=True)
            return weight * x * torch.rsqrt(square + self.config.rms_norm_eps)
        ln = self.body.ln_f if kind == "final" else getattr(self.blocks[layer], "ln_1" if kind == "a" else "ln_2")
        square = (scale_from - scale_from.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(square + ln.eps) * ln.weight + ln.bias

    def projected(self, layer: int, head: int, part: str, x: Tensor) -> Tensor:
        """q, k or v of a head, or k or v of a group, from the normed input."""
        if self.is_llama:
            weight = getattr(self.blocks[layer].self_attn, f"{part}_proj").weight
            size = weight.shape[1] // self.heads
            out = x @ weight[head * size : (head + 1) * size].T
            return out if part == "v" else self._rotated(out)
        hidden = x.shape[-1]
        size, at = hidden // self.heads, "qkv".index(part) * hidden
        conv = self.blocks[layer].attn.c_attn
        columns = slice(at + head * size, at + (head + 1) * size)
        return x @ conv.weight[:, columns] + conv.bias[columns]

    def _rotated(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
        angles = torch.outer(torch.arange(x.shape[-2]).float(), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        half = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1)
        return x * angles.cos().double() + half * angles.sin().double()

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~causal, float("-inf")).softmax(-1)

    def written(self, layer: int, head: int, z: Tensor) -> Tensor:
        size = z.shape[-1]
        at = slice(head * size, (head + 1) * size)
        if self.is_llama:
            return z @ self.blocks[layer].self_attn.o_proj.weight[:, at].T
        return z @ self.blocks[layer].attn.c_proj.weight[at]

    def attention_bias(self, layer: int) -> Tensor | float:
        return 0.0 if self.is_llama else self.blocks[layer].attn.c_proj.bias

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """Without the output bias."""
        mlp = self.blocks[layer].mlp
        if self.is_llama:
            return mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        return functional.gelu(mlp.c_fc(x), approximate="tanh") @ mlp.c_proj.weight

    def mlp_bias(self, layer: int) -> Tensor | float:
        return 0.0 if self.is_llama else self.blocks[layer].mlp.c_proj.bias

    def unembed(self, x: Tensor) -> Tensor:
        return x @ self.model.lm_head.weight.T


def components(tiny: Tiny) -> list[NodeName]:
    """What writes to the residual stream, in order."""
    out = [NodeName("embeds")]
    for layer in range(len(tiny.blocks)):
        out += [NodeName("head", layer, head) for head in range(tiny.heads)] + [NodeName("mlp", layer)]
    return out


@dataclass
class Definition:
    """The metric along paths.

    Attributes:
        tiny: the model.
        baseline, patch: tokens [N, SEQ].
        paths: the paths, steps in the order of data flow.
        recomputed: whether ways between the steps may pass other heads and MLPs.
        frozen_norm: whether norms keep their scale on the baseline.
    """

    tiny: Tiny
    baseline: Tensor
    patch: Tensor
    paths: Sequence[Path]
    recomputed: bool = False
    frozen_norm: bool = False
    memo: dict[tuple[NodeName, Routes, bool], Tensor] = field(default_factory=dict)

    def logits(self) -> Tensor:
        start = frozenset((number, len(path.steps) - 1) for number, path in enumerate(self.paths))
        return self.read(NodeName("logits"), start, False)

    def read(self, part: NodeName, routes: Routes, patched: bool) -> Tensor:
        """The value of a part on routes; `patched`: all of it on the patch data."""
        if patched:
            routes = NOTHING
        key = (part, routes, patched)
        if key not in self.memo:
            arrived = [(path, step) for path, step in routes if self._site(path, step).name == part]
            out = None
            for position in range(self.baseline.shape[1]):
                on, sent = self._at(part, arrived, routes, position)
                value = self.read(part, NOTHING, True) if sent else self._computed(part, on, patched)
                out = value.clone() if out is None else out
                out[:, position] = value[:, position]
            assert out is not None
            self.memo[key] = out
        return self.memo[key]

    def _site(self, path: int, step: int) -> Site:
        return self.paths[path].steps[step]

    def _at(
        self, part: NodeName, arrived: Sequence[tuple[int, int]], routes: Routes, position: int
    ) -> tuple[Routes, bool]:
        """What is looked for below one position of a part, and whether a path's sender is here."""
        length = self.baseline.shape[1]
        going = {item for item in routes if self._passes(part, *item)}
        for path, step in arrived:
            positions = self._site(path, step).positions
            if positions is None or position in {p % length for p in positions}:
                if step == 0:
                    return NOTHING, True
                going.add((path, step - 1))
        return frozenset(going), False

    def _passes(self, part: NodeName, path: int, step: int) -> bool:
        """Whether the way to a step may pass a part."""
        first = step == len(self.paths[path].steps) - 1
        if first or self.recomputed or part.kind not in ("head", "mlp") or part.part is not None:
            return True
        target = self._site(path, step).name
        if target.kind == "kv":
            return (
                part.kind == "head"
                and part.layer == target.layer
                and (part.head or 0) // self.tiny.grouped == target.head
            )
        return target.kind == "head" and target.part is not None and target.owner == part

    def _computed(self, part: NodeName, on: Routes, patched: bool) -> Tensor:
        tiny, layer, head = self.tiny, part.layer or 0, part.head or 0

        def of(kind: str) -> Tensor:
            return self.read(NodeName("head", layer, head, kind), on, patched)  # type: ignore[arg-type]

        match part.kind, part.part:
            case "embeds", _:
                return tiny.embed(self.patch if patched else self.baseline)
            case (("attn_input" | "mlp_input" | "final_input"), _):
                return self._residual(part, on, patched)
            case "mlp", _:
                return tiny.mlp(layer, self._normed(NodeName("mlp_input", layer), (layer, "m"), on, patched))
            case "head", None:
                return tiny.written(layer, head, of("z"))
            case "head", "z":
                return of("pattern") @ of("v")
            case "head", "pattern":
                return tiny.pattern(of("q"), of("k"))
            case "head", ("k" | "v") if tiny.is_llama:
                return self.read(NodeName("kv", layer, head // tiny.grouped, part.part), on, patched)
            case (("head" | "kv"), _):
                normed = self._normed(NodeName("attn_input", layer), (layer, "a"), on, patched)
                return tiny.projected(layer, head, part.part or "", normed)
        return tiny.unembed(self._normed(NodeName("final_input"), (0, "final"), on, patched))

    def _normed(self, part: NodeName, point: tuple[int, str], on: Routes, patched: bool) -> Tensor:
        x = self.read(part, on, patched)
        scale = self.read(part, NOTHING, False) if self.frozen_norm and not patched else x
        return self.tiny.norm(point, x, scale)

    def _residual(self, part: NodeName, on: Routes, patched: bool) -> Tensor:
        """The last residual stream before it that a path names, and what was written since; biases come last."""
        streams = {site.name for path in self.paths for site in path.steps if site.name.is_residual}
        before = [name for name in streams if name.order < part.order and name.kind != "embeds"]
        since = max(before, key=lambda name: name.order, default=None)
        total = 0.0 if since is None else self.read(since, on, patched)
        for name in components(self.tiny):
            if name.order < part.order and (since is None or name.order > since.order):
                total = total + self.read(name, on, patched)
        for layer in range(len(self.tiny.blocks)):
            for end, bias in (("head", self.tiny.attention_bias(layer)), ("mlp", self.tiny.mlp_bias(layer))):
                order = NodeName(end, layer, 0).order  # type: ignore[arg-type]
                if order < part.order and (since is None or order > since.order):
                    total = total + bias
        assert isinstance(total, Tensor)
        return total


def logit_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] from logits [N, SEQ, VOCAB]."""
    picked = logits[:, -1].gather(1, labels)
    return picked[:, 0] - picked[:, 1]
