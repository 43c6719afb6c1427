"""The parts that transformers are built of: circuits with symbols in the places of inputs and weights.

The names are those of the field's first circuit library, REMIX's, so that its users find what they
know: a part called `x` has inputs `x.y`, weights `x.w.y` and constants `x.c.y`. Per-head weights end
in `_h`. Axes of the shapes: SEQ tokens, HIDDEN the residual stream, HEAD_SIZE one head, MLP neurons.
Symbols have fixed uuids made from their names, so parts intern and texts are stable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from uuid import UUID, uuid5

import torch

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    GeneralFunction,
    Matcher,
    Module,
    Rearrange,
    RearrangeSpec,
    Scalar,
    Symbol,
    get_free_symbols,
    last_dim_size,
    module_new_bind,
    reciprocal,
    rotate_half,
    rsqrt,
    silu,
    softmax,
)
from tapeout.ir.nodes.functions import FUNCTIONS
from tapeout.ir.sizes import HEAD_SIZE, HEADS, HIDDEN, KV_HEADS, MLP, SEQ, VOCAB, Size, multiply

_NAMESPACE = UUID("6a0d1c3e-52f4-4b44-9d1b-8f6f3f1e7a10")
_NEG_INF = -10_000.0  # finite: a row that is masked everywhere stays a number

Bindings = dict[str, Circuit]
Weights = Mapping[str, torch.Tensor]
"""Tensors by name."""


def symbol(name: str, *shape: Size) -> Symbol:
    """The library's symbol of that name."""
    return Symbol(shape, uuid5(_NAMESPACE, name), name)


def _einsum(string: str, *nodes: Circuit, name: str) -> Einsum:
    return Einsum.from_einsum_string(string, *nodes, name=name)


# -- norms


@cache
def layer_norm(eps: float) -> Circuit:
    """LayerNorm of one position (Ba et al. 2016): input [HIDDEN]."""
    x = symbol("ln.input", HIDDEN)
    recip_size = reciprocal(last_dim_size(x, "ln.c.hidden_size"), "ln.c.recip_hidden_size")
    neg_mean = _einsum("h,z,->z", x, Scalar(-1.0, (1,), "ln.neg"), recip_size, name="ln.neg_mean")
    centred = Add(x, neg_mean, name="ln.mean_subbed")
    var = _einsum("h,h,->", centred, centred, recip_size, name="ln.var")
    scale = rsqrt(Add(Scalar(eps, (), "ln.c.eps"), var, name="ln.var_p_eps"), "ln.rsqrt")
    y = _einsum("h,->h", centred, scale, name="ln.y")
    scaled = _einsum("h,h->h", y, symbol("ln.w.scale", HIDDEN), name="ln.y_scaled")
    return Add(symbol("ln.w.bias", HIDDEN), scaled, name="ln")


@cache
def rms_norm(eps: float) -> Circuit:
    """RMSNorm of one position (Zhang and Sennrich 2019): input [HIDDEN]."""
    x = symbol("rms.input", HIDDEN)
    recip_size = reciprocal(last_dim_size(x, "rms.c.hidden_size"), "rms.c.recip_hidden_size")
    mean_square = _einsum("h,h,->", x, x, recip_size, name="rms.mean_square")
    scale = rsqrt(Add(Scalar(eps, (), "rms.c.eps"), mean_square, name="rms.mean_square_p_eps"), "rms.rsqrt")
    y = _einsum("h,->h", x, scale, name="rms.y")
    return _einsum("h,h->h", y, symbol("rms.w.scale", HIDDEN), name="rms")


def bind_norm(prefix: str, norm: Circuit) -> Module:
    """The module `a.norm`, `m.norm` or `final.norm`: the norm with symbols of its own for input and weights."""
    kind = norm.name
    weights = [name for name in (f"{kind}.w.bias", f"{kind}.w.scale") if norm.are_any_found(name)]
    bindings: list[tuple[str, Circuit]] = [(f"{kind}.input", symbol(f"{prefix}.norm.input", SEQ, HIDDEN))]
    bindings += [(weight, symbol(f"{prefix}.{weight}", HIDDEN)) for weight in weights]
    return module_new_bind(norm, *bindings, name=f"{prefix}.norm")


