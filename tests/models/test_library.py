"""The parts of models, each beside torch's own, with and without batch axes; and that they are shared."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from harness import tensor
from torch.nn import functional

import tapeout as rc
from tapeout import Array, Circuit, module_new_bind, postorder
from tapeout.models.library import (
    attention,
    bind_norm,
    block,
    gated_mlp,
    grouped_rotary_attention,
    layer_norm,
    model_circuits,
    numbered,
    pointwise_mlp,
    rms_norm,
    rotary,
    symbol,
    transformer,
)

HEADS, SIZE, HIDDEN, MLP, SEQ = 4, 6, 10, 7, 5


def value(part: Circuit, **given: torch.Tensor) -> torch.Tensor:
    """The part with its symbols (`a__w__q` for `a.w.q`) bound to tensors."""
    names = {name: name.replace("__", ".") for name in given}
    bound = module_new_bind(part, *((names[name], Array(tensor_)) for name, tensor_ in given.items()))
    assert not bound.free_symbols
    return bound.evaluate()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return tensor(*shape, seed=seed)


# -- norms


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm(eps: float, batch: tuple[int, ...]) -> None:
    x, scale, bias = random(*batch, HIDDEN), random(HIDDEN, seed=1), random(HIDDEN, seed=2)
    found = value(layer_norm(eps), ln__input=x, ln__w__scale=scale, ln__w__bias=bias)
    close(found, functional.layer_norm(x, (HIDDEN,), scale, bias, eps))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm(eps: float, batch: tuple[int, ...]) -> None:
    x, scale = random(*batch, HIDDEN), random(HIDDEN, seed=1)
    close(value(rms_norm(eps), rms__input=x, rms__w__scale=scale), functional.rms_norm(x, (HIDDEN,), scale, eps))


def test_a_norm_bound_by_a_sublayer_has_symbols_of_its_own() -> None:
    assert {s.name for s in bind_norm("a", layer_norm(1e-5)).free_symbols} == {
        "a.norm.input",
        "a.ln.w.bias",
        "a.ln.w.scale",
    }
    assert {s.name for s in bind_norm("m", rms_norm(1e-5)).free_symbols} == {"m.norm.input", "m.rms.w.scale"}


# -- attention


def attention_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention as in the paper: heads [H, SEQ, SIZE] in, the stream [SEQ, HIDDEN] out."""
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(mask == 0, -torch.inf)
    return torch.einsum("hsc,hdc->sd", scores.softmax(-1) @ v, out)


def projections(heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    weights = {f"a__w__{which}": random(n, SIZE, HIDDEN, seed=i) for i, (which, n) in enumerate(counts.items())}
    return weights | {"a__w__o": random(heads, HIDDEN, SIZE, seed=3)}


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias: bool) -> None:
    x, mask = random(SEQ, HIDDEN, seed=9), torch.ones(SEQ, SEQ, dtype=torch.float64).tril()
    weights = projections(HEADS, HEADS)
    biases = {f"a__w__{which}_bias": random(HEADS, SIZE, seed=10 + i) for i, which in enumerate("qkv")}
    biases["a__w__o_bias"] = random(HIDDEN, seed=13)
    if not bias:
        biases = {}
    q, k, v = (x @ weights[f"a__w__{which}"].transpose(1, 2) for which in "qkv")
    if bias:
        q, k, v = (p + biases[f"a__w__{which}_bias"][:, None] for p, which in zip((q, k, v), "qkv", strict=True))
    expected = attention_of(q, k, v, weights["a__w__o"], mask) + (biases["a__w__o_bias"] if bias else 0)
    close(value(attention(bias), a__input=x, a__mask=mask, **weights, **biases), expected)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def tables() -> dict[str, torch.Tensor]:
    angles = torch.arange(SEQ)[:, None] * torch.tensor([1.0, 0.3, 0.01, 1.0, 0.3, 0.01], dtype=torch.float64)
    return {"cos": angles.cos(), "sin": angles.sin()}


def test_rotary() -> None:
    x = random(3, SEQ, SIZE)
    found = value(rotary(), rotary__input=x, rotary__cos=tables()["cos"], rotary__sin=tables()["sin"])
    close(found, rotated(x, **tables()))
    close(found.norm(dim=-1), x.norm(dim=-1))  # it turns and does not stretch


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_rotary_attention(kv_heads: int) -> None:
    x, mask = random(SEQ, HIDDEN, seed=9), torch.ones(SEQ, SEQ, dtype=torch.float64).tril()
    weights, group = projections(HEADS, kv_heads), HEADS // kv_heads
    q, k, v = (x @ weights[f"a__w__{which}"].transpose(1, 2) for which in "qkv")
    q, k = rotated(q, **tables()), rotated(k, **tables())
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    found = value(
        grouped_rotary_attention(group),
        a__input=x, a__mask=mask, a__rotary__cos=tables()["cos"], a__rotary__sin=tables()["sin"], **weights,
    )  # fmt: skip
    close(found, attention_of(q, k, v, weights["a__w__o"], mask))