# -- attention


def _masked_probs(raw: Circuit, mask: Symbol) -> Circuit:
    """Softmax over keys of scores that are already 0 where the mask is; there they get -10,000."""
    inverse = symbol("not_mask.input")
    negated = _einsum(",->", inverse, Scalar(-1.0, (), "neg_one"), name="not_mask.neg_mask")
    not_mask = Add(Scalar(1.0, (), "one"), negated, name="not_mask")
    where = module_new_bind(not_mask, ("not_mask.input", mask), name="a.not_mask")
    bias = _einsum("qk,->qk", where, Scalar(_NEG_INF, (), "a.neg_inf"), name="a.score_neg_inf_bias")
    return softmax(Add(raw, bias, name="a.attn_scores"), "a.attn_probs")


def _div_head_size(weight: Symbol) -> Circuit:
    """1 / sqrt(HEAD_SIZE), from the shape of a weight [HEAD_SIZE, HIDDEN]."""
    like = _einsum("jk->j", weight, name="a.c.bias_for_head_size")
    return rsqrt(last_dim_size(like, "a.c.head_size"), "a.c.div_head_size")


def _projection(letters: str, which: str, source: Symbol, bias: bool) -> Circuit:
    weight = symbol(f"a.w.{which}_h", HEAD_SIZE, HIDDEN)
    product = _einsum(letters, source, weight, name=f"a.{which}")
    if not bias:
        return product
    return Add(product, symbol(f"a.w.{which}_bias_h", HEAD_SIZE), name=f"a.{which}_p_bias")


def _head(q: Circuit, k: Circuit, v: Circuit, size_like: Symbol) -> Circuit:
    """One head's output [SEQ, HIDDEN] from its queries, keys and values [SEQ, HEAD_SIZE] (Vaswani et al. 2017)."""
    mask = symbol("a.mask", SEQ, SEQ)
    raw = _einsum("qc,kc,,qk->qk", q, k, _div_head_size(size_like), mask, name="a.attn_scores_raw")
    mixed = _einsum("qk,kV->qV", _masked_probs(raw, mask), v, name="a.comb_v")
    return _einsum("sV,dV->sd", mixed, symbol("a.w.o_h", HIDDEN, HEAD_SIZE), name="a.head")


def _sum_heads(head: Circuit, bindings: Bindings, output_bias: bool) -> Circuit:
    on_input = module_new_bind(head, *_inputs_of(head), name="a.head.on_inp")
    heads = module_new_bind(on_input, *bindings.items(), name="a.heads")
    total = _einsum("hsd->sd", heads, name="a")
    return Add(total, symbol("a.w.o_bias", HIDDEN), name="a.p_bias") if output_bias else total


def _inputs_of(head: Circuit) -> list[tuple[str, Circuit]]:
    source = symbol("a.input", SEQ, HIDDEN)
    return [(name, source) for name in ("a.q.input", "a.k.input", "a.v.input") if head.are_any_found(name)]


@cache
def attention(bias: bool = True) -> Circuit:
    """Multi-head attention with weights for each head: input `a.input` [SEQ, HIDDEN], mask `a.mask` [SEQ, SEQ]."""
    q, k, v = (
        _projection(letters, which, symbol(f"a.{which}.input", SEQ, HIDDEN), bias)
        for letters, which in (("qd,cd->qc", "q"), ("kd,cd->kc", "k"), ("kd,Vd->kV", "v"))
    )
    head = _head(q, k, v, symbol("a.w.k_h", HEAD_SIZE, HIDDEN))
    bindings: Bindings = {}
    for which in ("q", "k", "v"):
        bindings[f"a.w.{which}_h"] = symbol(f"a.w.{which}", HEADS, HEAD_SIZE, HIDDEN)
        if bias:
            bindings[f"a.w.{which}_bias_h"] = symbol(f"a.w.{which}_bias", HEADS, HEAD_SIZE)
    bindings["a.w.o_h"] = symbol("a.w.o", HEADS, HIDDEN, HEAD_SIZE)
    return _sum_heads(head, bindings, output_bias=bias)


@cache
def rotary() -> Circuit:
    """Rotary position embedding in its half-rotation form (Su et al. 2021): `x * cos + rotate_half(x) * sin`."""
    x, cos, sin = (symbol(f"rotary.{name}", SEQ, HEAD_SIZE) for name in ("input", "cos", "sin"))
    straight = _einsum("sc,sc->sc", x, cos, name="rotary.straight")
    turned = _einsum("sc,sc->sc", rotate_half(x, "rotary.half"), sin, name="rotary.turned")
    return Add(straight, turned, name="rotary")


def _rotated(name: str, node: Circuit) -> Module:
    cos, sin = (symbol(f"a.rotary.{which}", SEQ, HEAD_SIZE) for which in ("cos", "sin"))
    return module_new_bind(rotary(), ("rotary.input", node), ("rotary.cos", cos), ("rotary.sin", sin), name=name)


@cache
def grouped_rotary_attention(group: int) -> Circuit:
    """Attention with rotary embeddings in which `group` query heads share a key/value head (Ainslie et al. 2023).

    The keys and values of each key/value head are computed once, in `a.kv.k` and `a.kv.v`, and repeated
    for its query heads. Inputs as for `attention`, and the tables `a.rotary.cos` and `a.rotary.sin`.
    """
    q = _rotated("a.q_rot", _projection("qd,cd->qc", "q", symbol("a.q.input", SEQ, HIDDEN), bias=False))
    keys, values = (symbol(f"a.{which}_h", SEQ, HEAD_SIZE) for which in ("k", "v"))
    head = _head(q, keys, values, symbol("a.w.q_h", HEAD_SIZE, HIDDEN))
    k = _rotated("a.k_rot", _projection("kd,cd->kc", "k", symbol("a.k.input", SEQ, HIDDEN), bias=False))
    v = _projection("kd,Vd->kV", "v", symbol("a.v.input", SEQ, HIDDEN), bias=False)
    heads = multiply((group, KV_HEADS))
    bindings: Bindings = {
        "a.w.q_h": symbol("a.w.q", heads, HEAD_SIZE, HIDDEN),
        "a.k_h": _of_all_kv_heads("k", k, group),
        "a.v_h": _of_all_kv_heads("v", v, group),
        "a.w.o_h": symbol("a.w.o", heads, HIDDEN, HEAD_SIZE),
    }
    return _sum_heads(head, bindings, output_bias=False)


def _of_all_kv_heads(which: str, body: Circuit, group: int) -> Circuit:
    weight = symbol(f"a.w.{which}", KV_HEADS, HEAD_SIZE, HIDDEN)
    source = symbol("a.input", SEQ, HIDDEN)
    each = module_new_bind(body, (f"a.{which}.input", source), (f"a.w.{which}_h", weight), name=f"a.kv.{which}")
    repeat = RearrangeSpec(((0,), (1,), (2,)), ((0, 3), (1,), (2,)), (None, None, None, group))
    return Rearrange(each, repeat, name=f"a.kv.{which}_by_query_head")


# -- MLPs


@cache
def pointwise_mlp(activation: str, bias: bool = True) -> Circuit:
    """`W_out f(W_in x + b_in) + b_out` of one position: input `m.input` [HIDDEN]."""
    pre = _einsum("i,hi->h", symbol("m.input", HIDDEN), symbol("m.w.proj_in", MLP, HIDDEN), name="m.pre_mul")
    if bias:
        pre = Add(pre, symbol("m.w.in_bias", MLP), name="m.pre")  # type: ignore[assignment]
    act = GeneralFunction(pre, spec=FUNCTIONS[activation], name="m.act")
    out = _einsum("h,oh->o", act, symbol("m.w.proj_out", HIDDEN, MLP), name="m")
    return Add(out, symbol("m.w.out_bias", HIDDEN), name="m.p_bias") if bias else out