def test_a_query_that_may_see_nothing_is_a_number() -> None:
    x, mask = random(SEQ, HIDDEN, seed=9), torch.zeros(SEQ, SEQ, dtype=torch.float64)
    found = value(attention(False), a__input=x, a__mask=mask, **projections(HEADS, HEADS))
    assert found.isfinite().all()


# -- MLPs


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu_new", lambda x: functional.gelu(x, approximate="tanh")),
        ("gelu", functional.gelu),
        ("relu", functional.relu),
        ("silu", functional.silu),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_mlp(activation: str, function: Any, bias: bool) -> None:
    x, into, out = random(3, HIDDEN), random(MLP, HIDDEN, seed=1), random(HIDDEN, MLP, seed=2)
    b, c = (random(MLP, seed=3), random(HIDDEN, seed=4)) if bias else (torch.zeros(()), torch.zeros(()))
    biases = {"m__w__in_bias": b, "m__w__out_bias": c} if bias else {}
    found = value(pointwise_mlp(activation, bias), m__input=x, m__w__proj_in=into, m__w__proj_out=out, **biases)
    close(found, function(x @ into.T + b) @ out.T + c)


def test_gated_mlp() -> None:
    x = random(3, HIDDEN)
    gate, up, out = (random(*shape, seed=i) for i, shape in enumerate([(MLP, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP)]))
    found = value(gated_mlp(), m__input=x, m__w__gate=gate, m__w__proj_in=up, m__w__proj_out=out)
    close(found, (functional.silu(x @ gate.T) * (x @ up.T)) @ out.T)


# -- the whole


def body() -> Circuit:
    return block(attention(), pointwise_mlp("gelu_new"), layer_norm(1e-5))


def test_parts_are_shared() -> None:
    """Built twice is the same object, so that a body exists once however many layers call it."""
    assert body() is body()
    assert layer_norm(1e-5) is layer_norm(1e-5) is not layer_norm(1e-6)
    model = transformer(body(), layer_norm(1e-5), 3)
    assert model is transformer(body(), layer_norm(1e-5), 3)
    assert len(model.get("a.head")) == len(model.get("ln")) == 1


def test_symbols_are_the_same_in_every_run() -> None:
    """Texts and hashes of circuits depend on these."""
    assert str(symbol("a.input", 3).uuid) == "4a69ba04-d372-53cc-ae91-a5429416745c"
    assert symbol("a.input", 3).uuid == symbol("a.input", 4).uuid
    symbols = [node for node in postorder(transformer(body(), layer_norm(1e-5), 2)) if isinstance(node, rc.Symbol)]
    assert len({s.uuid for s in symbols}) == len({s.name for s in symbols}) == len(symbols)


def test_names_are_unique_and_those_of_the_field() -> None:
    model = transformer(body(), layer_norm(1e-5), 2)
    names = [node.name for node in postorder(model)]
    assert len(set(names)) == len(names)
    known = (
        "t.logits final.call final.norm b0 b1 b0.call b b.a b.m b.resid.a b.input a a.p_bias a.heads a.head "
        "a.head.on_inp a.comb_v a.attn_probs a.attn_scores a.attn_scores_raw a.q a.k a.v a.q_p_bias a.mask "
        "a.norm a.norm_call a.norm.input a.w.o_bias m m.p_bias m.act m.pre m.norm m.norm_call ln ln.input t.input"
    )
    assert set(known.split()) <= set(names)


def test_numbered() -> None:
    assert numbered("a.w.q_bias", 11) == "a11.w.q_bias"
    assert numbered("m.ln.w.scale", 0) == "m0.ln.w.scale"


def test_each_layer_takes_weights_of_its_own() -> None:
    model = transformer(body(), layer_norm(1e-5), 2)
    free = {s.name for s in model.free_symbols}
    outer = {"t.input", "a.mask", "t.w.unembed", "final.ln.w.bias", "final.ln.w.scale"}
    own = {s.name for s in body().free_symbols} - {"b.input", "a.mask"}
    assert free == outer | {numbered(name, layer) for name in own for layer in (0, 1)}


def test_bound_weights_are_called_after_their_symbols() -> None:
    weight, table = random(3, HIDDEN), random(3, HIDDEN)
    circuits = model_circuits(body(), layer_norm(1e-5), [{}], {"t.w.unembed": weight}, {"t.w.tok_embeds": table})
    assert circuits["t.w.tok_embeds"] is Array(table, "t.w.tok_embeds")
    bound = circuits["t.bind_w"].cast_module()
    assert bound.name == "t.bind_w"
    assert [(s.symbol.name, n.name) for s, n in zip(bound.arg_specs, bound.nodes, strict=True)] == [
        ("t.w.unembed", "t.w.unembed_arr")
    ]