@cache
def gated_mlp() -> Circuit:
    """SwiGLU (Shazeer 2020): `W_out (silu(W_gate x) * W_in x)` of one position: input `m.input` [HIDDEN]."""
    x = symbol("m.input", HIDDEN)
    gate = _einsum("i,hi->h", x, symbol("m.w.gate", MLP, HIDDEN), name="m.gate")
    up = _einsum("i,hi->h", x, symbol("m.w.proj_in", MLP, HIDDEN), name="m.pre")
    hidden = _einsum("h,h->h", silu(gate, "m.act"), up, name="m.hidden")
    return _einsum("h,oh->o", hidden, symbol("m.w.proj_out", HIDDEN, MLP), name="m")


# -- blocks and the whole


def _norm_call(prefix: str, body: Circuit, norm: Circuit) -> Module:
    return module_new_bind(body, (f"{prefix}.input", bind_norm(prefix, norm)), name=f"{prefix}.norm_call")


def block(attn: Circuit, mlp: Circuit, norm: Circuit) -> Circuit:
    """A pre-norm block: input `b.input` [SEQ, HIDDEN]."""
    residual = symbol("b.input", SEQ, HIDDEN)
    attn_call = module_new_bind(_norm_call("a", attn, norm), ("a.norm.input", residual), name="b.a")
    middle = Add(attn_call, residual, name="b.resid.a")
    mlp_call = module_new_bind(_norm_call("m", mlp, norm), ("m.norm.input", middle), name="b.m")
    return Add(mlp_call, middle, name="b")


_NOT_WEIGHTS = Matcher("b.input", "a.mask", "a.rotary.cos", "a.rotary.sin")


def numbered(name: str, layer: int) -> str:
    """`a.w.q` in layer 3 is `a3.w.q`."""
    first, _, rest = name.partition(".")
    return f"{first}{layer}.{rest}"


def transformer(body: Circuit, norm: Circuit, num_layers: int) -> Circuit:
    """The logits [SEQ, VOCAB] of a stack of blocks: input `t.input` [SEQ, HIDDEN], and each layer's weights."""
    weights = [s for s in get_free_symbols(body) if not _NOT_WEIGHTS(s)]
    out: Circuit = symbol("t.input", SEQ, HIDDEN)
    for layer in range(num_layers):
        renamed = [(weight, symbol(numbered(weight.name, layer), *weight.shape)) for weight in weights]
        own = module_new_bind(body, *renamed, name=f"b{layer}")
        out = module_new_bind(own, ("b.input", out), name=f"b{layer}.call")
    final = module_new_bind(bind_norm("final", norm), ("final.norm.input", out), name="final.call")
    return _einsum("sh,vh->sv", final, symbol("t.w.unembed", VOCAB, HIDDEN), name="t.logits")


def model_circuits(
    body: Circuit, norm: Circuit, layers: Sequence[Weights], final: Weights, tables: Weights
) -> Bindings:
    """The circuits of a model by name: `t.bind_w`, the model with its weights, and the tables of embeddings.

    Args:
        body: a block.
        norm: its norm, which is the last one too.
        layers: for each layer its weights, by the names that `body` gives them. Arrays are called after their symbols,
            with `_arr` behind.
        final: the weights behind the blocks.
        tables: the tables of embeddings.
    """
    weights = {numbered(name, i): value for i, layer in enumerate(layers) for name, value in layer.items()}
    weights.update(final)
    arrays = ((name, Array(value, f"{name}_arr")) for name, value in weights.items())
    model = module_new_bind(transformer(body, norm, len(layers)), *arrays, name="t.bind_w")
    return {"t.bind_w": model, **{name: Array(value, name) for name, value in tables.items()}}
